"""OneTrainer, unedited: `python -m mldm_plugin scripts/train.py --config-path … --loss-plugin mldm`.

All of its models' losses meet in one call, `calculate_loss` of the object that `create_model_setup` makes, and all of
them add noise by one of two methods of that object. Both are followed on that object alone, so nothing here knows a
model: latents, noise and σ are what the second call saw, output and target what the first one is given.

Pictures and masks go through OneTrainer's own pipeline (see `onetrainer_pipeline`), its cache included.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mldm_plugin.attach.annotation import CHECKED_BATCHES, KEY, Annotation, annotate_frames
from mldm_plugin.attach.attachment import Attachment
from mldm_plugin.attach.frame import Frame
from mldm_plugin.attach.loop import Loop
from mldm_plugin.attach.on_record import Fault, Offers, SideFolder, Stored, read_white
from mldm_plugin.attach.onetrainer_frame import FRAME, PICTURE, frame_of
from mldm_plugin.errors import CheckError, DataError, MldmError

_CREATE = Path("modules", "util", "create.py")


def install(attachment: Attachment, script: Path) -> None:
    """Follow the trainer that `script` is about to make.

    Raises:
        MldmError: the script does not lie in a checkout of OneTrainer.
    """
    root = next((p for p in script.resolve().parents if (p / _CREATE).is_file()), None)
    if root is None:
        raise MldmError(f"{script} imports OneTrainer, but no folder above it has {_CREATE}: run it from its checkout.")
    sys.path.insert(0, str(root))
    from modules.dataLoader.mixin.DataLoaderMgdsMixin import DataLoaderMgdsMixin
    from modules.util import create, multi_gpu_util

    make = create.create_model_setup

    @functools.wraps(make)
    def create_model_setup(*args: Any, **kwargs: Any) -> Any:
        setup = make(*args, **kwargs)
        if setup is not None:  # None: OneTrainer knows no such model here, which it finds by the folder it is run from
            Steps(setup, attachment, is_master=multi_gpu_util.is_master)
        return setup

    create.create_model_setup = create_model_setup
    if attachment.in_use:
        _carry(DataLoaderMgdsMixin)


def _carry(loader: Any) -> None:
    """Have the data loaders of this class carry each picture and its frame into the batch."""
    from mldm_plugin.attach.onetrainer_pipeline import carrying

    plain = loader._create_mgds

    @functools.wraps(plain)
    def create_mgds(self: Any, config: Any, definition: list[Any], *args: Any, **kwargs: Any) -> Any:
        return plain(self, config, carrying(definition), *args, **kwargs)

    loader._create_mgds = create_mgds


class MaskLabels:
    """OneTrainer's own masks: `NAME-masklabel.png` beside `NAME.jpg`, white where the person is."""

    def __call__(self, example: Mapping[str, Any], frame: Frame | None, name: str) -> Stored:
        path = Path(name).with_name(f"{Path(name).stem}-masklabel.png")
        return Stored(read_white(path) if path.is_file() else None)

    def offers(self, example: Mapping[str, Any]) -> Offers:
        return Offers(mask=True)


class Steps:
    """The training steps of one `setup`: what its methods that add noise saw, until its loss is computed.

    Args:
        setup: what OneTrainer's `create_model_setup` has made; two of its methods are followed from now on.
        attachment: whose losses are mixed into its own.
        is_master: whether this process writes.
    """

    def __init__(self, setup: Any, attachment: Attachment, is_master: Callable[[], bool] = lambda: True) -> None:
        self._attachment, self._is_master = attachment, is_master
        self._noised: dict[str, Any] | None = None
        self._checks_left = CHECKED_BATCHES
        folder = attachment.stored_of
        self._stored_of = folder if isinstance(folder, SideFolder) else MaskLabels()
        for name in ("_add_noise_discrete", "_add_noise_continuous"):
            if hasattr(setup, name):
                setattr(setup, name, self._noting(getattr(setup, name)))
        setup.calculate_loss = self._mixing(setup.calculate_loss)

    def _noting(self, add_noise: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(add_noise)
        def noting(latents: Tensor, noise: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Any:
            result = add_noise(latents, noise, timestep, *args, **kwargs)
            noisy, sigmas = result if isinstance(result, tuple) else (result, None)  # a flow's comes with σ
            self._noised = {"latents": latents, "noise": noise, "noisy_latents": noisy, "timesteps": timestep}
            self._noised["sigmas"] = sigmas
            return result

        return noting

    def _mixing(self, calculate_loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(calculate_loss)
        def mixing(model: Any, batch: dict[str, Any], data: dict[str, Any], config: Any) -> Tensor:
            noised, self._noised = self._noised, None
            if not torch.is_grad_enabled():  # validation
                return calculate_loss(model, batch, data, config)
            if noised is None:
                raise CheckError(
                    "OneTrainer has computed a loss and added no noise before: its training method is none of "
                    "diffusion models (a VAE's?), so there is no clean estimate. Train without the plugin."
                )
            latents = noised["latents"]
            output, target = (_packed(data[name], latents) for name in ("predicted", "target"))
            # What the loss is computed from has to come after `output`, for its gradient there is read.
            given = {**data, "predicted": _unpacked(output, data["predicted"])}
            loss = calculate_loss(model, batch, given, config)
            return self._attachment.loss(
                loss, {**noised, "model_pred": output, "target": target, **self._around(model, batch, config)}
            )

        return mixing

    def _around(self, model: Any, batch: Mapping[str, Any], config: Any) -> dict[str, Any]:
        """What the attachment asks of a loop beside its tensors."""
        micro, every = model.train_progress.global_step, config.gradient_accumulation_steps
        return {
            "batch": self._annotated(batch) if self._attachment.in_use else {},
            "vae": model.vae,
            "noise_scheduler": model.noise_scheduler,
            "global_step": micro // every,
            "accelerator": Loop((micro + 1) % every == 0, self._is_master()),
            "args": SimpleNamespace(output_dir=config.workspace_dir),
        }

    def _annotated(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Pictures and annotation of a batch; a fault is told by the attachment, if a loss looks at them."""
        if FRAME not in batch or "image_path" not in batch:
            return {KEY: Fault("OneTrainer's batch came without frames: its data loader is not one that is followed.")}
        pictures = batch[PICTURE]
        frames = [
            frame_of(path, numbers.tolist()) for path, numbers in zip(batch["image_path"], batch[FRAME], strict=True)
        ]
        try:
            shown = pictures.cpu().float() / 127.5 - 1 if self._checks_left > 0 else None
            self._checks_left -= 1
            placed: Annotation | Fault = annotate_frames(frames, self._stored_of, shown)
        except DataError as error:
            placed = Fault(str(error))
        return {"pixel_values": pictures, KEY: placed}


def _packed(tensor: Tensor, latents: Tensor) -> Tensor:
    """`tensor` in the shape of the latents that noise was added to, where these are patches of it (Flux.2)."""
    if tensor.shape == latents.shape or tensor.ndim != 4 or latents.ndim != 4:
        return tensor
    return F.pixel_unshuffle(tensor, math.isqrt(latents.shape[1] // tensor.shape[1]))


def _unpacked(packed: Tensor, tensor: Tensor) -> Tensor:
    """`packed` in the shape that it had."""
    if packed.shape == tensor.shape:
        return packed
    return F.pixel_shuffle(packed, tensor.shape[-1] // packed.shape[-1])
