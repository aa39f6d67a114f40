"""OneTrainer, unedited: masks go through its pipeline with the pictures, and its step gives the library form's loss.

What its hooks receive is as in Nerogar/OneTrainer at 23df3832: `modules/modelSetup/mixin/ModelSetupDiffusionMixin.py`
and `ModelSetupFlowMatchingMixin.py` (`_add_noise_discrete`), `modules/modelSetup/BaseStableDiffusionSetup.py` and
`BaseFlux2Setup.py` (`predict`, `calculate_loss`), `modules/trainer/GenericTrainer.py` (their caller) and
`modules/dataLoader/mixin/DataLoaderText2ImageMixin.py` (the pipeline), whose modules are those of Nerogar/mgds at
3a6994a.
MLDM_ONETRAINER names the folder of a checkout, and MLDM_ONETRAINER_PYTHON the interpreter of its environment.
"""

import importlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from make_step import ddpm, flow, tiny_vae
from PIL import Image
from safetensors.torch import load_file
from tiny_families import build
from tiny_people import SCENES, person_pixels
from torch.nn import functional as F
from torchvision.transforms import functional as transforms

from mldm_plugin import DiffusionStep, LossStack
from mldm_plugin.attach import onetrainer
from mldm_plugin.attach.annotation import annotate_frames
from mldm_plugin.attach.attachment import Attachment
from mldm_plugin.attach.flags import Settings
from mldm_plugin.attach.onetrainer_frame import frame_of
from mldm_plugin.errors import CheckError, DataError

STAND_INS = Path(__file__).parent / "scripts" / "onetrainer"
CHECKOUT = Path(os.environ.get("MLDM_ONETRAINER", "checkout-of-onetrainer"))
PYTHON = os.environ.get("MLDM_ONETRAINER_PYTHON", sys.executable)
PRESET = """
combine: {combine}
checks: {{picture: warn}}
losses:
  masked_lpips: {{weight: 0.2, max_timestep: 999, form: spatial, network: vgg, weights: random}}
"""


# Pictures and masks


@pytest.fixture
def pipeline(monkeypatch):
    """Our pipeline module, on the stand-in of mgds."""
    monkeypatch.syspath_prepend(str(STAND_INS))
    yield importlib.import_module("mldm_plugin.attach.onetrainer_pipeline")
    for name in [n for n in sys.modules if n.split(".")[0] == "mgds" or n.endswith("onetrainer_pipeline")]:
        del sys.modules[name]


def module_of(pipeline, kind, change):
    """A module of its that changes each of its `names` alike, called `kind`."""

    def get_item(self, variation, index, requested_name=None):
        draw = random.Random(index)
        found = {name: self._get_previous_item(variation, name, index) for name in self.names}
        state = draw.getstate()
        for name in found:
            draw.setstate(state)
            found[name] = change(found[name], draw)
        return found

    methods = {"get_item": get_item, "get_outputs": lambda self: self.names, "length": lambda self: len(SCENES)}
    made = type(kind, (pipeline.PipelineModule,), methods)()
    made.names = ["image"]
    return made


def loader(pipeline, folder):
    """Its module that reads pictures."""

    def get_item(self, variation, index, requested_name=None):
        with Image.open(folder / f"{SCENES[index].name}.png") as picture:
            return {"image": transforms.to_tensor(picture)}

    methods = {"get_item": get_item, "get_outputs": lambda self: ["image"], "length": lambda self: len(SCENES)}
    made = type("LoadImage", (pipeline.PipelineModule,), methods)()
    made.image_out_name = "image"
    return made


def scale_and_crop(image, draw):
    image = transforms.resize(image, [90, 80], antialias=True)
    return transforms.crop(image, draw.randint(0, 26), draw.randint(0, 16), 64, 64)


def flip(image, draw):
    return transforms.hflip(image) if draw.random() < 0.5 else image


def write_photos(folder):
    folder.mkdir()
    for scene in SCENES:
        Image.fromarray(scene.pixels()).save(folder / f"{scene.name}.png")
        white = (scene.labels() > 0).astype(np.uint8) * 255
        Image.fromarray(white).save(folder / f"{scene.name}-masklabel.png")
    return folder


