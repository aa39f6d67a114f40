"""The plain loss of a step, and its mix with the terms: eq. 3."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mldm_plugin.engine.host_loss import own_gradient
from mldm_plugin.engine.report import LossReport, TermReport
from mldm_plugin.engine.schedule import NoiseSchedule
from mldm_plugin.engine.step import DiffusionStep, on_device
from mldm_plugin.perceptual.known_gradient import Known, with_gradient

Combine = Literal["convex", "additive"]


@dataclass(frozen=True)
class PlainLoss:
    """b_i: the host's own loss, or the squared error with the preset's weighting.

    Args:
        schedule: for the SNR.
        weighting: factor on the squared error of ε by SNR, or None for the host's own loss.
    """

    schedule: NoiseSchedule
    weighting: Callable[[Tensor], Tensor] | None = None

    def __call__(self, step: DiffusionStep) -> Tensor:
        """The plain loss of a step, a scalar with gradient: the host's own, unless it has none or the preset weighs."""
        if step.base_loss is not None and self.weighting is None:
            return step.base_loss
        own = self.of_each(step).mean()
        return own if step.other_loss is None else own + step.other_loss

    def of_each(self, step: DiffusionStep) -> Tensor:
        """b_i of each image, (n,) float32, with the host's weights and the preset's weighting."""
        error = host_error(step)
        if self.weighting is not None:
            snr = self.schedule.snr(step.timesteps, step.sigmas).clamp(max=1e8)
            error = error * (self.weighting(snr) * self.schedule.epsilon_factor(snr)).to(error)
        return error

    def gradient(self, step: DiffusionStep, *, whole: bool) -> Tensor:
        """∂b_i/∂p_i at the output p_i of each image, (n, C, h, w) float32, detached.

        Args:
            whole: whether the host's own loss stays in the mix as it is, of whatever form: then it is asked, if it was
                computed from the `model_pred` of the step itself, and its part of each image is taken n-fold. The
                squared error stands for it where something waits for that gradient to come by, as FSDP2 does on every
                process, for this one alone must not call it.
        """
        called = bool(step.model_pred._backward_hooks)
        if whole and step.base_loss is not None and self.weighting is None and not called:
            own = own_gradient(step.model_pred, step.base_loss)
            if own is not None:
                return own * len(step)
        leaf = step.model_pred.detach().float().requires_grad_()
        with torch.enable_grad():
            (own,) = torch.autograd.grad(self.of_each(replace(step, model_pred=leaf)).sum(), leaf)
        return own


def needs_each(terms: Collection[object], combine: Combine, weighting: object | None) -> bool:
    """Whether the loss of a step is made of b_i, so that the host's loss has to be of that form.

    The convex mix takes a share of b_i away, and a weighting multiplies it. `additive` keeps the host's scalar whole.
    """
    return weighting is not None or (combine == "convex" and len(terms) > 0)


def host_error(step: DiffusionStep) -> Tensor:
    """The squared error of each image, (n,) float32, with the host's own weights."""
    error = ((step.model_pred.float() - step.target.float()) ** 2).flatten(1).mean(dim=1)
    return error if step.base_weights is None else error * step.base_weights.flatten().to(error)


def mix(
    step: DiffusionStep, terms: dict[str, TermReport], known: Sequence[Known], plain: PlainLoss, combine: Combine
) -> LossReport:
    """The loss of a step: the plain loss plus a correction from the gated images alone.

        convex:    Σ_ij w_ij (s_j L_ij − b_i) / N
        additive:  Σ_ij w_ij s_j L_ij / N

    s_j is 1 but for a term that is balanced (balance.py). A step without a gated image is the plain loss to the bit.

    Args:
        terms, known: as `evaluate` gives them (early_backward.py).

    Source: "Improving Latent Diffusion with Perceptual Mask-Aware Loss", eq. 3, taken for each image.
    """
    loss = plain_loss = plain(step)
    values, replaced = [], []
    for report in terms.values():
        if not (used := report.used) or not report.strength:
            continue
        share = report.strength / len(step)
        values.append(report.values[on_device(used, report.values.device)].sum() * (share * report.scale))
        if combine == "convex":
            replaced.append(plain.of_each(step.select([report.rows[i] for i in used])).sum() * share)
    if values:
        added = torch.stack(values).sum()
        for of, gradient in known:
            added = with_gradient(added, of, gradient)
        loss = plain_loss + (added - torch.stack(replaced).sum() if replaced else added)
    return LossReport(loss, plain_loss.detach(), terms)
