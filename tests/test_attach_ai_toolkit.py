"""ai-toolkit's trainer with our losses: masks lie where its items say, and its step gives the library form's loss.

What it hands over is as in ostris/ai-toolkit at 27a03a91: `extensions_built_in/sd_trainer/SDTrainer.py`
(`calculate_loss` and its caller), `jobs/process/BaseSDTrainProcess.py` (`process_general_training_batch`),
`toolkit/data_transfer_object/data_loader.py` (batch and items), `toolkit/dataloader_mixins.py`
(`load_and_process_image`: flip, scale, crop) and `toolkit/extension.py`.
MLDM_AI_TOOLKIT names the folder of a checkout, MLDM_AI_TOOLKIT_PYTHON the interpreter of its environment.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from make_step import ddpm, flow, tiny_vae
from PIL import Image
from tiny_people import SCENES, person_pixels
from torch.nn import functional as F

from mldm_plugin import DiffusionStep, LossStack
from mldm_plugin.attach.ai_toolkit import AI_TOOLKIT_EXTENSIONS, MaskPaths, MixedLoss, frame_of_item, settings_of
from mldm_plugin.attach.annotation import annotate_frames
from mldm_plugin.errors import DataError, MldmError

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
    annotation = annotate_frames([frame_of_item(i) for i in made], masks, masks.offers({}), pictures)
    seen, mask = person_pixels(pictures), annotation.person_mask > 0
    assert annotation.on_record == tuple(scene.name != "nobody" for scene in SCENES)
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
        annotate_frames([frame_of_item(second)], masks, masks.offers({}))
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
        person_mask=annotate_frames([frame_of_item(i) for i in made], masks, (True, False)).person_mask,
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


@pytest.mark.skipif(not CHECKOUT.is_dir(), reason="MLDM_AI_TOOLKIT names no folder")
def test_the_real_one_finds_the_extension_and_builds_on_its_trainer(tmp_path):
    code = (
        "from mldm_plugin.attach.ai_toolkit import AI_TOOLKIT_EXTENSIONS as e, MixedLoss as m; p = e[0].get_process(); "
        "print([c.__name__ for c in p.__mro__[:3]], p.calculate_loss is m.calculate_loss)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(Path(__file__).parents[1])])}
    done = subprocess.run(
        [PYTHON, "-c", code], cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "['MldmTrainerProcess', 'MixedLoss', 'SDTrainer'] True" in done.stdout


def test_the_extension_is_what_ai_toolkit_looks_for():
    (extension,) = AI_TOOLKIT_EXTENSIONS
    assert extension.uid == "mldm_trainer"
    assert extension.name
