"""What a host's loss makes of each image, read off its gradient at the network's output.

Whatever flags and formulas it comes from, a host's loss is understood here as

    loss = Σ_i w_i ‖p_i − t_i‖² / (N d) + rest,

with d elements an image and a rest that does not depend on these outputs p (prior preservation, regularisers). Its
gradient at p_i is then 2 w_i (p_i − t_i) / (N d), which gives w_i and shows whether the loss is of this form at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mldm_plugin.errors import CheckError

# How far the gradient may be from a weighted squared error's, relative to it: bfloat16 rounds to 4e-3; a Huber loss, an
# absolute error or a mask differ by 0.1 and more. Chosen.
_DEVIATION = 0.02
_ASTRAY = 0.05  # of its gradient; rounding turns the sign of next to nothing. Chosen.


@dataclass(frozen=True)
class HostLoss:
    """The parts of a host's loss: what `DiffusionStep` takes as `base_weights` and `other_loss`.

    Args:
        weights: (N,) w_i, detached.
        rest: scalar, with the gradient it has to other things than these outputs.
        deviation: scalar, how far its gradient is from that of a weighted squared error, relative to it.
        against: scalar, the share of its gradient that pushes outputs away from their targets.
        hint: what in the host is known to make its loss something else, for the error.
    """

    weights: Tensor
    rest: Tensor
    deviation: Tensor
    against: Tensor
    hint: str = ""

    @property
    def fits(self) -> bool:
        """Whether the loss is of this form at all. Waits for the device, so it is asked where the form matters."""
        return self.deviation.item() <= _DEVIATION

    @property
    def astray(self) -> bool:
        """Whether it is not of this output and target: a loss of each element, Huber's or a masked one, pulls each to
        its target, whatever its form. Waits for the device."""
        return self.against.item() > _ASTRAY

    def check(self, *, weighted: bool = False) -> None:
        """Stop where the plain loss of each image has to be known and is not.

        Args:
            weighted: whether the preset has a weighting of the plain loss, which no `combine` does without.

        Raises:
            CheckError: the loss is not of this form.
        """
        if self.fits:
            return
        why = (
            "the preset's base.weighting multiplies just that: leave it out, --set 'base={weighting: none}'"
            if weighted
            else "combine: convex takes a share of each image's plain loss away, and so has to know it: --set "
            "combine=additive takes any loss and adds to it (docs/attach.md)"
        )
        raise CheckError(
            "the script's loss is not the squared error of each image times a factor (its gradient at the network's "
            f"output differs by {self.deviation.item():.2g}, expected at most {_DEVIATION:g}){self.hint}; {why}."
        )


def read_host_loss(loss: Tensor, model_pred: Tensor, target: Tensor) -> HostLoss:
    """The host's own weights of the images, read off its loss: for a loop whose weighting is not at hand.

    Waits for the device. The graph of `loss` is kept, and no gradient is left anywhere.

    Args:
        loss: the host's scalar, as it would call backward on.
        model_pred: the network's output that it was computed from, (N, …).
        target: what that is compared with, (N, …).

    Returns:
        its parts, for `DiffusionStep(…, base_weights=parts.weights, other_loss=parts.rest)`.

    Raises:
        CheckError: `loss` does not depend on `model_pred`, or is not of this form; a preset with combine: additive
            needs no parts.

    >>> output = torch.tensor([[3.0], [1.0]], requires_grad=True)
    >>> loss = (torch.tensor([0.5, 2.0]) * output.square().mean(1)).mean() + 7
    >>> parts = read_host_loss(loss, output, torch.zeros(2, 1))
    >>> parts.weights, parts.rest.item()
    (tensor([0.5000, 2.0000]), 7.0)
    """
    parts = take_apart(loss, gradient_at(model_pred, loss), model_pred, target)
    parts.check()
    return parts


def gradient_at(output: Tensor, loss: Tensor) -> Tensor:
    """∂loss/∂output, detached, in the shape of `output`. Goes back from the loss to the output, not into the network.

    Raises:
        CheckError: the loss does not depend on it.
    """
    gradient = own_gradient(output, loss)
    if gradient is None:
        raise CheckError(
            "the script's loss does not depend on the network's output that was found in its variables: this script's "
            "loop is not one that can be followed. Use the library form (docs/attach.md)."
        )
    return gradient


def own_gradient(output: Tensor, loss: Tensor) -> Tensor | None:
    """As `gradient_at`; None where the loss does not depend on the output."""
    gradient = _gradient(output, loss, output.numel() / 2)  # half precision underflows without the factor
    if gradient is not None and torch.float16 in (output.dtype, loss.dtype) and not torch.isfinite(gradient).all():
        gradient = _gradient(output, loss, 1.0)  # and may overflow with it
    return gradient


def _gradient(output: Tensor, loss: Tensor, scale: float) -> Tensor | None:
    if not output.requires_grad or not loss.requires_grad:
        return None
    seed = torch.full_like(loss, scale)
    (gradient,) = torch.autograd.grad(loss, output, grad_outputs=seed, retain_graph=True, allow_unused=True)
    return None if gradient is None else gradient.detach().float() / scale


def take_apart(loss: Tensor, gradient: Tensor, pred: Tensor, target: Tensor, hint: str = "") -> HostLoss:
    """The weights of the images and the rest of a host's loss.

    Args:
        loss: scalar.
        gradient: of `loss` at `pred`, as `gradient_at` gives it, (N, …).
        pred, target: (N, …).
        hint: as for `HostLoss`.
    """
    difference = (pred.float() - target.detach().float()).flatten(1)
    slope = gradient.flatten(1) * (pred.numel() / 2)
    square = difference.detach().square().sum(dim=1)
    weights = (slope * difference.detach()).sum(dim=1) / square.clamp_min(torch.finfo(torch.float32).tiny)
    # An image whose slope is 0 or not finite says nothing: the host's own loss is not finite then.
    deviations = (slope - weights[:, None] * difference.detach()).norm(dim=1) / slope.norm(dim=1)
    weights = weights.nan_to_num(0.0, 0.0, 0.0)
    rest = loss - (weights * difference.square().mean(dim=1)).mean()
    pull = (slope * difference.detach()).nan_to_num(0.0, 0.0, 0.0)
    against = pull.clamp_max(0).abs().sum() / pull.abs().sum().clamp_min(torch.finfo(torch.float32).tiny)
    return HostLoss(weights, rest, deviations.nan_to_num(0.0, 0.0, 0.0).max(), against, hint)
