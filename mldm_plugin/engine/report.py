"""What a step did: every term's raw value, weight and gate, per image."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mldm_plugin.engine.numbers import Numbers, StepMeter, TermNumbers
from mldm_plugin.engine.step import on_device


@dataclass(frozen=True, eq=False)
class TermReport:
    """One term in one step of N images.

    Args:
        images: N.
        strength: w, which the convex mix takes from the plain loss: the term's weight in the preset, λ, or 0 while it
            waits to be balanced.
        rows: which images it applied to.
        values: (n,) float32 value of each of them, detached.
        value_finite, gradient_finite: whether each value is finite, and its gradient; the gradient of a value that is
            not counts as finite, and so does one that nobody asked for.
        logs: what the loss measured beside its value, name → (n,) float32, detached.
        scale: s, by which the values are multiplied beside w: 1, or what balances the term.
    """

    images: int
    strength: float
    rows: list[int]
    values: Tensor
    value_finite: list[bool]
    gradient_finite: list[bool]
    logs: dict[str, Tensor] = field(default_factory=dict)
    scale: float = 1.0

    @property
    def gated(self) -> int:
        """Number of images it applied to."""
        return len(self.rows)

    @property
    def used(self) -> list[int]:
        """The places in `rows` and `values` of the images that enter the mix."""
        pairs = zip(self.value_finite, self.gradient_finite, strict=True)
        return [i for i, (value, gradient) in enumerate(pairs) if value and gradient]

    @property
    def finite(self) -> bool:
        """False if a value was NaN or infinite; the images of such values are left out."""
        return all(self.value_finite)

    @property
    def gradients_finite(self) -> bool:
        """False if a finite value had a gradient that is NaN or infinite; such images are left out too."""
        return all(self.gradient_finite)

    @property
    def raw(self) -> Tensor:
        """(N,) float32 values of the loss; NaN where the term did not apply."""
        return self._spread(self.values, self.rows, float("nan"))

    @property
    def weight(self) -> Tensor:
        """(N,) w_ij s_j that entered the mix: λ s where it applied and it and its gradient were finite, else 0."""
        rows = [self.rows[i] for i in self.used]
        return self._spread(self.values.new_full((len(rows),), self.strength * self.scale), rows, 0.0)

    @property
    def gate(self) -> Tensor:
        """(N,) bool, whether it applied."""
        return self._spread(torch.ones_like(self.values), self.rows, 0.0) > 0

    def numbers(self) -> TermNumbers:
        """For the log, without waiting for the device."""
        return TermNumbers(
            total=torch.where(torch.isfinite(self.values), self.values, 0).sum(),
            counted=sum(self.value_finite),
            gated=self.gated,
            nonfinite=self.gated - sum(self.value_finite),
            nonfinite_gradient=self.gated - sum(self.gradient_finite),
        )

    def _spread(self, values: Tensor, rows: list[int], elsewhere: float) -> Tensor:
        spread = values.new_full((self.images,), elsewhere)
        return spread.index_copy(0, on_device(rows, values.device), values)


@dataclass(frozen=True, eq=False)
class LossReport:
    """The loss of a step, with gradient, and its parts.

    Attributes:
        loss: scalar, with gradient: call backward on it.
        ldm: scalar, detached: the plain diffusion loss of all images, with its own weighting.
        terms: by name, in the order of the preset.
    """

    loss: Tensor
    ldm: Tensor
    terms: dict[str, TermReport]

    def numbers(self) -> Numbers:
        """What is logged of the step, still on the device, for `StepMeter`; what a loss measured beside its value
        under `<loss>/<name>`."""
        numbers = {name: term.numbers() for name, term in self.terms.items()}
        for name, term in self.terms.items():
            for log, values in term.logs.items():
                numbers[f"{name}/{log}"] = TermNumbers(values.sum(), term.gated, term.gated, 0, 0)
        return Numbers(self.loss.detach(), self.ldm, numbers)

    def logs(self) -> dict[str, float | None]:
        """Numbers for a log, as `StepMeter.mean` gives them. Waits for the device: call it after the backward pass."""
        numbers = self.numbers()
        meter = StepMeter(numbers.terms)
        meter.add(numbers)
        return meter.mean()[0]
