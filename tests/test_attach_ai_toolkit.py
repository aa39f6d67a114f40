"""ai-toolkit's trainer with our losses: masks lie where its items say, and its step gives the library form's loss.

What it hands over is as in ostris/ai-toolkit at 27a03a91: `extensions_built_in/sd_trainer/SDTrainer.py`
(`calculate_loss` and its caller), `jobs/process/BaseSDTrainProcess.py` (`process_general_training_batch`),
`toolkit/data_transfer_object/data_loader.py` (batch and items), `toolkit/dataloader_mixins.py`
(`load_and_process_image`: flip, scale, crop) and `toolkit/extension.py`.
MLDM_AI_TOOLKIT names the folder of a checkout, MLDM_AI_TOOLKIT_PYTHON the interpreter of its environment.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from make_step import ddpm, flow, tiny_vae
from PIL import Image
from safetensors.torch import load_file
from tiny_families import build
from tiny_people import SCENES, person_pixels, write_dreambooth
from torch.nn import functional as F

from mldm_plugin import DiffusionStep, LossStack
from mldm_plugin.attach.ai_toolkit import AI_TOOLKIT_EXTENSIONS, MaskPaths, MixedLoss, frame_of_item, settings_of
from mldm_plugin.attach.annotation import annotate_frames
from mldm_plugin.errors import DataError, MldmError
from mldm_plugin.preset import load_preset

CHECKOUT = Path(os.environ.get("MLDM_AI_TOOLKIT", "checkout-of-ai-toolkit"))
PYTHON = os.environ.get("MLDM_AI_TOOLKIT_PYTHON", sys.executable)
PRESET = """
combine: convex
checks: {picture: warn}
losses:
  masked_lpips: {weight: 0.2, max_timestep: 999, form: spatial, network: vgg, weights: random}
"""


class Trainer:
    """ai-toolkit's trainer, as far as it is called here."""

    step_num, is_grad_accumulation_step = 0, False
    accelerator = SimpleNamespace(is_main_process=True)

    def __init__(self, process_id, job, config, **kwargs):
        self.save_root, self.sd = config["save_root"], config["sd"]

    def run(self):
        self.ran = True

    def calculate_loss(self, noise_pred, noise, noisy_latents, timesteps, batch, mask_multiplier=1.0, **kwargs):
        target = noise - batch.latents if self.sd.is_flow_matching else noise
        losses = F.mse_loss(noise_pred.float(), target.float(), reduction="none").mean([1, 2, 3])
        return (losses * torch.tensor(batch.loss_multiplier_list)).mean()


class Mixed(MixedLoss, Trainer):
    pass


def items(folder):
    """The pictures of tiny_people, each flipped, scaled and cropped as an item of ai-toolkit says."""
    folder.mkdir()
    made = []
    for index, scene in enumerate(SCENES):
        path, mask = folder / f"{scene.name}.png", folder / f"{scene.name}_mask.png"
        Image.fromarray(scene.pixels()).save(path)
        Image.fromarray((scene.labels() > 0).astype(np.uint8) * 255).save(mask)
        item = SimpleNamespace(
            path=str(path),
            mask_path=None if scene.name == "nobody" else str(mask),
            use_alpha_as_mask=False,
            dataset_config=SimpleNamespace(buckets=True, invert_mask=False),
            flip_x=index % 2 == 1,
            flip_y=index == 3,
            scale_to_width=round(scene.size[0] * 0.9),
            scale_to_height=round(scene.size[1] * 0.9),
            crop_x=5,
            crop_y=7,
            crop_width=64,
            crop_height=64,
            has_augmentations=False,
        )
        made.append(item)
    return made


def tensor_of(item):
    """The picture, by Pillow in ai-toolkit's order, (3, H, W) in [-1, 1]."""
    with Image.open(item.path) as picture:
        shown = picture.convert("RGB")
    if item.flip_x:
        shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if item.flip_y:
        shown = shown.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    shown = shown.resize((item.scale_to_width, item.scale_to_height), Image.Resampling.BICUBIC)
    box = (item.crop_x, item.crop_y, item.crop_x + item.crop_width, item.crop_y + item.crop_height)
    return torch.from_numpy(np.array(shown.crop(box))).permute(2, 0, 1).float() / 127.5 - 1


def test_masks_lie_where_the_items_say(tmp_path):
    made = items(tmp_path / "photos")
    pictures = torch.stack([tensor_of(item) for item in made])
    masks = MaskPaths(made)
    annotation = annotate_frames([frame_of_item(i) for i in made], masks, pictures)
    seen, mask = person_pixels(pictures), annotation.person_mask > 0
    assert annotation.on_record == {"person_mask": tuple(scene.name != "nobody" for scene in SCENES)}
    for row, scene in enumerate(SCENES):
        union = (seen[row] | mask[row]).sum()
        assert not union or (seen[row] & mask[row]).sum() / union > 0.9, scene.name
    assert len(annotation.placements) == sum(bool(scene.people) for scene in SCENES)


