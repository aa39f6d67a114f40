"""One recorded step gives the same loss whichever trainer it comes from: the same numbers, to 1e-6.

The record is made here: what a loop has at hand, with the random draws that lead to it. It goes through the library
form, through our own trainer's step, and through the attachment, under the names of diffusers' scripts and under those
of kohya's, whose step is spread over the methods of a trainer class.
"""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from make_step import ddpm, people_mask, tiny_vae
from safetensors.torch import load_file, save_file

from mldm_plugin import DiffusionStep, LossStack, load_plugins
from mldm_plugin.attach.annotation import KEY, Annotation
from mldm_plugin.attach.attachment import Attachment
from mldm_plugin.attach.flags import Settings
from mldm_plugin.data.batch import FaceBoxes
from mldm_plugin.training.controlnet import ControlNetTrainer
from mldm_plugin.training.objective import Objective

PRESET = """
combine: convex
checks: {picture: warn}
losses:
  masked_lpips: {weight: 0.2, max_timestep: 999, form: spatial, network: alex, weights: random}
  face: {weight: 0.3, max_timestep: 999, form: spatial, network: dlib_resnet, weights: random}
"""
BOXES = torch.tensor([[4.0, 4.0, 20.0, 24.0], [18.0, 2.0, 30.0, 16.0]])
SEED = 7


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """The step on disk, drawn as a training loop draws it: noise, then timesteps."""
    torch.manual_seed(SEED)
    vae, scheduler = tiny_vae(), ddpm()
    pixel_values = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = (vae.encode(pixel_values).latent_dist.mode() * vae.config.scaling_factor).contiguous()
    torch.manual_seed(SEED)
    noise = torch.randn_like(latents)
    timesteps = torch.randint(0, 1000, (2,))
    step = {
        "pixel_values": pixel_values,
        "person_mask": people_mask(2),
        "latents": latents,
        "noise": noise,
        "timesteps": timesteps,
        "noisy_latents": scheduler.add_noise(latents, noise, timesteps),
        "model_pred": noise + 0.2 * torch.randn_like(noise),
    }
    path = tmp_path_factory.mktemp("record") / "step.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in step.items()}, path)
    (path.parent / "preset.yaml").write_text(PRESET, encoding="utf-8")
    return path


def load(record):
    step = load_file(record)
    step["model_pred"].requires_grad_()
    return step


def loss_and_gradient(loss, model_pred):
    (gradient,) = torch.autograd.grad(loss, model_pred)
    return loss.item(), gradient


@pytest.fixture(scope="module")
def expected(record):
    """By the library form."""
    step = load(record)
    stack = LossStack.from_preset(record.parent / "preset.yaml", vae=tiny_vae(), noise_scheduler=ddpm())
    own = DiffusionStep(**step, target=step["noise"], face_boxes=[BOXES, BOXES])
    return loss_and_gradient(stack(own).loss, step["model_pred"])


def check(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert (found[1] - expected[1]).norm() <= 1e-6 * expected[1].norm()


def test_our_own_trainer(record, expected, monkeypatch):
    step = load(record)
    stack = LossStack.from_preset(record.parent / "preset.yaml", vae=tiny_vae(), noise_scheduler=ddpm())
    monkeypatch.setattr(ControlNetTrainer, "__init__", lambda self: None)
    monkeypatch.setattr(ControlNetTrainer, "latents_of", lambda self, batch: step["latents"])
    monkeypatch.setattr(ControlNetTrainer, "answer", lambda *_: (step["model_pred"], torch.empty(0)))
    trainer = ControlNetTrainer()
    trainer.noise_scheduler, trainer.dtype = ddpm(), torch.float32
    trainer.flags = SimpleNamespace(condition_dropout=0.0)
    batch = {"pixel_values": step["pixel_values"], "person_mask": step["person_mask"]}
    batch["face_boxes"] = FaceBoxes([BOXES, BOXES])
    torch.manual_seed(SEED)
    made = trainer.diffusion_step(None, batch, lambda latents: torch.randint(0, 1000, (len(latents),)))
    check(loss_and_gradient(Objective(stack)(made).loss, step["model_pred"]), expected)


@pytest.mark.parametrize("names", [("latents", "noisy_latents"), ("model_input", "noisy_model_input")])
def test_attached_to_a_diffusers_script(record, expected, tmp_path, names):
    step = load(record)
    attachment = Attachment(Settings(("mldm",), str(record.parent / "preset.yaml"), panel_steps=0))
    annotation = Annotation(("a", "b"), step["person_mask"], FaceBoxes([BOXES, BOXES]), {})
    variables = {
        "batch": {"pixel_values": step["pixel_values"], KEY: annotation},
        names[0]: step["latents"],
        names[1]: step["noisy_latents"],
        "noise": step["noise"],
        "timesteps": step["timesteps"],
        "model_pred": step["model_pred"],
        "target": step["noise"],
        "vae": tiny_vae(),
        "noise_scheduler": ddpm(),
        "args": SimpleNamespace(output_dir=str(tmp_path)),
        "accelerator": SimpleNamespace(is_main_process=True, sync_gradients=False),
    }
    plain = torch.nn.functional.mse_loss(step["model_pred"], step["noise"])
    check(loss_and_gradient(attachment.loss(plain, variables), step["model_pred"]), expected)
    assert variables == {}  # nothing is kept alive


def test_attached_to_a_kohya_script(record, expected, tmp_path):
    step = load(record)
    attachment = Attachment(Settings(("mldm",), str(record.parent / "preset.yaml"), panel_steps=0))
    vae = tiny_vae()
    vae.register_to_config(scaling_factor=0.18215)  # which kohya's scripts do not go by
    assert attachment.factor(0.5) == 0.5
    prediction = {"noise_scheduler": ddpm(), "noise": step["noise"], "noisy_latents": step["noisy_latents"]}
    prediction |= {"noise_pred": step["model_pred"], "target": step["noise"], "timesteps": step["timesteps"]}
    attachment.note((step["model_pred"], step["noise"]), prediction)
    annotation = Annotation(("a", "b"), step["person_mask"], FaceBoxes([BOXES, BOXES]), {})
    batch = {"images": step["pixel_values"], KEY: annotation}
    weighted = ((step["model_pred"] - step["noise"]) ** 2).mean([1, 2, 3]) * torch.ones(2)  # kohya's loss_weights
    attachment.note(weighted.mean(), {"batch": batch, "latents": step["latents"], "vae": vae, "is_train": True})
    accelerator = SimpleNamespace(is_main_process=True, sync_gradients=False)
    args = SimpleNamespace(output_dir=str(tmp_path), v_parameterization=False)
    found = attachment.loss(weighted.mean(), {"accelerator": accelerator, "args": args})
    check(loss_and_gradient(found, step["model_pred"]), expected)


def test_the_check_on_a_gpu_looks_at_every_loss():
    spec = importlib.util.spec_from_file_location("gpu_steps", Path(__file__).parent / "gpu" / "gpu_steps.py")
    steps = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(steps)
    assert {kind for kind, _ in steps.LOSSES.values()} == set(load_plugins().losses.entries)
