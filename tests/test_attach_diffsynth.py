"""DiffSynth-Studio, unedited: masks lie where its pictures were cut, and its step gives the library form's loss.

What is called here is called as in modelscope/DiffSynth-Studio at fed7b18f: `diffsynth/diffusion/loss.py`
(`FlowMatchSFTLoss`), `diffsynth/diffusion/flow_match.py` and `ddim_scheduler.py`, `diffsynth/core/data/operators.py`
(`LoadImage`, `ImageCropAndResize`) and `diffsynth/pipelines/flux2_image.py` (tokens).
MLDM_DIFFSYNTH names the folder of a checkout, MLDM_DIFFSYNTH_PYTHON the interpreter of its environment.
"""

import json
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from make_step import ddpm, flow, tiny_vae
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_families import build, build_vae
from tiny_flows import build_flux2_klein
from tiny_people import SCENES, person_pixels, write_dreambooth
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import functional as transforms

from mldm_plugin import DiffusionStep, LossStack
from mldm_plugin.attach import diffsynth
from mldm_plugin.attach.annotation import KEY
from mldm_plugin.attach.attachment import Attachment
from mldm_plugin.attach.flags import Settings
from mldm_plugin.errors import CheckError, DataError, MldmError

CHECKOUT = Path(os.environ.get("MLDM_DIFFSYNTH", "checkout-of-diffsynth-studio"))
PYTHON = os.environ.get("MLDM_DIFFSYNTH_PYTHON", sys.executable)
PRESET = """
combine: convex
checks: {picture: warn}
losses:
  masked_lpips: {weight: 0.2, max_timestep: 999, form: spatial, network: vgg, weights: random}
"""


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys.modules["__main__"], "args", SimpleNamespace(output_path=str(tmp_path / "out")), raising=False
    )
    return write_dreambooth(tmp_path / "photos", tmp_path / "photos" / "masks")


def attach(tmp_path, photos, text=PRESET):
    preset = tmp_path / "preset.yaml"
    preset.write_text(text, encoding="utf-8")
    return preset, Attachment(Settings(("mldm",), str(preset), mask_dir=str(photos / "masks"), panel_steps=0))


def load(path, height=64, width=64):
    """Its operators, and the way from a worker process."""
    image = Image.open(path).convert("RGB")
    scale = max(width / image.width, height / image.height)
    size = (round(image.height * scale), round(image.width * scale))
    image = transforms.resize(image, size, interpolation=transforms.InterpolationMode.BILINEAR)
    return pickle.loads(pickle.dumps(transforms.center_crop(image, (height, width))))


class Flow:
    """Its flow's scheduler."""

    timesteps = torch.tensor([100.0])

    def add_noise(self, latents, noise, timestep):
        return 0.9 * latents + 0.1 * noise

    def training_target(self, sample, noise, timestep):
        return noise - sample

    def training_weight(self, timestep):
        return torch.tensor(0.5)


class Diffusion(Flow):
    """That of Stable Diffusion."""

    timesteps, prediction_type, alphas_cumprod = torch.tensor([100.0]), "epsilon", ddpm().alphas_cumprod.tolist()

    def add_noise(self, latents, noise, timestep):
        return ddpm().add_noise(latents, noise, timestep.long())

    def training_target(self, sample, noise, timestep):
        return noise


class Decoder(nn.Module):
    """An autoencoder that knows its scale; or Stable Diffusion's, whose pipeline divides by it."""

    def __init__(self, *, is_scaled_outside=False):
        super().__init__()
        self.vae, self.inside = tiny_vae(), 1 if is_scaled_outside else 0.5
        if is_scaled_outside:
            self.scaling_factor = 0.5

    def decode(self, latents):
        return self.vae.decode(latents / self.inside).sample


def loss_of(pipe, **inputs):
    """Its one loss function."""
    timestep = pipe.scheduler.timesteps
    noise = torch.randn_like(inputs["input_latents"])
    inputs["latents"] = pipe.scheduler.add_noise(inputs["input_latents"], noise, timestep)
    target = pipe.scheduler.training_target(inputs["input_latents"], noise, timestep)
    pred = pipe.model_fn(**inputs, timestep=timestep)
    return F.mse_loss(pred.float(), target.float()) * pipe.scheduler.training_weight(timestep)


def prepared(photos, scheduler, *, tokens=False, scene=SCENES[0]):
    picture, vae = load(photos / f"{scene.name}.png"), tiny_vae()
    shown = transforms.to_tensor(picture)[None] * 2 - 1
    with torch.no_grad():
        latents = vae.encode(shown).latent_dist.mode() * 0.5
    network = torch.randn(latents.shape, generator=torch.Generator().manual_seed(8)).requires_grad_()
    pipe = SimpleNamespace(
        scheduler=scheduler,
        vae=Decoder(is_scaled_outside=isinstance(scheduler, Diffusion)),
        model_fn=lambda latents, **_: flat(network) + 0 * latents,
    )

    def flat(x):
        return x.flatten(2).transpose(1, 2) if tokens else x

    return (
        pipe,
        {"input_latents": flat(latents), "input_image": picture, "height": 64, "width": 64},
        latents,
        network,
        shown,
    )