def test_what_the_fields_do_not_say_is_refused(tmp_path):
    first, second, *_ = items(tmp_path / "photos")
    first.dataset_config.buckets = False
    with pytest.raises(DataError, match="set buckets: true"):
        frame_of_item(first)
    second.has_augmentations = True
    masks = MaskPaths([second])
    with pytest.raises(DataError, match="augmentation by ai-toolkit cannot be followed"):
        annotate_frames([frame_of_item(second)], masks)
    second.use_alpha_as_mask = True
    with pytest.raises(DataError, match="mask is alpha, or inverted"):
        masks({}, None, second.path)


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_recorded_step_gives_the_loss_of_the_library_form(tmp_path, kind, cached):
    torch.manual_seed(5)
    vae, scheduler = tiny_vae(), ddpm() if kind == "epsilon" else flow()
    preset = tmp_path / "preset.yaml"
    preset.write_text(PRESET, encoding="utf-8")
    made = items(tmp_path / "photos")[0:3:2]
    pictures = torch.stack([tensor_of(item) for item in made])
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mode() * vae.config.scaling_factor
    noise, timesteps = torch.randn_like(latents), torch.tensor([100, 350])
    if kind == "flow":
        sigma = (timesteps / 1000)[:, None, None, None]
        noisy, target = (1 - sigma) * latents + sigma * noise, noise - latents
    else:
        noisy, target = scheduler.add_noise(latents, noise, timesteps), noise
    sd = SimpleNamespace(vae=vae, noise_scheduler=scheduler, is_flow_matching=kind == "flow")
    config = {"mldm": {"preset": str(preset), "panel_steps": 0}, "save_root": str(tmp_path / "out"), "sd": sd}
    trainer = Mixed(0, None, config)
    batch = SimpleNamespace(file_items=made, tensor=None if cached else pictures, latents=latents)
    batch.loss_multiplier_list = [1.0, 0.5]
    pred = (target + 0.1 * torch.randn_like(target)).requires_grad_()
    loss = trainer.calculate_loss(
        noise_pred=pred, noise=noise, noisy_latents=noisy, timesteps=timesteps, batch=batch, mask_multiplier=1.0
    )
    (gradient,) = torch.autograd.grad(loss, pred)

    masks = MaskPaths(made)
    own = pred.detach().clone().requires_grad_()
    step = DiffusionStep(
        latents=latents,
        noise=noise,
        noisy_latents=noisy,
        timesteps=timesteps,
        model_pred=own,
        target=target,
        base_weights=torch.tensor(batch.loss_multiplier_list),
        pixel_values=None if cached else pictures,
        person_mask=annotate_frames([frame_of_item(i) for i in made], masks).person_mask,
    )
    expected = LossStack.from_preset(preset, vae=vae, noise_scheduler=scheduler)(step).loss
    (right,) = torch.autograd.grad(expected, own)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (gradient - right).norm() <= 1e-6 * right.norm()
    plain = Trainer.calculate_loss(trainer, pred, noise, noisy, timesteps, batch).item()
    assert loss.item() != pytest.approx(plain, rel=1e-3)
    trainer.run()
    assert trainer.ran
    assert (tmp_path / "out/mldm/metrics.jsonl").is_file()


def test_the_job_says_what_to_train_with():
    assert settings_of({"preset": "lora-flux", "set": ["combine=additive"]}).set == ("combine=additive",)
    alone = settings_of({"preset": "lora-flux", "set": "combine=additive", "loss_plugin": "own.py"})
    assert (alone.set, alone.loss_plugin) == (("combine=additive",), ("own.py",))
    with pytest.raises(MldmError, match="write mldm"):
        settings_of(None)
    with pytest.raises(MldmError, match="mask_dirs"):
        settings_of({"preset": "lora-flux", "mask_dirs": "masks"})


def test_the_recipes_job_is_one_that_is_taken():
    text = (Path(__file__).parents[1] / "docs/recipes/ai_toolkit.md").read_text(encoding="utf-8")
    (process,) = yaml.safe_load(text.split("```yaml")[1].split("```")[0])["config"]["process"]
    assert process["type"] == AI_TOOLKIT_EXTENSIONS[0].uid
    settings = settings_of(process["mldm"])
    assert settings.mask_dir is not None
    assert load_preset(settings.preset).combine == "convex"  # which ai-toolkit's own masked loss would not go with
    assert not any("mask_path" in data for data in process["datasets"])


def test_the_extension_is_what_ai_toolkit_looks_for():
    (extension,) = AI_TOOLKIT_EXTENSIONS
    assert extension.uid == "mldm_trainer"
    assert extension.name


# The real one


