"""What a script's loss makes of each image, read off its gradient at the network's output.

Whatever flags and formulas it comes from, a script's loss is understood here as

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


@dataclass(frozen=True)
class HostLoss:
    """The parts of a script's loss.

    Args:
        weights: (N,) w_i, detached.
        rest: scalar, with the gradient it has to other things than these outputs.
        deviation: scalar, how far its gradient is from that of a weighted squared error, relative to it.
        hint: what in the script is known to make its loss something else, for the error.
    """

    weights: Tensor
    rest: Tensor
    deviation: Tensor
    hint: str = ""

    def check(self) -> None:
        """Whether the loss is of this form at all. Waits for the device, so it is asked where the form matters.

        Raises:
            CheckError: it is not, so that the plain loss of an image is not known.
        """
        deviation = self.deviation.item()
        if deviation > _DEVIATION:
            raise CheckError(
                "the script's loss is not the squared error of each image times a factor (its gradient at the "
                f"network's output differs by {deviation:.2g}, expected at most {_DEVIATION:g}), so what a pixel loss "
                f"would take the place of is not known{self.hint}. Use the library form (docs/attach.md)."
            )


def gradient_at(output: Tensor, loss: Tensor) -> Tensor:
    """∂loss/∂output, detached, in the shape of `output`. Goes back from the loss to the output, not into the network.

    Raises:
        CheckError: the loss does not depend on it.
    """
    gradient = _gradient(output, loss, output.numel() / 2)  # half precision underflows without the factor
    if gradient is not None and torch.float16 in (output.dtype, loss.dtype) and not torch.isfinite(gradient).all():
        gradient = _gradient(output, loss, 1.0)  # and may overflow with it
    if gradient is None:
        raise CheckError(
            "the script's loss does not depend on the network's output that was found in its variables: this script's "
            "loop is not one that can be followed. Use the library form (docs/attach.md)."
        )
    return gradient


def _gradient(output: Tensor, loss: Tensor, scale: float) -> Tensor | None:
    if not output.requires_grad or not loss.requires_grad:
        return None
    seed = torch.full_like(loss, scale)
    (gradient,) = torch.autograd.grad(loss, output, grad_outputs=seed, retain_graph=True, allow_unused=True)
    return None if gradient is None else gradient.detach().float() / scale


def take_apart(loss: Tensor, gradient: Tensor, pred: Tensor, target: Tensor, hint: str = "") -> HostLoss:
    """The weights of the images and the rest of a script's loss.

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
    return HostLoss(weights, rest, deviations.nan_to_num(0.0, 0.0, 0.0).max(), hint)
