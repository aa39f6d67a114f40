"""The callback for CompVis' loops: masks of the data set, and a step that gives the library form's loss.

What is called here is called as in lllyasviel/ControlNet at ed85cd1e: `ldm/models/diffusion/ddpm.py` (`training_step`,
`shared_step`, `p_losses`, `q_sample`) and `cldm/cldm.py`; and as Lightning calls its callbacks.
MLDM_CONTROLNET names the folder of a checkout, MLDM_CONTROLNET_PYTHON the interpreter of its environment.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from make_step import ddpm, people_mask, tiny_vae
from safetensors.torch import load_file
from tiny_families import build
from tiny_people import SCENES, write_dreambooth
from torch import nn

from mldm_plugin import DiffusionStep, LossStack
from mldm_plugin.attach import lightning
from mldm_plugin.errors import CheckError, DataError, MldmError

CHECKOUT = Path(os.environ.get("MLDM_CONTROLNET", "checkout-of-controlnet"))
PYTHON = os.environ.get("MLDM_CONTROLNET_PYTHON", sys.executable)
PRESET = """
combine: convex
checks: {picture: warn}
losses:
  masked_lpips: {weight: 0.2, max_timestep: 999, form: spatial, network: vgg, weights: random}
  face: {weight: 0.3, max_timestep: 999, form: spatial, network: dlib_resnet, weights: random}
"""
BOXES = torch.tensor([[4.0, 4.0, 20.0, 24.0], [0.0, 0.0, 0.0, 0.0]])


class FirstStage(nn.Module):
    """Its autoencoder: `decode` returns pictures, `encode` a posterior, and neither takes anything else."""

    def __init__(self):
        super().__init__()
        self.inner = tiny_vae()
        self.encoder, self.decoder = self.inner.encoder, self.inner.decoder

    def encode(self, x):
        return self.inner.encode(x).latent_dist

    def decode(self, z):
        return self.inner.decode(z).sample


class Model:
    """A `LatentDiffusion` whose network is a tensor."""

    first_stage_key, scale_factor, original_elbo_weight, l_simple_weight = "jpg", torch.tensor(0.5), 0.0, 1.0

    def __init__(self, network, parameterization="eps", timesteps=(100, 350)):
        self.first_stage_model, self.network, self.parameterization = FirstStage(), network, parameterization
        self.alphas_cumprod, self.timesteps = ddpm().alphas_cumprod, torch.tensor(timesteps)

    def q_sample(self, x_start, t, noise=None):
        a = self.alphas_cumprod[t][:, None, None, None]
        return a.sqrt() * x_start + (1 - a).sqrt() * noise

    def apply_model(self, x_noisy, t, cond):
        self.seen = self.network + 0 * x_noisy
        return self.seen

    def p_losses(self, x_start, cond, t, noise=None):
        noise = torch.randn_like(x_start) if noise is None else noise
        x_noisy = self.q_sample(x_start=x_start, t=t, noise=noise)
        output = self.apply_model(x_noisy, t, cond)
        a = self.alphas_cumprod[t][:, None, None, None]
        v = a.sqrt() * noise - (1 - a).sqrt() * x_start
        target = {"eps": noise, "x0": x_start, "v": v}[self.parameterization]
        losses = (output - target).square().mean([1, 2, 3])
        return self.l_simple_weight * losses.mean(), {"train/loss_simple": losses.mean()}

    def training_step(self, batch, seed=3):
        with torch.no_grad():
            x = self.first_stage_model.encode(batch["jpg"].movedim(-1, 1)).mode() * self.scale_factor
        torch.manual_seed(seed)
        return self.p_losses(x, None, self.timesteps)[0]


@pytest.fixture
def callback(tmp_path, monkeypatch):
    """Makes the callback, on the one name of Lightning's that is used."""
    monkeypatch.setitem(sys.modules, "pytorch_lightning", ModuleType("pytorch_lightning"))
    sys.modules["pytorch_lightning"].Callback = type("Callback", (), {})

    def make(text=PRESET):
        (tmp_path / "preset.yaml").write_text(text, encoding="utf-8")
        return lightning.losses(preset=str(tmp_path / "preset.yaml"), panel_steps=0)

    return make