def chain(pipeline, folder, *more):
    """OneTrainer's modules up to its output, and ours among them."""
    shared = ["image"]  # OneTrainer gives one list to two of its modules
    crop = module_of(pipeline, "ScaleCropImage", scale_and_crop)
    turn = module_of(pipeline, "RandomFlip", flip)
    crop.names = turn.names = shared
    dim = module_of(pipeline, "RandomBrightness", lambda image, draw: image * 0.9)
    cache = SimpleNamespace(split_names=["latent_image"], cache_dir="cache", get_outputs=list)
    output = SimpleNamespace(input_names=["latent_image"], output_names=["latent_image"], get_outputs=list)
    (modules,) = pipeline.carrying([[loader(pipeline, folder)], [crop], [turn, dim, *more], None, [cache, output]])
    for place, module in enumerate(modules):
        module.chain, module.place = modules, place
    return modules, cache, output


def test_masks_follow_scaling_crops_and_flips_through_its_pipeline(pipeline, tmp_path):
    folder = write_photos(tmp_path / "photos")
    modules, cache, output = chain(pipeline, folder)
    assert cache.split_names == output.input_names == output.output_names
    assert cache.split_names == ["latent_image", "mldm_frame", "mldm_picture"]
    assert cache.cache_dir == str(Path("cache", "mldm"))
    placed = next(m for m in modules if "mldm_frame" in m.get_outputs())
    assert placed.length() == len(SCENES)
    masks = onetrainer.MaskLabels()
    turned = 0
    for index, scene in enumerate(SCENES):
        item = placed.get_item(0, index)
        frame = frame_of(str(folder / f"{scene.name}.png"), item["mldm_frame"].tolist())
        picture = item["mldm_picture"].float() / 127.5 - 1
        turned += frame.affine[0] < 0
        annotation = annotate_frames([frame], masks, picture[None] / 0.9 + 1 / 9)
        seen, mask = person_pixels(picture[None]), annotation.person_mask > 0
        assert annotation.on_record["person_mask"] == (True,)
        union = (seen | mask).sum()
        assert not union or (seen & mask).sum() / union > 0.9, scene.name
        assert bool(mask.any()) == bool(scene.people)
    assert 0 < turned < len(SCENES)


def test_a_rotation_is_told_and_not_guessed(pipeline, tmp_path):
    folder = write_photos(tmp_path / "photos")
    rotate = module_of(pipeline, "RandomRotate", lambda image, draw: transforms.rotate(image, 7.0))
    modules, *_ = chain(pipeline, folder, rotate)
    placed = next(m for m in modules if "mldm_frame" in m.get_outputs())
    frame = frame_of(str(folder / "anna.png"), placed.get_item(0, 0)["mldm_frame"].tolist())
    assert "rotation" in frame.lost
    masks = onetrainer.MaskLabels()
    with pytest.raises(DataError, match="rotation by OneTrainer cannot be followed"):
        annotate_frames([frame], masks)


def test_a_module_that_is_not_known_is_refused(pipeline, tmp_path):
    warp = module_of(pipeline, "RandomWarp", lambda image, draw: image)
    with pytest.raises(DataError, match="RandomWarp changes pictures in a way that is not known"):
        chain(pipeline, write_photos(tmp_path / "photos"), warp)


# Steps


class Setup:
    """What OneTrainer's `create_model_setup` makes, as far as it is called here."""

    def __init__(self, sigmas=None):
        self.sigmas, self.computed = sigmas, []

    def _add_noise_discrete(self, latents, noise, timestep, schedule):
        if self.sigmas is None:
            return schedule.add_noise(latents, noise, timestep)
        sigma = self.sigmas[timestep][:, None, None, None]
        return (1 - sigma) * latents + sigma * noise, sigma

    def calculate_loss(self, model, batch, data, config):
        losses = F.mse_loss(data["predicted"].float(), data["target"].float(), reduction="none").mean([1, 2, 3])
        return (losses * batch["loss_weight"]).mean()


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