@pytest.fixture
def workshop(tmp_path):
    """The checkout with our extension in it; nothing is written into the checkout itself. Pictures and masks beside."""
    root = tmp_path / "ai-toolkit"
    (root / "extensions" / "mldm").mkdir(parents=True)
    for entry in CHECKOUT.iterdir():
        if entry.name != "extensions":
            (root / entry.name).symlink_to(entry)
    text = "from mldm_plugin.attach.ai_toolkit import AI_TOOLKIT_EXTENSIONS"
    (root / "extensions" / "mldm" / "__init__.py").write_text(text, encoding="utf-8")
    photos = write_dreambooth(tmp_path / "photos", tmp_path / "masks")
    (tmp_path / "white").mkdir()
    for scene in SCENES:
        (photos / f"{scene.name}.txt").write_text(scene.text, encoding="utf-8")
        white = (scene.labels() > 0).astype(np.uint8) * 255
        Image.fromarray(white).save(tmp_path / "white" / f"{scene.name}.png")
    (tmp_path / "preset.yaml").write_text(PRESET.replace("checks: {picture: warn}\n", ""), encoding="utf-8")
    return root


def pipeline(family, folder):
    """A small random one, with text encoders that the environment's transformers has written: names depend on it."""
    build(family, folder)
    code = "import sys, transformers as t; k, p = sys.argv[1:]; m = getattr(t, k); "
    code += "m(m.config_class.from_pretrained(p)).save_pretrained(p)"
    for name, kind in {"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"}.items():
        if (folder / name).is_dir():
            subprocess.run([PYTHON, "-c", code, kind, str(folder / name)], check=True, capture_output=True)
    return {"name_or_path": str(folder), "is_flux": family == "flux"}


def train(root, name, model, mldm=None, **data):
    """One job of ai-toolkit's; its LoRA, its standard error, its lines and the folder of its output."""
    folder = root.parent
    process = {
        "type": "sd_trainer" if mldm is None else "mldm_trainer",
        "training_folder": str(folder / "out"),
        "device": "cpu",
        "network": {"type": "lora", "linear": 2, "linear_alpha": 2},
        "save": {"dtype": "float32", "save_every": 100},
        "datasets": [{"folder_path": str(folder / "photos"), "resolution": [64], "flip_x": True, **data}],
        "train": {"batch_size": 2, "steps": 4, "optimizer": "adamw", "lr": 0.01, "dtype": "float32"},
        "model": model,
    }
    scheduler = "flowmatch" if model["is_flux"] else "ddpm"
    process["train"].update(noise_scheduler=scheduler, train_text_encoder=False, disable_sampling=True)
    if mldm is not None:
        process["mldm"] = {"preset": str(folder / "preset.yaml"), **mldm}
    job = {"job": "extension", "config": {"name": name, "process": [process]}}
    (folder / f"{name}.json").write_text(json.dumps(job), encoding="utf-8")
    done = subprocess.run(
        [PYTHON, "run.py", str(folder / f"{name}.json")],
        cwd=root,
        env={**os.environ, "SEED": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    out, lines = folder / "out" / name, []
    if (out / "mldm").is_dir():
        lines = [json.loads(x) for x in (out / "mldm" / "metrics.jsonl").read_text().splitlines()]
    return load_file(out / f"{name}.safetensors"), done.stderr, lines


@pytest.mark.timeout(3600)
@pytest.mark.skipif(not CHECKOUT.is_dir(), reason="MLDM_AI_TOOLKIT names no folder")
@pytest.mark.parametrize("family", ["sd", "flux"])
def test_the_real_one_trains_with_our_losses_and_with_weights_zero_as_without_us(workshop, tmp_path, family):
    model, masks = pipeline(family, tmp_path / family), {"mask_dir": str(tmp_path / "masks")}
    plain, _, _ = train(workshop, "plain", model)
    zero, _, _ = train(workshop, "zero", model, {**masks, "set": ["losses.masked_lpips.weight=0"]})
    ours, told, lines = train(workshop, "ours", model, masks)
    assert plain.keys() == zero.keys() == ours.keys()
    assert all(torch.equal(plain[name], zero[name]) for name in plain)
    assert any(not torch.equal(plain[name], ours[name]) for name in plain)
    assert "reaches the network" in told
    assert "masks follow the pictures" in told
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert sum(line["masked_lpips/gated"] for line in lines) > len(lines)


@pytest.mark.timeout(3600)
@pytest.mark.skipif(not CHECKOUT.is_dir(), reason="MLDM_AI_TOOLKIT names no folder")
def test_the_real_ones_own_masks_random_crops_and_cached_latents(workshop, tmp_path):
    model, white = pipeline("sd", tmp_path / "sd"), str(tmp_path / "white")
    _, told, lines = train(
        workshop, "white", model, {"set": ["combine=additive"]}, mask_path=white, mask_min_value=0.1, random_crop=True
    )
    assert "not each image's squared error times a factor" in told
    assert "masks follow the pictures" in told
    assert sum(line["masked_lpips/gated"] for line in lines) > len(lines)
    masks = {"mask_dir": str(tmp_path / "masks")}
    _, told, lines = train(workshop, "cached", model, masks, cache_latents=True, random_crop=True)
    assert "reaches the network" in told
    assert sum(line["masked_lpips/gated"] for line in lines) > len(lines)