def batch_of():
    torch.manual_seed(0)
    masks = people_mask(2)[:, 0].to(torch.int64)
    return {
        "jpg": torch.rand(2, 32, 32, 3) * 2 - 1,
        "txt": ["", ""],
        "mask": masks,
        "face_boxes": BOXES.expand(2, 2, 4),
    }


def train(callback, model, batch, tmp_path):
    trainer = SimpleNamespace(
        accumulate_grad_batches=1,
        num_training_batches=5,
        global_step=0,
        is_global_zero=True,
        default_root_dir=str(tmp_path / "out"),
    )
    callback.on_train_start(trainer, model)
    callback.on_train_batch_start(trainer, model, batch, 0)
    return model.training_step(batch), trainer


@pytest.mark.parametrize(("kind", "ours"), [("eps", "epsilon"), ("x0", "sample"), ("v", "v_prediction")])
def test_a_recorded_step_gives_the_loss_of_the_library_form(callback, tmp_path, kind, ours):
    batch = batch_of()
    network = torch.randn(2, 4, 8, 8).requires_grad_()
    model, made = Model(network, kind), callback()
    loss, trainer = train(made, model, batch, tmp_path)
    (gradient,) = torch.autograd.grad(loss, network)

    pictures, own = batch["jpg"].movedim(-1, 1), network.detach().clone().requires_grad_()
    plain = Model(own, kind)
    with torch.no_grad():
        latents = plain.first_stage_model.encode(pictures).mode() * 0.5
    torch.manual_seed(3)
    noise = torch.randn_like(latents)
    a = plain.alphas_cumprod[plain.timesteps][:, None, None, None]
    v = a.sqrt() * noise - (1 - a).sqrt() * latents
    step = DiffusionStep(
        latents=latents,
        noise=noise,
        noisy_latents=plain.q_sample(latents, plain.timesteps, noise),
        timesteps=plain.timesteps,
        model_pred=own,
        target={"eps": noise, "x0": latents, "v": v}[kind],
        pixel_values=pictures,
        person_mask=people_mask(2),
        face_boxes=[BOXES[:1], BOXES[:1]],
    )
    stack = LossStack.from_preset(tmp_path / "preset.yaml", vae=tiny_vae(), noise_scheduler=ddpm(ours))
    expected = stack(step).loss
    (right,) = torch.autograd.grad(expected, own)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (gradient - right).norm() <= 1e-6 * right.norm()
    assert loss.item() != pytest.approx(plain.training_step(batch).item(), rel=1e-3)
    made.on_train_end(trainer, model)
    assert (tmp_path / "out/mldm/metrics.jsonl").is_file()


def test_weights_zero_and_validation_are_its_own(callback, tmp_path):
    network, batch = torch.randn(2, 4, 8, 8).requires_grad_(), {"jpg": batch_of()["jpg"]}
    zero = PRESET.replace("weight: 0.2", "weight: 0").replace("weight: 0.3", "weight: 0")
    loss, _ = train(callback(zero), Model(network), batch, tmp_path)
    plain = Model(network).training_step(batch)
    assert torch.equal(loss, plain)
    assert torch.equal(*(torch.autograd.grad(x, network)[0] for x in (loss, plain)))
    model = Model(network)
    callback().on_train_start(None, model)
    with torch.no_grad():
        assert torch.equal(model.training_step(batch), plain)


