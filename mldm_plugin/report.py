"""What a step did: every term's raw value, weight and gate, per image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mldm_plugin.step import DiffusionStep
from mldm_plugin.term import Term


@dataclass(frozen=True, eq=False)
class TermReport:
    """One term in one step of N images.

    Attributes:
        raw: (N,) float32 values of the loss, detached; NaN where the term did not apply.
        weight: (N,) w_ij that entered the mix: λ where it applied and was finite, else 0.
        gate: (N,) bool, whether it applied.
        gated: number of images it applied to.
        finite: False if the term was left out of this step because a value was NaN or infinite.
        gradient_stopped: True if in the step before its gradient was NaN or infinite, and was not let through.
    """

    raw: Tensor
    weight: Tensor
    gate: Tensor
    gated: int
    finite: bool
    gradient_stopped: bool

    @classmethod
    def of(cls, term: Term, rows: list[int], values: Tensor | None, finite: bool, step: DiffusionStep) -> TermReport:
        """The report of a term that gave `values` on the images `rows` of `step`."""
        raw = step.latents.new_full((len(step),), float("nan"), dtype=torch.float32)
        gate = raw.new_zeros(len(step), dtype=torch.bool)
        if values is not None:
            raw[rows] = values.detach()
            gate[rows] = True
        return cls(raw, gate * (term.weight if finite else 0.0), gate, len(rows), finite, term.gradient_stopped)


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
        """Numbers for a log: `loss`, `ldm`, and for each term its mean over the images it applied to, or None
        where it applied to none or was not finite, and under `<name>_gated` their count. `<name>_nonfinite` is 1 where
        the term was left out, `<name>_nonfinite_gradient` where its gradient of the step before was.

        Synchronises with the device.
        """
        result: dict[str, float | None] = {"loss": self.loss.item(), "ldm": self.ldm.item()}
        for name, term in self.terms.items():
            result[name] = term.raw[term.gate].mean().item() if term.gated and term.finite else None
            result[f"{name}_gated"] = float(term.gated)
            if not term.finite:
                result[f"{name}_nonfinite"] = 1.0
            if term.gradient_stopped:
                result[f"{name}_nonfinite_gradient"] = 1.0
        return result
