"""Habits of scripts beyond the main ones: what is understood of them, and what is refused."""

import re
import sys
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from attached_scripts import DREAMBOOTH
from attached_steps import assert_same, edm_step, read_back, variables_of
from diffusers import AutoencoderDC
from make_step import ddpm, flow, make_step

from mldm_plugin.attach import by_frame
from mldm_plugin.attach.annotation import Collate
from mldm_plugin.attach.attachment import Attachment
from mldm_plugin.attach.flags import Settings
from mldm_plugin.attach.scope import Scope
from mldm_plugin.decode.latent_decoder import LatentDecoder


def test_an_output_that_was_preconditioned_under_another_name():
    scheduler, step = edm_step()
    variables = variables_of(step, denoised_latents=step.model_pred, sigmas=step.sigmas)
    variables["model_pred"] = step.model_pred + 1
    assert torch.equal(read_back(step, variables, scheduler).model_pred, step.model_pred)


def test_a_film_whose_frames_come_first():
    step = make_step((300, 700))
    variables = variables_of(step)
    variables |= {name: variables[name].unsqueeze(2) for name in ("latents", "noise", "model_pred", "target")}
    variables["noisy_latents"] = step.noisy_latents.unsqueeze(1)
    assert_same(read_back(step, variables, ddpm()), step)


def test_one_sigma_for_the_whole_batch():
    step = make_step((300, 300), scheduler=flow())
    own = read_back(step, variables_of(step, sigmas=torch.tensor([0.3])), flow())
    assert own.sigmas.tolist() == pytest.approx([0.3, 0.3])


def test_the_variables_that_were_taken_are_named():
    step = make_step((300, 700))
    told = Scope(variables_of(step, noise_pred=step.model_pred)).account()
    assert "variables latents, noisy_latents, model_pred, timesteps, noise, target;" in told


def test_latents_kept_as_tensors_stay_as_they_are():
    latents = torch.zeros(1, 4, 2, 2)
    assert Attachment(Settings(("mldm",), "baseline")).cache(latents, {}) is latents


def test_cached_latents_that_cannot_be_followed_are_refused(run_attached):
    done, weights, steps, _ = run_attached(DREAMBOOTH, "--cache_latents", "--mldm-by-frame")
    assert done.returncode == 1
    assert not weights
    assert not steps
    (line,) = re.findall(r"^mldm: (.*)", done.stderr, re.M)
    assert "leave --cache_latents out" in line


def test_loaders_that_do_not_batch_are_left_alone(monkeypatch):
    accelerate, data = pytest.importorskip("accelerate"), torch.utils.data
    monkeypatch.setattr(accelerate.Accelerator, "backward", accelerate.Accelerator.backward)
    monkeypatch.setattr(data.DataLoader, "__init__", data.DataLoader.__init__)
    monkeypatch.setattr(sys.modules["torch.optim.optimizer"], "_global_optimizer_pre_hooks", OrderedDict())
    by_frame.install(Attachment(Settings(("mldm",), "baseline", set=("losses.masked_mse.weight=0.1",))))
    batches = [{"pixel_values": torch.zeros(2, 3, 4, 4)}]
    assert not isinstance(data.DataLoader(batches, batch_size=None).collate_fn, Collate)
    assert not isinstance(data.DataLoader(batches, None).collate_fn, Collate)
    assert isinstance(data.DataLoader(batches, batch_size=1).collate_fn, Collate)
    assert isinstance(data.DataLoader(batches).collate_fn, Collate)


def test_a_scripts_own_hook_on_optimizers_still_runs(monkeypatch):
    """Registered after ours: torch goes through all of them in a step, and must not lose its place."""
    module = sys.modules["torch.optim.optimizer"]
    monkeypatch.setattr(module, "_global_optimizer_pre_hooks", OrderedDict())
    seen = []
    by_frame.stop_unseen(SimpleNamespace(steps=1), "a door", "Do something.")
    module.register_optimizer_step_pre_hook(lambda *_: seen.append(1))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)
    optimizer.step()
    optimizer.step()
    assert len(seen) == 2


def test_the_autoencoder_of_sana():
    torch.manual_seed(0)
    blocks = {"block_types": "ResBlock", "block_out_channels": (8, 8, 8), "layers_per_block": (1, 1, 1)}
    options = {f"{half}_{name}": value for half in ("encoder", "decoder") for name, value in blocks.items()}
    options |= {f"{half}_qkv_multiscales": ((), (), ()) for half in ("encoder", "decoder")}
    vae = AutoencoderDC(latent_channels=4, scaling_factor=0.5, **options)
    pictures = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(pictures).latent
        decoded = vae.decode(latents).sample
    decoder = LatentDecoder(vae)
    assert torch.allclose(decoder.encode(pictures)[0], latents * 0.5, atol=1e-6)
    assert torch.allclose(decoder(latents * 0.5), decoded, atol=1e-5)
    assert decoder.image_size(latents) == (16, 16)
