"""ai-toolkit: an extension that it finds, whose trainer is its own with our losses mixed into `calculate_loss`.

    extensions/mldm/__init__.py      from mldm_plugin.attach.ai_toolkit import AI_TOOLKIT_EXTENSIONS
    in the job's file                type: mldm_trainer, and mldm: {preset: …}

What `calculate_loss` is given is a step but for its target, which follows from the noise schedule, or is what the model
itself calls its target. Where a picture was cut stands in its item's fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import PIL.Image
from torch import Tensor

from mldm_plugin.attach import loop
from mldm_plugin.attach.annotation import CHECKED_BATCHES, KEY, Annotation, annotate_frames
from mldm_plugin.attach.attachment import Attachment
from mldm_plugin.attach.flags import Settings
from mldm_plugin.attach.frame import Frame, scaling, transposition
from mldm_plugin.attach.on_record import Fault, Offers, SideFolder, Stored, read_white
from mldm_plugin.errors import DataError, MldmError, nearest

_COLUMNS = {"mask_column", "face_boxes_column", "keypoints_column"}
_OPTIONS = {f.name for f in fields(Settings)} - {"script", "by_frame", *_COLUMNS}


def settings_of(given: Mapping[str, Any] | None) -> Settings:
    """What stands under `mldm:` in a job's file.

    Raises:
        MldmError: nothing, or something that is not known.
    """
    if not given or "preset" not in given:
        raise MldmError("the job of type mldm_trainer has no preset: write mldm: {preset: lora-sd15} into its process.")
    for name in given:
        if name not in _OPTIONS:
            raise MldmError(f"mldm in the job's file has {name!r}: {nearest(name, sorted(_OPTIONS))}")
    several = {name: given[name] for name in ("loss_plugin", "set") if name in given}
    lists = {name: (value,) if isinstance(value, str) else tuple(value) for name, value in several.items()}
    return Settings(**{"loss_plugin": ("mldm",), **given, **lists})


class MixedLoss:
    """Before a trainer of ai-toolkit among the bases of a class: its loss, with ours."""

    def __init__(self, process_id: int, job: Any, config: Any, **kwargs: Any) -> None:
        self._attachment = Attachment(settings_of(config.get("mldm")))
        self._checks_left = CHECKED_BATCHES
        super().__init__(process_id, job, config, **kwargs)  # type: ignore[call-arg]

    def run(self) -> None:
        super().run()  # type: ignore[misc]
        self._attachment.finish()

    def calculate_loss(
        self, noise_pred: Tensor, noise: Tensor, noisy_latents: Tensor, timesteps: Tensor, batch: Any, **kwargs: Any
    ) -> Tensor:
        step = {"noise": noise, "noisy_latents": noisy_latents, "timesteps": timesteps}
        plain = super().calculate_loss(noise_pred, batch=batch, **step, **kwargs)  # type: ignore[misc]
        own: Any = self
        target = getattr(own.sd, "get_loss_target", None)
        if target is not None:
            step["target"] = target(noise=noise, batch=batch, timesteps=timesteps).detach()
        around = {
            "batch": self._annotated(batch) if self._attachment.in_use else {},
            "vae": own.sd.vae,
            "noise_scheduler": own.sd.noise_scheduler,
            "global_step": own.step_num,
            "accelerator": loop.Loop(not own.is_grad_accumulation_step, own.accelerator.is_main_process),
            "args": SimpleNamespace(output_dir=own.save_root),
        }
        return self._attachment.loss(plain, {**step, **around, "latents": batch.latents, "model_pred": noise_pred})

    def _annotated(self, batch: Any) -> dict[str, Any]:
        """Pictures, where they are not only cached as latents, and the annotation of a batch."""
        pictures = batch.tensor
        folder = self._attachment.stored_of
        stored_of: SideFolder | MaskPaths = folder if isinstance(folder, SideFolder) else MaskPaths(batch.file_items)
        try:
            frames = [frame_of_item(item) for item in batch.file_items]
            shown = pictures if pictures is not None and self._checks_left > 0 else None
            self._checks_left -= 1
            placed: Annotation | Fault = annotate_frames(frames, stored_of, shown)
        except DataError as error:
            placed = Fault(str(error))
        return {KEY: placed} if pictures is None else {"pixel_values": pictures, KEY: placed}


class MaskPaths:
    """ai-toolkit's own masks, of the data set's `mask_path`: white where the person is."""

    def __init__(self, items: Any) -> None:
        self._items = {item.path: item for item in items}

    def __call__(self, example: Mapping[str, Any], frame: Frame | None, name: str) -> Stored:
        item = self._items[name]
        if item.mask_path is None:
            return Stored()
        if item.use_alpha_as_mask or item.dataset_config.invert_mask:
            raise DataError(
                f"{name}: its mask is alpha, or inverted: write mask_dir under mldm in the job's file, a folder with "
                "label masks (docs/recipes/ai_toolkit.md)."
            )
        return Stored(read_white(Path(item.mask_path)))

    def offers(self, example: Mapping[str, Any]) -> Offers:
        return Offers(mask=True)


def frame_of_item(item: Any) -> Frame:
    """Where an item's picture was cut: it is flipped, scaled and cropped, in this order.

    Raises:
        DataError: it was cut in a way that its fields do not say.
    """
    if not item.dataset_config.buckets:
        raise DataError(f"{item.path}: where ai-toolkit cuts pictures without buckets is not known: set buckets: true.")
    with PIL.Image.open(item.path) as picture:
        size = picture.size
        if picture.getexif().get(0x0112, 1) > 4:  # stored lying; ai-toolkit turns it, and its mask
            size = size[::-1]
    frame = Frame(item.path, size, size)
    for flip, method in (
        (item.flip_x, PIL.Image.Transpose.FLIP_LEFT_RIGHT),
        (item.flip_y, PIL.Image.Transpose.FLIP_TOP_BOTTOM),
    ):
        if flip:
            frame = frame.then(*transposition(method, frame.size))
    scaled = (item.scale_to_width, item.scale_to_height)
    frame = frame.then(scaling((0, 0, *frame.size), scaled), scaled)
    frame = frame.then((1, 0, -item.crop_x, 0, 1, -item.crop_y), (item.crop_width, item.crop_height))
    return frame.lose("an augmentation by ai-toolkit") if getattr(item, "has_augmentations", False) else frame


class MldmTrainer:
    """What ai-toolkit asks of an extension."""

    uid = "mldm_trainer"
    name = "SD Trainer with the losses of mldm-plugin"

    @classmethod
    def get_process(cls) -> Callable[..., Any]:
        from extensions_built_in.sd_trainer.SDTrainer import SDTrainer

        return type("MldmTrainerProcess", (MixedLoss, SDTrainer), {})


AI_TOOLKIT_EXTENSIONS = [MldmTrainer]