@pytest.mark.parametrize("kind", ["flow", "tokens", "epsilon"])
def test_a_recorded_step_gives_the_loss_of_the_library_form(photos, tmp_path, kind):
    preset, attachment = attach(tmp_path, photos)
    scheduler = Diffusion() if kind == "epsilon" else Flow()
    pipe, inputs, latents, network, shown = prepared(photos, scheduler, tokens=kind == "tokens")
    torch.manual_seed(6)
    loss = diffsynth.mixed(loss_of, attachment)(pipe, **inputs)
    (gradient,) = torch.autograd.grad(loss, network)

    torch.manual_seed(6)
    noise = torch.randn_like(inputs["input_latents"])
    if kind == "tokens":
        noise = noise.transpose(1, 2).reshape(latents.shape)
    own = network.detach().clone().requires_grad_()
    mask = diffsynth.annotated(inputs["input_image"], attachment)[KEY].person_mask
    assert (mask > 0).any()
    assert ((mask > 0) & person_pixels(shown)).sum() / ((mask > 0) | person_pixels(shown)).sum() > 0.9
    step = DiffusionStep(
        latents=latents,
        noise=noise,
        noisy_latents=scheduler.add_noise(latents, noise, scheduler.timesteps),
        timesteps=scheduler.timesteps.long(),
        sigmas=None if kind == "epsilon" else torch.tensor([0.1]),
        model_pred=own,
        target=scheduler.training_target(latents, noise, None),
        base_weights=torch.tensor([0.5]),
        pixel_values=shown,
        person_mask=mask,
    )
    native = ddpm() if kind == "epsilon" else flow()
    expected = LossStack.from_preset(preset, vae=tiny_vae(), noise_scheduler=native)(step).loss
    (right,) = torch.autograd.grad(expected, own)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (gradient - right).norm() <= 1e-5 * right.norm()
    torch.manual_seed(6)
    assert loss.item() != pytest.approx(loss_of(pipe, **inputs).item(), rel=1e-3)
    assert "add_noise" not in vars(scheduler)
    attachment.finish()
    assert (tmp_path / "out/mldm/metrics.jsonl").is_file()


def test_weights_zero_leave_the_loss_as_it_is(photos, tmp_path):
    zero = PRESET.replace("weight: 0.2", "weight: 0")
    pipe, inputs, _, network, _ = prepared(photos, Flow())
    pipe.vae = None  # not needed
    losses = []
    for function in (loss_of, diffsynth.mixed(loss_of, attach(tmp_path, photos, zero)[1])):
        torch.manual_seed(1)
        losses.append(function(pipe, **inputs))
    assert torch.equal(*losses)
    assert torch.equal(*(torch.autograd.grad(x, network)[0] for x in losses))


def test_a_cache_without_pictures_more_than_a_picture_and_no_decoder_are_told(photos, tmp_path):
    _, attachment = attach(tmp_path, photos)
    pipe, inputs, *_ = prepared(photos, Flow())
    function = diffsynth.mixed(loss_of, attachment)
    with pytest.raises(DataError, match="came without its picture"):
        function(pipe, **{**inputs, "input_image": None})
    with pytest.raises(DataError, match="how this picture was cropped is not known"):
        function(pipe, **{**inputs, "input_image": Image.new("RGB", (64, 64))})
    with pytest.raises(MldmError, match="no decoder"):
        function(SimpleNamespace(**{**vars(pipe), "vae": None}), **inputs)
    pipe.model_fn = lambda **_: (torch.zeros(1), torch.zeros(1))
    with pytest.raises(CheckError, match="more than one tensor"):
        function(pipe, **inputs)
    assert "add_noise" not in vars(pipe.scheduler)


def test_the_loss_is_replaced_wherever_a_script_may_import_it_from(photos, tmp_path, monkeypatch):
    top, diffusion, loss = (ModuleType(n) for n in ("diffsynth", "diffsynth.diffusion", "diffsynth.diffusion.loss"))
    top.diffusion, diffusion.loss, diffusion.FlowMatchSFTLoss, loss.FlowMatchSFTLoss = diffusion, loss, loss_of, loss_of
    for module in (top, diffusion, loss):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    told = []
    monkeypatch.setattr(diffsynth, "stop_unseen", lambda attachment, door, remedy: told.append(remedy))
    _, attachment = attach(tmp_path, photos)
    diffsynth.install(attachment, tmp_path / "train.py")
    assert diffusion.FlowMatchSFTLoss is loss.FlowMatchSFTLoss is not loss_of
    assert "--task sft" in told[0]
    pipe, inputs, *_ = prepared(photos, Flow())
    loss.FlowMatchSFTLoss(pipe, **inputs)
    assert attachment.steps == 1
    monkeypatch.setitem(sys.modules, "diffsynth.diffusion", None)
    with pytest.raises(MldmError, match="install DiffSynth-Studio"):
        diffsynth.install(attachment, tmp_path / "train.py")


