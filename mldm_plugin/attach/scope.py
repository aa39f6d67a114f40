"""A training step read out of the local variables of somebody's loop.

The names are in `names`. A wrong guess cannot pass: the start-up checks compare the noisy latents, the target and the
loss with what follows from the others. Where the loss has a form of its own, a wrong output is warned of.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mldm_plugin.attach.annotation import KEY, Annotation, one_frame, pictures_in
from mldm_plugin.attach.names import NAMES, TARGETS
from mldm_plugin.attach.on_record import Fault
from mldm_plugin.engine.host_checks import ESTIMATE_TOLERANCE, estimate_errors
from mldm_plugin.engine.host_loss import HostLoss, gradient_at, take_apart
from mldm_plugin.engine.schedule import NoiseSchedule
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.errors import CheckError, DataError

_EXACT = 0.01  # of the error under another prediction type; the right one has rounding alone. Chosen.


class Scope:
    """Variables of a training loop: its local ones, attributes of its `self`, and the script's global ones."""

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self._variables = variables
        self._globals = vars(sys.modules["__main__"])
        self._self = variables.get("self")

    def get(self, *names: str) -> Any:
        """The first of `names` that is there and not None."""
        for name in names:
            value = self._variables.get(name)
            if value is None:
                value = getattr(self._self, name, None)
            if value is not None:
                return value
        return next((self._globals[n] for n in names if self._globals.get(n) is not None), None)

    def need(self, field: str) -> Any:
        """What `DiffusionStep` or `LossStack` calls `field`.

        Raises:
            CheckError: no variable of the loop is known to be it.
        """
        value = self.get(*NAMES[field])
        if value is None:
            raise CheckError(
                f"the training loop has no variable that is known to hold the {field} (looked for "
                f"{', '.join(NAMES[field])}): this script's loop is not one that can be followed. Use the library form "
                "(docs/attach.md)."
            )
        return value

    def account(self) -> str:
        """What the step was read from, to be said when a check has failed."""
        found = [next((n for n in names if self.get(n) is not None), "") for names in (*NAMES.values(), TARGETS)]
        return (
            f"The step was read from the script's variables {', '.join(filter(None, found))}; if they are something "
            "else there, or its loss is another one, use the library form (docs/attach.md)."
        )

    def option(self, name: str, default: Any = None) -> Any:
        """A flag of the script."""
        return getattr(self.get("args"), name, default)

    @property
    def batch(self) -> Mapping[str, Any]:
        """The batch that our collate function has made; an empty one where there is none."""
        given = self._variables.get("batch")
        if isinstance(given, Mapping) and KEY in given:
            return given
        found = {id(v): v for v in self._variables.values() if isinstance(v, Mapping) and KEY in v}
        if len(found) > 1:
            raise CheckError(
                "several variables of the training loop are batches with pictures, and which of them the loss is of is "
                "not known: call it batch, or use the library form (docs/attach.md)."
            )
        return next(iter(found.values()), {})


def read(
    loss: Tensor,
    scope: Scope,
    annotation: Annotation | None,
    pixel_values: Tensor | None,
    schedule: NoiseSchedule,
    *,
    apart: bool = True,
) -> tuple[DiffusionStep, HostLoss | None]:
    """The step that ends in `loss`, whose images are those of `annotation`, and the parts of that loss.

    Args:
        loss: the scalar that the script is about to call backward on.
        scope: the variables of its loop at that moment.
        annotation: of the pictures in the batch, or None if there is none.
        pixel_values: the pictures (at least N rows), or None if only their latents are known.
        schedule: the script's.
        apart: whether to read the weights of the images off the loss; not needed where nothing is mixed.

    Raises:
        CheckError: a variable is missing, or has a shape that is not understood; or the loss is not one.
    """
    pred = _unpacked(scope.need("model_pred"), pixel_values)
    n = len(pred)  # the instance images; those of prior preservation have been chunked off
    if annotation is not None and len(annotation) != n:
        raise CheckError(f"the network's output is of {n} images, the annotation of {len(annotation)}.")
    fields = ("noise", "noisy_latents")
    tensors: dict[str, Any] = {x: _unpacked(scope.need(x).detach(), pixel_values)[:n] for x in fields}
    timesteps, sigmas = _rows(scope.need("timesteps"), n), scope.get("sigmas")
    sigmas = None if sigmas is None else _rows(sigmas, n)
    found = [_unpacked(x.detach(), pixel_values)[:n] for x in _clean_latents(scope)]
    tensors["latents"] = _made_into(found, **tensors, coefficients=lambda: schedule.coefficients(timesteps, sigmas))
    target = scope.get(*TARGETS)
    if target is None:
        alpha, sigma = (c[:, None, None, None] for c in schedule.coefficients(timesteps, sigmas))
        target = schedule.target(tensors["latents"].float(), tensors["noise"].float(), alpha, sigma)
    target = _unpacked(target, pixel_values)[:n]
    if scope.option("dream_training"):  # DREAM has moved noisy latents and target by the same noise
        tensors["noise"] = target
    parts = _parts(loss, scope, pred, target, pixel_values) if apart else None
    step = DiffusionStep(
        **tensors,
        timesteps=timesteps.to(pred.device, non_blocking=True),
        model_pred=pred,
        target=target,
        base_loss=loss,
        base_weights=None if parts is None else parts.weights,
        other_loss=None if parts is None else parts.rest,
        sigmas=sigmas,
        pixel_values=None if pixel_values is None else pixel_values[:n].to(pred.device, non_blocking=True),
        **_placed(annotation, pred.device),
    )
    return step, parts


