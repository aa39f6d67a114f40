"""SimpleTuner, unedited: `python -m mldm_plugin simpletuner/train.py … --loss-plugin mldm`.

What is added to its loss goes through one method of its models, `auxiliary_loss`, which is given the whole prepared
batch. It is followed on the model that is about to be trained, so nothing here knows one.

Its latents are cached; where each picture was scaled and cropped stands in its data set's metadata.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor

from mldm_plugin.attach.annotation import CHECKED_BATCHES, KEY, Annotation, annotate_frames
from mldm_plugin.attach.attachment import Attachment
from mldm_plugin.attach.by_frame import stop_unseen
from mldm_plugin.attach.frame import Frame, check_frame, scaling
from mldm_plugin.attach.on_record import Fault, SideFolder
from mldm_plugin.attach.scope import share_of_noise
from mldm_plugin.errors import DataError, MldmError

_PLACED = ("center", "centre", "corner")  # crop styles that cut a picture in the same place whenever it is cached


def install(attachment: Attachment, script: Path) -> None:
    """Follow the model that `script` is about to train.

    Raises:
        MldmError: SimpleTuner is not installed.
    """
    try:
        from simpletuner.helpers.training.state_tracker import StateTracker
        from simpletuner.helpers.training.trainer import Trainer
    except ImportError as error:
        raise MldmError(
            f"{script} is a script of SimpleTuner's, and what it trains with was not found ({error}): install "
            "SimpleTuner in this environment."
        ) from error
    train = Trainer.train

    @functools.wraps(train)
    def followed(self: Any) -> None:
        Steps(self.model, StateTracker, attachment)
        train(self)

    Trainer.train = followed
    stop_unseen(
        attachment,
        "the auxiliary_loss of SimpleTuner's model",
        "This model has a step of its own: train without the plugin.",
    )


class Steps:
    """The training steps of one model.

    Args:
        model: SimpleTuner's; its `auxiliary_loss` is followed from now on.
        tracker: SimpleTuner's `StateTracker`.
        attachment: whose losses are mixed into its own.
    """

    def __init__(self, model: Any, tracker: Any, attachment: Attachment) -> None:
        self._model, self._tracker, self._attachment = model, tracker, attachment
        self._checks_left = CHECKED_BATCHES
        self._loaded = False
        model.auxiliary_loss = self._mixing(model.auxiliary_loss)

    def _mixing(self, auxiliary_loss: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(auxiliary_loss)
        def mixing(model_output: Any, prepared_batch: dict[str, Any], loss: Tensor, **kwargs: Any) -> Any:
            whole, logs = auxiliary_loss(model_output=model_output, prepared_batch=prepared_batch, loss=loss, **kwargs)
            # A regularisation picture's target is what the model said before it was trained, which is no noise.
            if not torch.is_grad_enabled() or prepared_batch.get("target") is not None:
                return whole, logs
            mixed = self._attachment.loss(
                whole, {**self._step(model_output, prepared_batch), **self._around(prepared_batch)}
            )
            if self._loaded:
                self._model.unload_vae()
                self._loaded = False
            return mixed, logs

        return mixing

    def _step(self, model_output: Mapping[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        """The tensors of this step."""
        tensors = {name: batch[name] for name in ("latents", "noise", "noisy_latents", "timesteps")}
        tensors["model_pred"] = model_output["model_prediction"]
        tensors["target"] = self._model.get_prediction_target(batch).detach()
        if batch.get("sigmas") is not None:  # a flow; some of its options mix with another share than this
            tensors["sigmas"] = share_of_noise(*(tensors[name] for name in ("latents", "noise", "noisy_latents")))
        return tensors

    def _around(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the attachment asks of a loop beside its tensors."""
        model, config = self._model, self._model.config
        in_use, vae = self._attachment.in_use, None
        if in_use and not self._attachment.steps:
            self._loaded = getattr(model, "vae", None) is None
            with torch.random.fork_rng():  # its first weights are drawn, and then loaded
                vae = model.get_vae()
        return {
            "batch": {KEY: self._annotated(batch)} if in_use else {},
            "vae": vae,
            "noise_scheduler": model.noise_schedule,
            "global_step": self._tracker.get_global_step(),
            "accelerator": model.accelerator,
            "args": SimpleNamespace(
                output_dir=config.output_dir,
                input_perturbation=getattr(config, "input_perturbation", 0),
                loss_type=getattr(config, "loss_type", "l2"),
            ),
        }

    def _annotated(self, batch: Mapping[str, Any]) -> Annotation | Fault:
        """Pictures and annotation of a batch; a fault is told by the attachment, if a loss looks at them."""
        try:
            return self._placed(batch)
        except DataError as error:
            return Fault(str(error))

    def _placed(self, batch: Mapping[str, Any]) -> Annotation:
        stored_of, backend = self._attachment.stored_of, batch["data_backend_id"]
        config = self._tracker.get_data_backend_config(backend)
        frames, pictures = [], []
        for path in batch["filepaths"]:
            metadata = self._tracker.get_metadata_by_filepath(path, data_backend_id=backend)
            frame, picture = read_sample(path, metadata, config)
            frames.append(frame)
            pictures.append(picture)
        shown = torch.stack(pictures)
        check = shown.float() / 127.5 - 1 if self._checks_left > 0 else None
        self._checks_left -= 1
        placed = annotate_frames(frames, stored_of, check)
        if not any(frame.lost for frame in frames):  # otherwise these are not the pictures that were encoded
            placed = replace(placed, pictures=shown)
        white = None if isinstance(stored_of, SideFolder) else own_masks(batch)
        if white is None:
            return placed
        for frame in frames:
            check_frame(frame, frame.size, frame.source)
        everywhere = {"person_mask": (True,) * len(frames)}
        return replace(placed, person_mask=white, on_record={**placed.on_record, **everywhere})


