"""What a step did: every term's raw value, weight and gate, per image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mldm_plugin.engine.early_backward import TermValues
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.engine.term import Term


@dataclass(frozen=True, eq=False)
class TermReport:
    """One term in one step of N images.

    Attributes:
        raw: (N,) float32 values of the loss, detached; NaN where the term did not apply.
        weight: (N,) w_ij that entered the mix: λ where it applied and it and its gradient were finite, else 0.
        gate: (N,) bool, whether it applied.
        gated: number of images it applied to.
        finite: False if a value was NaN or infinite; the images of such values are left out.
        gradient_finite: False if a finite value had a gradient that is NaN or infinite; likewise.
    """

    raw: Tensor
    weight: Tensor
    gate: Tensor
    gated: int
    finite: bool
    gradient_finite: bool

    @classmethod
    def of(cls, term: Term, given: TermValues | None, step: DiffusionStep) -> TermReport:
        """The report of a term by what it gave on `step`, None where it applied to no image."""
        raw = step.latents.new_full((len(step),), float("nan"), dtype=torch.float32)
        gate = raw.new_zeros(len(step), dtype=torch.bool)
        weight = torch.zeros_like(raw)
        if given is None:
            return cls(raw, weight, gate, 0, True, True)
        raw[given.rows] = given.values
        gate[given.rows] = True
        weight[given.rows] = term.weight * weight.new_tensor(given.used)
        return cls(raw, weight, gate, len(given.rows), all(given.finite), given.gradients_finite)


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

    def logs(self) -> dict[str, float | None]:
        """Numbers for a log: `loss`, `ldm`, and for each term its mean over the images it applied to and was finite
        on, or None without any, and under `<name>_gated` the count of those it applied to. `<name>_nonfinite` is 1
        where a value was left out, `<name>_nonfinite_gradient` where a finite value was for its gradient.

        Synchronises with the device.
        """
        result: dict[str, float | None] = {"loss": self.loss.item(), "ldm": self.ldm.item()}
        for name, term in self.terms.items():
            seen = term.raw[term.raw.isfinite()] if term.gated else term.raw[:0]
            result[name] = seen.mean().item() if len(seen) else None
            result[f"{name}_gated"] = float(term.gated)
            if not term.finite:
                result[f"{name}_nonfinite"] = 1.0
            if not term.gradient_finite:
                result[f"{name}_nonfinite_gradient"] = 1.0
        return result