def prediction_type_of(step: DiffusionStep, schedule: NoiseSchedule) -> str | None:
    """The prediction type that the target of a step shows; None if its images are too noisy to tell.

    SD3's and EDM's scripts precondition the network's output, so that it is compared with the clean latents whatever
    the scheduler's config says. The target is then those latents exactly; with any other one it is not.
    """
    declared_error, _ = estimate_errors(schedule, step)
    error, _ = estimate_errors(schedule, step, "sample")
    if max(error, declared_error) < ESTIMATE_TOLERANCE:
        return None
    return "sample" if error < _EXACT * declared_error else schedule.prediction_type


def is_turned(step: DiffusionStep) -> bool:
    """Whether the target is z₀ − ε, the flow from noise to picture (Lumina): the other sign of what schedules know."""
    return torch.equal(step.target, step.latents - step.noise)


def turned(step: DiffusionStep) -> DiffusionStep:
    """The same step with the signs of output and target turned; squared errors stay."""
    return replace(step, model_pred=-step.model_pred, target=-step.target)


def runs_backwards(step: DiffusionStep, schedule: NoiseSchedule) -> bool | None:
    """Whether σ is the picture's share in a flow's noisy latents, z_t = σ z₀ + (1 − σ) ε, as Lumina 2 counts time.

    None where both directions fit, near σ = ½.
    """
    if not schedule.is_flow:
        return False
    _, error = estimate_errors(schedule, step)
    _, backwards = estimate_errors(schedule, with_time_turned(step, schedule))
    if backwards > ESTIMATE_TOLERANCE:
        return False
    return None if error <= ESTIMATE_TOLERANCE else True


def with_time_turned(step: DiffusionStep, schedule: NoiseSchedule) -> DiffusionStep:
    """The same step of a flow with σ the share of the noise, where the script's is that of the picture."""
    _, share = schedule.coefficients(step.timesteps, step.sigmas)
    sigmas = 1 - share
    return replace(step, sigmas=sigmas, timesteps=sigmas * schedule.num_train_timesteps)


def share_of_noise(latents: Tensor, noise: Tensor, noisy: Tensor) -> Tensor:
    """σ of each image of a flow, (N,) float32: z_t = (1 − σ) z₀ + σ ε, so z_t − z₀ is σ times ε − z₀.

    >>> share_of_noise(torch.zeros(1, 1), torch.full((1, 1), 4.0), torch.ones(1, 1)).item()
    0.25
    """
    exact = torch.float32 if latents.device.type == "mps" else torch.float64  # which Apple's GPUs do not have
    clean, noise, noisy = (x.to(exact).flatten(1) for x in (latents, noise, noisy))
    way = noise - clean
    share = ((noisy - clean) * way).sum(dim=1) / way.square().sum(dim=1)
    return share.clamp(0, 1).float()  # of rounding


def tolerance_of(scope: Scope) -> float:
    """The relative error that ẑ₀(target) may have: more where the script perturbs its input."""
    return ESTIMATE_TOLERANCE + (scope.option("input_perturbation") or scope.option("ip_noise_gamma") or 0.0)


def caching_flag(scope: Scope) -> str:
    """What to do with the script's flag so that it encodes its pictures in each step; empty where it does."""
    if scope.option("cache_latents"):
        return "leave --cache_latents out"
    return "add --not_cache_latents" if scope.option("not_cache_latents") is False else ""


def pictures_of(batch: Mapping[str, Any]) -> Tensor | None:
    """The pictures of a batch, (N, 3, H, W), or None."""
    found = pictures_in(batch)
    return None if found is None else found[1]