def own_masks(batch: Mapping[str, Any]) -> Tensor | None:
    """SimpleTuner's own masks, of a conditioning data set of type mask or segmentation: (N, 1, H, W), 1 where white.

    They were cut with their pictures.
    """
    kind = batch.get("loss_mask_type") or batch.get("conditioning_type")
    if kind not in ("mask", "segmentation"):
        return None
    return (batch["conditioning_pixel_values"].mean(dim=1, keepdim=True) > 0).to(torch.uint8).cpu()


def read_sample(path: str, metadata: Any, config: Mapping[str, Any]) -> tuple[Frame, Tensor]:
    """Where a picture was cut before it was encoded, and the picture, uint8 (3, h, w).

    Args:
        path: of the picture.
        metadata: SimpleTuner's.
        config: of its data set.

    Raises:
        DataError: it has no metadata, or cannot be read.
    """
    names = ("original_size", "intermediary_size", "target_size")
    if not isinstance(metadata, Mapping) or any(name not in metadata for name in (*names, "crop_coordinates")):
        raise DataError(
            f"{path}: SimpleTuner keeps no record of where it was cropped: delete the data set's cache files."
        )
    size, scaled, cut = ((int(w), int(h)) for w, h in (metadata[name] for name in names))
    try:
        with PIL.Image.open(path) as stored:
            picture = PIL.ImageOps.exif_transpose(stored.convert("RGB"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}): the losses look at the picture, too.") from error
    if picture.size != size:
        raise DataError(
            f"{path} is {picture.width} × {picture.height}, and was {size[0]} × {size[1]} when SimpleTuner cached it: "
            "delete the data set's cache files."
        )
    top, left = (int(x) for x in metadata["crop_coordinates"]) if scaled != cut else (0, 0)
    frame = Frame(path, size, size).then(scaling((0, 0, *size), scaled), scaled).then((1, 0, -left, 0, 1, -top), cut)
    shown = picture.resize(scaled, PIL.Image.Resampling.LANCZOS).crop((left, top, left + cut[0], top + cut[1]))
    lost = _unrecorded(config, moves=scaled != cut)
    return frame.lose(lost) if lost else frame, torch.from_numpy(np.array(shown)).permute(2, 0, 1)


def _unrecorded(config: Mapping[str, Any], *, moves: bool) -> str:
    """What SimpleTuner does to a data set's pictures without keeping where; empty for nothing."""
    if config.get("maximum_image_size") and config.get("target_downsample_size"):
        return "target_downsample_size"
    if config.get("crop") and config.get("crop_aspect") == "random":
        return 'crop_aspect "random", which is drawn again when latents are cached,'
    style = config.get("crop_style", "random")
    if moves and style not in _PLACED:
        return f'crop_style "{style}", which is drawn again when latents are cached (set it to "center"),'
    return ""
