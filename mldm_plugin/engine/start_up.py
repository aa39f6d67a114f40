"""What happens only at the start of a run: the first steps are checked, and each loss is proved once.

first step                 what the host hands over is of the right kind and range
first 20 steps, and 20     z_t is α z₀ + σ ε, ẑ₀ from the target is z₀, the host's loss is the mean of b_i where
with a gated image         the mix is made of them, encode(picture) is z₀
first step with a gated    where the network is asked again (ddim.py): it answers the same, with a gradient
image
first step with what a     the loss has a gradient at the network's output; decode(z₀) resembles the picture
loss needs
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor

from mldm_plugin.engine.ddim import check_answers
from mldm_plugin.engine.gates import Gates
from mldm_plugin.engine.host_checks import check_base_loss, check_estimate, check_host, encoding_fault
from mldm_plugin.engine.mix import Combine, PlainLoss, host_error, needs_each
from mldm_plugin.engine.pictures import Pictures
from mldm_plugin.engine.proof import describe_cosines, proof_table, prove_term
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.engine.term import Term
from mldm_plugin.errors import CheckError
from mldm_plugin.perceptual.frozen import computing_in

log = logging.getLogger(__name__)

# The first steps, and the first with a gated image: a wrong convention may hide at some timesteps, not at all. Chosen.
CHECKED_STEPS = 20
# RMS error of decode(z₀) over the picture's standard deviation. 24 photographs through two small VAEs that were fitted
# to drawings: 0.26 to 0.60; latents that are 5.5 times too small 0.73 to 1.03, pictures in [0, 1] 0.91 to 2.32, noise
# 1.14 to 1.61; twice too large or too small 0.33 to 0.83, which `encoding_fault` alone tells. Chosen between them. A
# flat picture counts as one with a deviation of 0.2.
_MOST_MISSED, _LEAST_DEVIATION = 0.7, 0.2
_PICTURES = 4  # looked at, at most
_ANSWERS = 2  # asked for again, at most, so that it takes no more memory than a step with them


class StartUp:
    """The checks and proofs of a run that are still to be done. A stack lets go of it when there are none.

    Args:
        terms: those of the preset.
        plain: for the schedule, and whether the preset weighs the plain loss.
        pictures: how losses get their pictures.
        combine: for the table, and whether the plain loss of each image is needed.
        picture_check: what to do when decode(clean latents) does not resemble the picture.
        estimate_tolerance: relative error of ẑ₀(target) that is let pass.
        announce: where the table goes.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        plain: PlainLoss,
        pictures: Pictures,
        *,
        combine: Combine,
        picture_check: Literal["stop", "warn"],
        estimate_tolerance: float,
        announce: Callable[[str], None],
    ) -> None:
        self.unproven = {t.name for t in terms}
        self._terms, self._plain, self._pictures = terms, plain, pictures
        self._combine, self._picture_check, self._announce = combine, picture_check, announce
        self._estimate_tolerance = estimate_tolerance
        self._steps = 0
        self._asks = plain.schedule.answers > 1
        self._checks_left = CHECKED_STEPS

    @property
    def checks(self) -> bool:
        """Whether steps are still checked; a proof may have to wait longer, for an image that has what a loss needs."""
        return self._checks_left > 0

    @property
    def done(self) -> bool:
        """Whether nothing is left to check or to prove."""
        return not self.checks and not self.unproven

    def receive(self, step: DiffusionStep) -> None:
        """Look at a step before anything is computed from it; a wrong timestep would end in a device's assertion.

        Raises:
            CheckError: see `check_host`.
        """
        if self._steps:
            return
        check_host(self._plain.schedule, self._terms, step)
        weighted = step.base_weights is not None and bool((step.base_weights != 1).any())
        if weighted and self._plain.weighting is not None:
            log.warning("the trainer's own weighting and the preset's base weighting both apply.")

    def look(self, step: DiffusionStep, gates: Gates) -> None:
        """Check a step, and prove what it allows to prove.

        Raises:
            CheckError: a check failed.
            LossError: see `prove_term`.
        """
        checked = self.checks and (gates.any_open or self._steps < CHECKED_STEPS)
        self._steps += 1
        if checked:
            check_estimate(self._plain.schedule, step, self._estimate_tolerance)
            if step.base_loss is not None and needs_each(self._terms, self._combine, self._plain.weighting):
                check_base_loss(step.base_loss, host_error(step), step.other_loss)
        if any(gates.has[name] for name in self.unproven):
            self.prove(step, gates.has)
        if self._asks and gates.any_open:
            rows = sorted({row for of_term in gates.open.values() for row in of_term})[-_ANSWERS:]
            self._announce(f"  {check_answers(step, rows)}")
            self._asks = False
        if checked:
            self._check_encoding(step, gates)
            if gates.any_open or not self._terms:
                self._checks_left -= 1
            if not self.checks and self._pictures.decoder is not None:
                self._pictures.decoder.settle()

    def prove(self, step: DiffusionStep, has: dict[str, list[int]]) -> str:
        """Prove each unproven term on the first image that has what it needs; announce the table, and return it.

        Raises:
            CheckError: a term that is dead or not finite, or pictures that are not those of the latents.
            LossError: see `prove_term`.
        """
        pictures, schedule = self._pictures, self._plain.schedule
        notes = [self._picture_note(step)] if any("pred_images" in t.needs for t in self._terms) else []
        terms = [t for t in self._terms if t.name in self.unproven and has[t.name]]
        rows = [prove_term(t, step.select(has[t.name][:1]), schedule, pictures) for t in terms]
        if rows and (stand_in := pictures.differs_by(step)) and notes:
            notes.append(describe_cosines(stand_in, rows))
        notes += [pictures.describe(step)] if notes else []
        notes += [schedule.describe()]
        self.unproven -= {t.name for t in terms}
        if not self.checks and pictures.decoder is not None:
            pictures.decoder.settle()  # a late proof has brought float32 weights back
        table = proof_table(rows, self._combine, notes)
        self._announce(table)
        return table

    def _picture_note(self, step: DiffusionStep) -> str:
        """The clean latents must be those of the pictures, and decode to something that resembles them."""
        decoder = self._pictures.fitting(step)
        if step.pixel_values is None or not decoder.exact.can_decode:
            return ""
        step = step.select(range(min(_PICTURES, len(step))))
        latents = step.latents.detach()
        images = step.pixel_values.detach().to(latents.device, torch.float32)  # type: ignore[union-attr]
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False), computing_in(torch.float32):
            decoded = torch.cat([decoder.exact(z) for z in latents.float().split(1)]).clamp(-1, 1)
        missed = fmean(_missed(d, p) for d, p in zip(decoded, images, strict=True))
        fault = encoding_fault(decoder.exact, images, latents) if decoder.exact.can_encode else None
        if fault is None and missed <= _MOST_MISSED:
            distance = (decoded - images).abs().mean().item()
            return f"decode(clean latents) resembles the picture: mean absolute error {distance:.3f} of 2"
        text = (
            f"decode(clean latents) does not resemble the picture (its error is {missed:.2f} of the picture's standard "
            f"deviation, expected at most {_MOST_MISSED:g}){' or ' + fault if fault else ''}: wrong VAE, wrong "
            "scaling_factor or shift, or pictures that are not RGB in [-1, 1]."
        )
        if self._picture_check == "stop":
            raise CheckError(text + " For a VAE with random weights, set checks.picture: warn in the preset.")
        return "warning: " + text

    def _check_encoding(self, step: DiffusionStep, gates: Gates) -> None:
        """The clean latents of a later step must be those of its pictures, too.

        A loop may turn pictures over on the way, or read cached latents in another order than its pictures.
        """
        decoder = self._pictures.decoder
        rows = sorted({r for t in self._terms if "pred_images" in t.needs for r in gates.open[t.name]})[:_PICTURES]
        if self._picture_check != "stop" or not rows or step.pixel_values is None:
            return
        if decoder is None or not decoder.exact.can_encode:
            return
        seen = step.select(rows)
        fault = encoding_fault(decoder.exact, seen.pixel_values, seen.latents)  # type: ignore[arg-type]
        if fault is not None:
            raise CheckError(
                f"the clean latents are not those of the step's pictures: {fault}, though those of the first step "
                "were. Pictures or latents are changed, or mixed up, inside the loop, so masks would lie elsewhere."
            )


def _missed(decoded: Tensor, picture: Tensor) -> float:
    """RMS error of one decoded picture in standard deviations of it; unlike a correlation it sees scale and offset."""
    error = (decoded - picture).square().mean().sqrt()
    return (error / picture.std().clamp_min(_LEAST_DEVIATION)).nan_to_num(float("inf")).item()