# The real one

# Of each: its networks, and what it calls the one that is trained.
REAL = {
    "stable_diffusion": (
        {
            "text_encoder/model": "stable_diffusion_text_encoder",
            "unet/diffusion_pytorch_model": "stable_diffusion_unet",
            "vae/diffusion_pytorch_model": "stable_diffusion_vae",
        },
        "unet",
    ),
    "flux2": (
        {
            "text_encoder/model": "z_image_text_encoder",
            "transformer/diffusion_pytorch_model": "flux2_dit",
            "vae/diffusion_pytorch_model": "flux2_vae",
        },
        "dit",
    ),
}


def small(kind, folder):
    """A small random pipeline, whose text encoder has the names of the published file; what its networks are."""
    if kind == "flux2":
        build_flux2_klein(folder, build_vae("flux2", latent_channels=32), 0)  # its `encode` reads that many
    else:
        encoder = build("sd", folder) / "text_encoder" / "model.safetensors"
        weights = load_file(encoder)
        save_file({f"text_model.{name.removeprefix('text_model.')}": x for name, x in weights.items()}, encoder)
    return {str(folder / f"{path}.safetensors"): name for path, name in REAL[kind][0].items()}


def train_real(kind, folder, name, networks, *ours):
    """One run of its script; its LoRA, its standard error, our lines."""
    trained, out = REAL[kind][1], folder / name
    script = [str(CHECKOUT / f"examples/{kind}/model_training/train.py"), "--task", "sft"]
    script += ["--dataset_base_path", str(folder / "photos"), "--height", "64", "--width", "64"]
    script += ["--dataset_metadata_path", str(folder / "photos/metadata.json"), "--data_file_keys", "image"]
    script += ["--model_paths", json.dumps(list(networks)), "--tokenizer_path", str(folder / "small/tokenizer")]
    script += ["--lora_base_model", trained, "--lora_target_modules", "to_q,to_k,to_v,to_out.0", "--lora_rank", "2"]
    script += ["--learning_rate", "0.01", "--remove_prefix_in_ckpt", f"pipe.{trained}.", "--output_path", str(out)]
    root = Path(__file__).parents[1]
    here = os.pathsep.join(map(str, (root / "tests/scripts/diffsynth", CHECKOUT, root)))
    done = subprocess.run(
        [PYTHON, *(["-m", "mldm_plugin"] if ours else []), *script, *map(str, ours)],
        env={**os.environ, "MLDM_SMALL": json.dumps(networks), "OMP_NUM_THREADS": "1", "PYTHONPATH": here},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = []
    if ours:
        lines = [json.loads(x) for x in (out / "mldm" / "metrics.jsonl").read_text().splitlines()]
    return load_file(out / "epoch-0.safetensors"), done.stderr, lines


@pytest.mark.timeout(3600)
@pytest.mark.skipif(not CHECKOUT.is_dir(), reason="MLDM_DIFFSYNTH names no folder")
@pytest.mark.parametrize("kind", list(REAL))
def test_the_real_one_trains_with_our_losses_and_with_weights_zero_as_without_us(tmp_path, kind):
    write_dreambooth(tmp_path / "photos", tmp_path / "masks")
    rows = [{"image": f"{scene.name}.png", "prompt": scene.text} for scene in SCENES]
    (tmp_path / "photos" / "metadata.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "preset.yaml").write_text(PRESET.replace("checks: {picture: warn}\n", ""), encoding="utf-8")
    run = partial(train_real, kind, tmp_path)
    networks = small(kind, tmp_path / "small")
    flags = ["--loss-plugin", "mldm", "--preset", tmp_path / "preset.yaml", "--mldm-mask-dir", tmp_path / "masks"]
    plain, _, _ = run("plain", networks)
    zero, _, _ = run("zero", networks, *flags, "--set", "losses.masked_lpips.weight=0")
    ours, told, lines = run("ours", networks, *flags)
    assert plain.keys() == zero.keys() == ours.keys()
    assert all(torch.equal(plain[name], zero[name]) for name in plain)
    assert any(not torch.equal(plain[name], ours[name]) for name in plain)
    assert "reaches the network" in told
    assert "masks follow the pictures" in told
    error = float(told.split("mean absolute error ")[1].split()[0])
    assert error < 0.2  # the means of blocks alone are up to 0.16 away; decoded at a wrong scale, 0.5
    assert [line["step"] for line in lines] == list(range(1, len(SCENES) + 1))
    # One picture has nobody in it, and a flow at more than 0.94 of noise is past the preset's timestep.
    assert sum(line["masked_lpips/gated"] for line in lines) > len(lines) // 2
