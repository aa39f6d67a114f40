"""One loss in the mix: its weight and gate, what it needs, and whether what it gives can be used."""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from mldm_plugin.engine.balance import Balance
from mldm_plugin.engine.report import TermReport
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.errors import LossError, MldmError, NonFiniteLossError, nearest

log = logging.getLogger(__name__)

DECODED = frozenset({"pred_images", "pred_features"})  # by the stack, for every image
NEEDS = DECODED | {"person_mask", "face_boxes", "keypoints"}

# A term that no image reached in this many steps is warned about. At T = 100 and batch 1 a gate stays closed for
# 200 steps with probability 1e-9. Chosen.
STEPS_WITHOUT_EFFECT = 200
MAX_NONFINITE_IN_A_ROW = 10  # gated steps, then the run ends


class Loss(Protocol):
    """What a plugin registers: options in the constructor, one value per image when called.

    One whose images must have more than the fields that it needs has a method `has(step)`: of each image, whether it
    does. Those that do not are left out before it is called, as if the field were empty.

    A loss with an attribute `logs`, names of what it measures beside its value, gives a pair: the values, and for each
    of those names as many numbers.
    """

    needs: frozenset[str]

    def __call__(self, step: DiffusionStep) -> Tensor | tuple[Tensor, dict[str, Tensor]]: ...


@dataclass
class Term:
    """A loss with its place in the mix: λ, T, what balances it, and how it has fared. `remark` is shown in the start-up
    table.

    Raises:
        LossError: the loss does not say what it needs, or needs something unknown.
    """

    name: str
    loss: Loss
    weight: float
    max_timestep: int | None = 100
    detach: bool = False
    remark: str = ""
    balance: Balance | None = None
    nonfinite_in_a_row: int = field(default=0, init=False)
    steps_without_effect: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        needs = getattr(self.loss, "needs", None)
        if needs is None or isinstance(needs, str):
            raise LossError(
                f"loss {self.name!r} has needs = {needs!r}, expected a set of {', '.join(sorted(NEEDS))}: an empty one "
                "for a loss on latents alone."
            )
        for need in needs:
            if need not in NEEDS:
                raise LossError(f"loss {self.name!r} needs {need!r}, which no step has: {nearest(need, NEEDS)}")
        self.logs: tuple[str, ...] = tuple(getattr(self.loss, "logs", ()))
        self.needs = frozenset(needs) | ({"pred_images"} if "pred_features" in needs else set())

    @property
    def strength(self) -> float:
        """w of the images that it applies to: λ, or 0 while it waits to be balanced."""
        return self.weight if self.scale else 0.0

    @property
    def scale(self) -> float:
        """s, by which its values are multiplied beside w: 1, or what balances it, 0 while that is not known."""
        return 1.0 if self.balance is None else self.balance.factor

    def has(self, step: DiffusionStep) -> Tensor:
        """Whether each image has what the loss needs, (N,) bool on the device of the timesteps.

        Boxes and keypoints are looked at on the host, masks where they lie; nothing is waited for, unless keypoints
        lie on a GPU.
        """
        device = step.timesteps.device
        if any(getattr(step, name) is None for name in self.needs - DECODED):
            return torch.zeros(len(step), dtype=torch.bool, device=device)
        there = [True] * len(step)
        if "face_boxes" in self.needs:
            there = [len(boxes) > 0 for boxes in step.face_boxes]
        if "keypoints" in self.needs:
            labelled = [bool((k.cpu().numpy()[..., 2] > 0).any()) for k in step.keypoints or ()]
            there = [a and b for a, b in zip(there, labelled, strict=True)]
        if hasattr(self.loss, "has"):
            there = [a and b for a, b in zip(there, self._own(step), strict=True)]
        has = torch.tensor(there).to(device, non_blocking=True)
        if "person_mask" in self.needs:
            has = has & (step.person_mask > 0).flatten(1).any(dim=1).to(device, non_blocking=True)
        return has

    def _own(self, step: DiffusionStep) -> list[bool]:
        """What the loss itself says of each image.

        Raises:
            LossError: it fails, or does not say it of each.
        """
        try:
            own = list(map(bool, getattr(self.loss, "has")(step)))  # noqa: B009 - no part of the protocol
        except MldmError:
            raise
        except Exception as error:
            raise LossError(self._failed("has a `has` that failed", error)) from error
        if len(own) != len(step):
            raise LossError(f"loss {self.name!r} has a `has` that gave {len(own)} values for {len(step)} images.")
        return own

    def evaluate(self, step: DiffusionStep) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each image, (n,) float32, and what it logs beside, by name, the same without gradient.

        Raises:
            LossError: it fails, or is not a floating-point tensor of one value per image.
        """
        try:
            given = self.loss(step)
        except MldmError:
            raise
        except Exception as error:
            raise LossError(self._failed("failed", error)) from error
        values, logs = given if isinstance(given, tuple) else (given, {})
        if tuple(logs) != self.logs:
            raise LossError(f"loss {self.name!r} logged {', '.join(logs) or 'nothing'}, its `logs` are {self.logs}.")
        for of_images in (values, *logs.values()):
            self._check(of_images, step)
        logs = {name: of_images.detach().float() for name, of_images in logs.items()}
        return (values.float().detach() if self.detach else values.float()), logs

    def _failed(self, what: str, error: Exception) -> str:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"loss {self.name!r} {what}: {type(error).__name__}: {error} ({last.filename}, line {last.lineno})"

    def _check(self, values: object, step: DiffusionStep) -> None:
        if not isinstance(values, Tensor) or values.shape != (len(step),) or not values.is_floating_point():
            came = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise LossError(
                f"loss {self.name!r} returned {came}, expected a float tensor of shape ({len(step)},), one value for "
                "each image it was given: reduce over everything but the first dimension."
            )

    def note(self, seen: TermReport) -> None:
        """What this step's values and their gradient were.

        Raises:
            NonFiniteLossError: for `MAX_NONFINITE_IN_A_ROW` gated steps in a row they were not finite.
        """
        if not seen.gated:
            self.steps_without_effect += 1
            if self.steps_without_effect == STEPS_WITHOUT_EFFECT:
                log.warning(
                    "loss %r had no effect in %d steps: no image had t <= %s and what it needs (%s).",
                    self.name,
                    STEPS_WITHOUT_EFFECT,
                    self.max_timestep,
                    ", ".join(sorted(self.needs)) or "nothing",
                )
            return
        self.steps_without_effect = 0
        if seen.finite and seen.gradients_finite:
            self.nonfinite_in_a_row = 0 if torch.is_grad_enabled() else self.nonfinite_in_a_row
            return
        self.nonfinite_in_a_row += 1
        what = "gradient" if seen.finite else "value"
        log.warning("the %s of loss %r was not finite and is left out of its step.", what, self.name)
        if self.nonfinite_in_a_row >= MAX_NONFINITE_IN_A_ROW:
            raise NonFiniteLossError(
                f"loss {self.name!r} was NaN or infinite in {MAX_NONFINITE_IN_A_ROW} steps in a row: lower the "
                "learning rate or its weight, or use float32."
            )