def test_another_loss_is_told_and_additive_takes_it(callback, tmp_path):
    network, batch = torch.randn(2, 4, 8, 8).requires_grad_(), batch_of()
    for combine in ("convex", "additive"):
        model = Model(network)
        plain, own = model.training_step(batch), model.p_losses
        model.p_losses = lambda *args, own=own, model=model: (own(*args)[0] + model.seen.abs().mean(), {})
        made = callback(PRESET.replace("convex", combine))
        if combine == "convex":
            with pytest.raises(CheckError, match="combine=additive takes any loss"):
                train(made, model, batch, tmp_path)
        else:
            assert train(made, model, batch, tmp_path)[0] > plain + network.abs().mean()


def test_masks_that_are_not_cut_like_the_pictures_or_not_there_are_told(callback, tmp_path):
    network, batch = torch.randn(2, 4, 8, 8).requires_grad_(), batch_of()
    for wrong in (batch["mask"][:, :16], batch["mask"].float()):
        with pytest.raises(DataError, match="cut masks like pictures in the data set"):
            train(callback(), Model(network), {**batch, "mask": wrong}, tmp_path)
    with pytest.raises(DataError, match="needs"):
        train(callback(), Model(network), {k: v for k, v in batch.items() if k != "mask"}, tmp_path)
    stored = np.zeros((2, 32, 32, 1), np.uint8)
    people = torch.zeros(2, 3, 17, 3)
    people[0, 1, 9] = torch.tensor([4.0, 5.0, 1.0])  # one person, in the first picture
    batch = {"m": torch.from_numpy(stored), "k": people}
    annotation = lightning.annotation_of(batch, "m", "b", "k", (32, 32))
    assert annotation.person_mask.shape == (2, 1, 32, 32)
    assert annotation.face_boxes is None
    assert [len(of) for of in annotation.keypoints] == [1, 0]
    assert torch.equal(annotation.keypoints[0], people[0, 1:2])
    alone = lightning.annotation_of({"k": people}, "m", "b", "k", (32, 32))
    assert len(alone) == 2
    for wrong in (people.flatten(2), people[0], people[..., :2], people.tolist()):
        with pytest.raises(DataError, match=r"'k' in the batch is .*, expected \(N, K, 17, 3\)"):
            lightning.annotation_of({"k": wrong}, "m", "b", "k", (32, 32))


def test_without_lightning_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    with pytest.raises(MldmError, match="needs the Lightning"):
        lightning.losses(preset="mldm")


# The real one


def train_real(folder, name, *preset):
    script = Path(__file__).parent / "scripts" / "lightning" / "tiny_cldm.py"
    here = os.pathsep.join([str(CHECKOUT), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [PYTHON, str(script), str(folder), name, *map(str, preset)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": here},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / f"{name}.safetensors"), done.stderr


@pytest.mark.timeout(1800)
@pytest.mark.skipif(not CHECKOUT.is_dir(), reason="MLDM_CONTROLNET names no folder")
def test_the_real_one_trains_with_our_losses_and_with_weights_zero_as_without_us(tmp_path):
    photos = write_dreambooth(tmp_path / "photos", tmp_path / "masks")
    for scene in SCENES:
        (photos / f"{scene.name}.txt").write_text(scene.text, encoding="utf-8")
    (build("sd", tmp_path / "sd") / "tokenizer").rename(tmp_path / "clip")
    text = PRESET[: PRESET.index("  face:")]
    (tmp_path / "preset.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "zero.yaml").write_text(text.replace("weight: 0.2", "weight: 0"), encoding="utf-8")
    plain, _ = train_real(tmp_path, "plain")
    zero, _ = train_real(tmp_path, "zero", tmp_path / "zero.yaml")
    ours, told = train_real(tmp_path, "ours", tmp_path / "preset.yaml")
    assert plain.keys() == zero.keys() == ours.keys()
    assert all(torch.equal(plain[name], zero[name]) for name in plain)
    assert any(not torch.equal(plain[name], ours[name]) for name in plain)
    assert "reaches the network" in told
    lines = [json.loads(x) for x in (tmp_path / "ours/mldm/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert sum(line["masked_lpips/gated"] for line in lines) > len(lines)