def spare_pictures(scope: Scope) -> Tensor | None:
    """The pictures of a step in which no loss needs them, for panels; None where they are not ones of its images."""
    batch, pred = scope.get("batch"), scope.get(*NAMES["model_pred"])
    pictures = pictures_of(batch if isinstance(batch, Mapping) else scope.batch)
    fit = pictures is not None and pictures.is_floating_point() and isinstance(pred, Tensor)
    return pictures if fit and len(pictures) >= len(pred) else None  # type: ignore[arg-type]


def annotation_in(batch: Mapping[str, Any]) -> Annotation:
    """What our collate function has put into a batch.

    Raises:
        DataError: it could not; or it was never called.
    """
    placed = batch.get(KEY)
    if isinstance(placed, Fault):
        raise DataError(placed.message)
    if not isinstance(placed, Annotation):
        raise DataError(
            "the batch of the training loop did not come through the plugin's collate function, so there are no masks: "
            "this script's data loading is not one that can be followed. Use the library form (docs/attach.md)."
        )
    return placed


def unpack(packed: Tensor, height: int, width: int) -> Tensor:
    """Flux's packed latents (N, h/2 · w/2, 4 C) as (N, C, h, w): each token is a 2×2 patch of each channel."""
    n, _, channels = packed.shape
    patches = packed.reshape(n, height // 2, width // 2, channels // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(n, channels // 4, height, width)


def _clean_latents(scope: Scope) -> list[Tensor]:
    """What may be the clean latents: of the names known for them, all that have the noise's shape.

    A script that caches latents leaves those of its last picture in `latents`, and calls a step's `model_input`.
    """
    shape = scope.need("noise").shape
    found = {id(x): x for x in (scope.get(name) for name in NAMES["latents"]) if isinstance(x, Tensor)}
    return [x for x in found.values() if x.shape == shape] or [scope.need("latents")]


def _made_into(
    found: list[Tensor], noise: Tensor, noisy_latents: Tensor, coefficients: Callable[[], tuple[Tensor, Tensor]]
) -> Tensor:
    """Those of `found` that the noisy latents were made of: α z₀ is nearest to z_t − σ ε."""
    if len(found) == 1:
        return found[0]
    alpha, sigma = (c[:, None, None, None].to(noise.device) for c in coefficients())
    share = noisy_latents.float() - sigma * noise.float()
    return min(found, key=lambda latents: (alpha * latents.float() - share).square().mean().item())


def _unpacked(tensor: Tensor, pixel_values: Tensor | None) -> Tensor:
    """(N, C, h, w), whatever the script keeps: packed tokens, or a film of one picture."""
    tensor = one_frame(tensor)
    if tensor.ndim == 3 and tensor.shape[2] % 4 == 0 and pixel_values is not None:
        height, width = pixel_values.shape[-2:]
        downscale = math.isqrt(height * width // (4 * tensor.shape[1]))
        if (height // downscale) * (width // downscale) == 4 * tensor.shape[1]:
            return unpack(tensor, height // downscale, width // downscale)
    if tensor.ndim != 4:
        raise CheckError(
            f"a tensor of the training loop has shape {tuple(tensor.shape)}, expected (N, C, h, w) or Flux's packed "
            "tokens: this script's latents are not ones that can be followed. Use the library form (docs/attach.md)."
        )
    return tensor


def _rows(values: Tensor, n: int) -> Tensor:
    """One number for each of n images, (n,): the script's own, without those of prior preservation, or its only one."""
    values = values.reshape(-1)
    return values.expand(n) if len(values) == 1 else values[:n]


def _parts(loss: Tensor, scope: Scope, pred: Tensor, target: Tensor, pixel_values: Tensor | None) -> HostLoss:
    """The script's own weights of the images, and what else is in its loss."""
    gradient = _unpacked(gradient_at(scope.need("model_pred"), loss), pixel_values)
    return take_apart(loss, gradient, pred, target, _why(scope))


def _why(scope: Scope) -> str:
    """Flags of the script that are known to make its loss something else."""
    reasons = []
    if (kind := scope.option("loss_type", "l2")) != "l2":
        reasons.append(f"--loss_type {kind}")
    if scope.option("masked_loss") or scope.batch.get("alpha_masks") is not None:
        reasons.append("--masked_loss or --alpha_mask")
    return ", because of " + " and ".join(reasons) if reasons else ""


def _placed(annotation: Annotation | None, device: torch.device) -> dict[str, Any]:
    if annotation is None:
        return {}
    mask = annotation.person_mask
    return {
        "person_mask": None if mask is None else mask.to(device, non_blocking=True),
        "face_boxes": None if isinstance(annotation.face_boxes, Fault) else annotation.face_boxes,
        "keypoints": None if isinstance(annotation.keypoints, Fault) else annotation.keypoints,
    }