def recorded(photos, vae):
    """Two pictures of OneTrainer's batch with what is needed of the step before noise is added."""
    torch.manual_seed(3)
    numbers, pictures, paths = [], [], []
    for name, x in (("anna", 20), ("dora", 50)):
        path = photos / f"{name}.png"
        with Image.open(path) as picture:
            size, cut = picture.size, picture.crop((x, 16, x + 64, 80)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pictures.append(torch.from_numpy(np.array(cut)).permute(2, 0, 1))
        numbers.append([-1.0, 0, x + 64, 0, 1, 16, *size, 64, 64])
        paths.append(str(path))
    batch = {"image_path": paths, "mldm_frame": torch.tensor(numbers), "mldm_picture": torch.stack(pictures)}
    batch["loss_weight"] = torch.tensor([1.0, 0.5])
    with torch.no_grad():
        latents = vae.encode(batch["mldm_picture"].float() / 127.5 - 1).latent_dist.mode() * vae.config.scaling_factor
    return batch, latents, torch.randn(latents.shape)


def model_of(vae, scheduler):
    return SimpleNamespace(vae=vae, noise_scheduler=scheduler, train_progress=SimpleNamespace(global_step=0))


def attached(tmp_path, setup, combine="convex"):
    preset = tmp_path / "preset.yaml"
    preset.write_text(PRESET.format(combine=combine), encoding="utf-8")
    attachment = Attachment(Settings(("mldm",), str(preset), panel_steps=0))
    onetrainer.Steps(setup, attachment)
    return preset, attachment


@pytest.mark.parametrize("kind", ["epsilon", "flow", "turned"])
def test_a_recorded_step_gives_the_loss_of_the_library_form(photos, tmp_path, kind):
    vae, scheduler = tiny_vae(), ddpm() if kind == "epsilon" else flow()
    batch, latents, noise = recorded(photos, vae)
    setup = Setup(None if kind == "epsilon" else torch.arange(1, 1001) / 1000)
    preset, _ = attached(tmp_path, setup)
    timestep = torch.tensor([99, 349])
    noised = setup._add_noise_discrete(latents, noise, timestep, scheduler)
    noisy, sigma = noised if isinstance(noised, tuple) else (noised, None)
    target = {"epsilon": noise, "flow": noise - latents, "turned": latents - noise}[kind]
    predicted = (target + 0.1 * torch.randn_like(target)).requires_grad_()
    config = SimpleNamespace(gradient_accumulation_steps=1, workspace_dir=str(tmp_path))
    data = {"loss_type": "target", "timestep": timestep, "predicted": predicted, "target": target}
    loss = setup.calculate_loss(model_of(vae, scheduler), batch, data, config)
    (gradient,) = torch.autograd.grad(loss, predicted)

    sign = -1 if kind == "turned" else 1
    own = predicted.detach().clone().requires_grad_()
    masks = []
    for scene, x in ((SCENES[0], 20), (SCENES[2], 50)):
        masks.append(torch.from_numpy((scene.labels() > 0).astype(np.uint8))[None, 16:80, x : x + 64].flip(-1))
    step = DiffusionStep(
        latents=latents,
        noise=noise,
        noisy_latents=noisy,
        timesteps=timestep,
        sigmas=None if sigma is None else sigma.flatten(),
        model_pred=sign * own,
        target=sign * target,
        base_weights=batch["loss_weight"],
        pixel_values=batch["mldm_picture"].float() / 127.5 - 1,
        person_mask=torch.stack(masks),
    )
    assert all(m.any() for m in masks)
    expected = LossStack.from_preset(preset, vae=vae, noise_scheduler=scheduler)(step).loss
    (right,) = torch.autograd.grad(expected, own)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.item() != pytest.approx(Setup().calculate_loss(None, batch, data, config).item(), rel=1e-3)
    assert (gradient - right).norm() <= 1e-6 * right.norm()


def test_outputs_that_are_unpatched_go_back_to_the_patches_that_noise_was_added_to():
    latents, tensor = torch.zeros(2, 12, 4, 6), torch.randn(2, 3, 8, 12)
    packed = onetrainer._packed(tensor, latents)
    assert packed.shape == latents.shape
    assert torch.equal(onetrainer._unpacked(packed, tensor), tensor)
    assert onetrainer._packed(latents, latents) is latents


def test_its_masked_loss_needs_additive_and_gets_it(photos, tmp_path):
    vae, scheduler = tiny_vae(), ddpm()
    batch, latents, noise = recorded(photos, vae)
    config = SimpleNamespace(gradient_accumulation_steps=1, workspace_dir=str(tmp_path))
    for combine in ("convex", "additive"):
        setup = Setup()
        setup.calculate_loss = lambda model, batch, data, config: F.huber_loss(data["predicted"], data["target"])
        attached(tmp_path, setup, combine)
        timestep = torch.tensor([99, 349])
        setup._add_noise_discrete(latents, noise, timestep, scheduler)
        predicted = (noise + 2 * torch.randn_like(noise)).requires_grad_()
        data = {"loss_type": "target", "timestep": timestep, "predicted": predicted, "target": noise}
        model = model_of(vae, scheduler)
        if combine == "convex":
            with pytest.raises(CheckError, match="combine=additive takes any loss"):
                setup.calculate_loss(model, batch, data, config)
        else:
            assert setup.calculate_loss(model, batch, data, config) > F.huber_loss(predicted, noise)


def test_validation_is_its_own_and_a_step_without_noise_is_refused(photos, tmp_path):
    batch, _, noise = recorded(photos, tiny_vae())
    setup = Setup()
    attached(tmp_path, setup)
    data = {"predicted": noise.clone().requires_grad_(), "target": noise + 1}
    with torch.no_grad():
        assert setup.calculate_loss(None, batch, data, None) == pytest.approx(0.75)
    with pytest.raises(CheckError, match="added no noise before"):
        setup.calculate_loss(None, batch, data, None)


# The real one


# OneTrainer seeds each step, not the weights that a LoRA begins with.
SEEDED = """
import pathlib, runpy, sys, torch
torch.manual_seed(1)
attached, *sys.argv = sys.argv[1:]
if attached == "attached":
    sys.argv.insert(0, "mldm_plugin")
    runpy.run_module("mldm_plugin", run_name="__main__", alter_sys=True)
else:
    sys.path.insert(0, str(pathlib.Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def prepare_real(folder):
    """Pictures with OneTrainer's own masks, a small random model, and what a job's file says of both."""
    photos, concept = write_photos(folder / "photos"), {"enable_crop_jitter": True, "enable_random_flip": True}
    for scene in SCENES:
        (photos / f"{scene.name}.txt").write_text(scene.text, encoding="utf-8")
    build("sd", folder / "sd")
    resave = "import sys; from transformers import CLIPTextModel as M, CLIPTextConfig as C"
    resave += "; p = sys.argv[1]; M(C.from_pretrained(p)).save_pretrained(p)"  # names of weights depend on the version
    subprocess.run([PYTHON, "-c", resave, str(folder / "sd/text_encoder")], check=True, capture_output=True)
    listed = [{"name": "p", "path": str(photos), "image": concept, "image_variations": 2}]
    (folder / "concepts.json").write_text(json.dumps(listed), encoding="utf-8")
    (folder / "samples.json").write_text("[]", encoding="utf-8")
    (folder / "preset.yaml").write_text(PRESET.format(combine="convex"), encoding="utf-8")
    single = {"weight_dtype": "FLOAT_32"}
    return {
        "base_model_name": str(folder / "sd"),
        "model_type": "STABLE_DIFFUSION_15",
        "training_method": "LORA",
        "resolution": "64",
        "batch_size": 2,
        "epochs": 2,
        "lora_rank": 2,
        "train_device": "cpu",
        "temp_device": "cpu",
        "train_dtype": "FLOAT_32",
        "unet": single,
        "vae": single,
        "text_encoder": {**single, "train": False},
        "output_model_format": "KOHYA_LORA",
        "concept_file_name": str(folder / "concepts.json"),
        "sample_definition_file_name": str(folder / "samples.json"),
        "tensorboard": False,
        "gradient_checkpointing": "OFF",
    }


def train_real(folder, name, config, *ours):
    """One run of its script; its LoRA, its standard error and the folder of its output."""
    out = folder / name
    lora = out / "lora.safetensors"
    own = {"workspace_dir": out, "cache_dir": folder / f"{name}-cache", "output_model_destination": lora}
    out.mkdir()
    (out / "config.json").write_text(json.dumps({**config, **{k: str(v) for k, v in own.items()}}), encoding="utf-8")
    where = ["--preset-path", out / "config.json", "--config-path", out / "config.json"]
    command = ["attached" if ours else "alone", CHECKOUT / "scripts/train.py", *where, *ours]
    done = subprocess.run(
        [PYTHON, "-c", SEEDED, *map(str, command)],
        cwd=CHECKOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(lora), done.stderr, out


@pytest.mark.timeout(3600)
@pytest.mark.skipif(not CHECKOUT.is_dir(), reason="MLDM_ONETRAINER names no folder")
def test_the_real_trainer_trains_with_our_losses_and_with_weights_zero_as_without_us(tmp_path):
    config, preset = prepare_real(tmp_path), ["--preset", tmp_path / "preset.yaml"]
    plain, _, _ = train_real(tmp_path, "plain", config)
    zero, _, _ = train_real(tmp_path, "zero", config, *preset, "--set", "losses.masked_lpips.weight=0")
    ours, told, out = train_real(tmp_path, "ours", config, *preset)
    assert plain.keys() == zero.keys() == ours.keys()
    assert all(torch.equal(plain[name], zero[name]) for name in plain)
    assert any(not torch.equal(plain[name], ours[name]) for name in plain)
    assert "masks follow the pictures" in told
    assert "reaches the network" in told
    lines = [json.loads(x) for x in (out / "mldm/metrics.jsonl").read_text().splitlines()]
    assert len(lines) >= 4  # a bucket's last picture is left out where its batch would not be full
    assert sum(line["masked_lpips/gated"] for line in lines) > len(lines)
