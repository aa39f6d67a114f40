"""A callback for Lightning loops of CompVis' latent diffusion, ControlNet's `cldm` among them.

    from mldm_plugin.attach.lightning import losses
    trainer = pl.Trainer(…, callbacks=[logger, losses(preset="mldm")])

The step is one method of the model, `p_losses`, which adds noise by its `q_sample` and calls its `apply_model`. They
are followed on the model that is trained. Masks are among what the data set returns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mldm_plugin.attach.annotation import KEY, Annotation
from mldm_plugin.attach.attachment import Attachment
from mldm_plugin.attach.autoencoders import Called, Config
from mldm_plugin.attach.flags import Settings
from mldm_plugin.attach.loop import Loop
from mldm_plugin.attach.on_record import Fault
from mldm_plugin.data.batch import FaceBoxes, Keypoints
from mldm_plugin.errors import DataError, MldmError

_KINDS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def losses(
    preset: str,
    *,
    mask: str = "mask",
    face_boxes: str = "face_boxes",
    keypoints: str = "keypoints",
    **settings: Any,
) -> Any:
    """The callback, a `pytorch_lightning.Callback`.

    Args:
        preset: name of a preset, or a YAML file.
        mask: under what name the batch has label masks, cut like its pictures: integers (N, H, W), 0 for background.
        face_boxes: under what name it has face boxes: (N, K, 4) in pixels, zeros where there are fewer.
        keypoints: under what name it has COCO's keypoints: (N, K, 17, 3), x, y in pixels and v, zeros where there are
            fewer.
        settings: `loss_plugin`, `set`, `output_dir`, `panel_steps` and `curve_steps`, as the flags of these names.

    Raises:
        MldmError: no Lightning is installed; or as `Attachment`.
    """
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise MldmError(f"the callback needs the Lightning that the model trains with: {error}.") from error
    lists: dict[str, Any] = {name: tuple(settings[name]) for name in ("loss_plugin", "set") if name in settings}
    given: dict[str, Any] = {"loss_plugin": ("mldm",), "preset": preset, **settings, **lists}
    attachment = Attachment(Settings(**given))
    return type("MldmCallback", (Hooks, Callback), {})(attachment, mask, face_boxes, keypoints)


class Hooks:
    """What the callback does; the rest is Lightning's own."""

    def __init__(
        self, attachment: Attachment, mask: str = "mask", face_boxes: str = "face_boxes", keypoints: str = "keypoints"
    ) -> None:
        super().__init__()
        self._attachment, self._names = attachment, (mask, face_boxes, keypoints)
        self._steps: Steps | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self._steps is None:
            self._steps = Steps(pl_module, self._attachment)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *more: Any) -> None:
        if self._steps is None:
            raise MldmError("Lightning has begun a batch before the training: this is another version of it.")
        every, last = trainer.accumulate_grad_batches, batch_idx + 1 == trainer.num_training_batches
        self._steps.around = {
            "batch": self._annotated(batch, pl_module.first_stage_key),
            "global_step": trainer.global_step,
            "accelerator": Loop((batch_idx + 1) % every == 0 or last, trainer.is_global_zero),
            "args": SimpleNamespace(output_dir=trainer.default_root_dir),
        }

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._attachment.finish()

    def _annotated(self, batch: Mapping[str, Any], pictures: str) -> dict[str, Any]:
        if not self._attachment.in_use:
            return {}
        shown = batch[pictures].movedim(-1, 1)  # (N, H, W, 3) in [-1, 1], as its `get_input` expects them
        try:
            return {KEY: annotation_of(batch, *self._names, size=tuple(shown.shape[-2:])), "pixel_values": shown}
        except DataError as error:
            return {KEY: Fault(str(error))}


def annotation_of(
    batch: Mapping[str, Any], mask: str, face_boxes: str, keypoints: str, size: tuple[int, int]
) -> Annotation:
    """Masks, boxes and keypoints as the data set returned them, cut like its pictures.

    Raises:
        DataError: masks are no labels, or of another size than the pictures.
    """
    labels, boxes, people = batch.get(mask), batch.get(face_boxes), batch.get(keypoints)
    if labels is not None:
        labels = labels.reshape(len(labels), 1, *labels.shape[1:3])
        if labels.is_floating_point() or labels.shape[-2:] != size:
            raise DataError(
                f"{mask!r} in the batch is {labels.dtype} of {labels.shape[-1]} × {labels.shape[-2]}, expected "
                f"integers, a label a pixel, of the pictures' {size[1]} × {size[0]}: cut masks like pictures in the "
                "data set."
            )
    if people is not None and (not isinstance(people, Tensor) or people.ndim != 4 or people.shape[2:] != (17, 3)):
        came = tuple(people.shape) if isinstance(people, Tensor) else type(people).__name__
        raise DataError(f"{keypoints!r} in the batch is {came}, expected (N, K, 17, 3): x, y in pixels and v of each.")
    return Annotation(
        names=("",) * next((len(known) for known in (labels, boxes, people) if known is not None), 0),
        person_mask=None if labels is None else labels.to("cpu", torch.uint8),
        face_boxes=None if boxes is None else FaceBoxes([b[b[:, 2] > b[:, 0]].float().cpu() for b in boxes]),
        on_record={},
        keypoints=None if people is None else Keypoints([p[p[..., 2].any(dim=1)].float().cpu() for p in people]),
    )


class Steps:
    """The training steps of one model: what its methods saw and made, until its loss is computed.

    Args:
        model: a `LatentDiffusion`; three of its methods are followed from now on.
        attachment: whose losses are mixed into its own.

    Attributes:
        around: what the attachment asks of a loop, of the batch that is trained on.
    """

    def __init__(self, model: Any, attachment: Attachment) -> None:
        self._model, self._attachment = model, attachment
        self.around: dict[str, Any] = {}
        self._noted: dict[str, Any] = {}
        kind = _KINDS[model.parameterization]
        self._schedule = SimpleNamespace(config={"prediction_type": kind}, alphas_cumprod=model.alphas_cumprod)
        model.q_sample = self._noting(model.q_sample, "noisy_latents")
        model.apply_model = self._noting(model.apply_model, "model_pred")
        model.p_losses = self._mixing(model.p_losses)

    def _noting(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(method)
        def noting(*args: Any, **kwargs: Any) -> Any:
            self._noted[name] = method(*args, **kwargs)
            if name == "noisy_latents":
                self._noted["noise"] = kwargs["noise"]
            return self._noted[name]

        return noting

    def _mixing(self, p_losses: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(p_losses)
        def mixing(x_start: Tensor, cond: Any, t: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
            loss, told = p_losses(x_start, cond, t, *args, **kwargs)
            noted, self._noted = self._noted, {}
            if not torch.is_grad_enabled():  # validation
                return loss, told
            step = {**noted, "latents": x_start, "timesteps": t, "noise_scheduler": self._schedule}
            return self._attachment.loss(loss, {**step, **self.around, "vae": self._autoencoder()}), told

        return mixing

    def _autoencoder(self) -> Called | None:
        if self._attachment.steps or not self._attachment.in_use:
            return None
        config = Config(scaling_factor=float(self._model.scale_factor))
        return Called(self._model.first_stage_model, config, lambda call, tensor: call(tensor))
