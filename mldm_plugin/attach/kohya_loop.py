"""The training step of kohya's scripts: collected from the methods it is spread over, weighed as the script does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mldm_plugin.attach.scope import Scope
from mldm_plugin.errors import CheckError
from mldm_plugin.step import DiffusionStep

# How far the script's gradient at the network's output may be from a weighted squared error's, relative to it: bfloat16
# rounds to 4e-3; a Huber loss, an absolute error or a mask differ by 0.1 and more. Chosen.
_REST = 0.02


class Notes:
    """What the methods of a trainer class had in their variables when they returned."""

    def __init__(self) -> None:
        self.factor: float | None = None  # that latents are multiplied by
        self._variables: dict[str, Any] = {}

    def add(self, variables: Mapping[str, Any]) -> None:
        """Keep the variables of a method until the loss comes by; those of a validation step are left."""
        if variables.get("is_train") is not False:
            self._variables.update(variables)

    def take(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The variables of the training loop and all that was noted for this step, which is forgotten here."""
        noted, self._variables = self._variables, {}
        return {**variables, **noted}


def turned(step: DiffusionStep) -> DiffusionStep:
    """Lumina's network answers z₀ − ε; with both signs turned that is the flow which the noise schedule knows."""
    if torch.equal(step.target, step.latents - step.noise):
        return replace(step, model_pred=-step.model_pred, target=-step.target)
    return step


def weighted(step: DiffusionStep, scope: Scope) -> DiffusionStep:
    """`step` with the script's own factor on each image's squared error, whatever flags it comes from.

    The factor is read off the gradient of the script's loss at the network's output: with
    loss = Σ_i w_i ‖p_i − t_i‖² / (N d), the gradient there is 2 w_i (p_i − t_i) / (N d). This goes back from the loss
    to the output alone, not through the network.

    Raises:
        CheckError: the loss is something else, so that the plain loss of an image is not known.
    """
    pred, loss = step.model_pred, step.base_loss
    if loss is None or not pred.requires_grad:
        return step
    scale = torch.full_like(loss, pred.numel() / 2)
    (gradient,) = torch.autograd.grad(loss, pred, grad_outputs=scale, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise CheckError("the script's loss does not depend on the network's output that was found in its variables.")
    gradient = gradient.float().flatten(1)
    difference = (pred.detach().float() - step.target.detach().float()).flatten(1)
    square = difference.square().sum(dim=1)
    weights = (gradient * difference).sum(dim=1) / square.clamp_min(torch.finfo(torch.float32).tiny)
    rest = ((gradient - weights[:, None] * difference).norm() / gradient.norm()).nan_to_num().item()
    if rest > _REST:
        raise CheckError(
            f"the script's loss is not each image's squared error times a factor (its gradient differs by {rest:.2g}, "
            f"expected at most {_REST:g}), so what a pixel loss would take the place of is not known{_why(scope)}."
        )
    return replace(step, base_weights=weights)


def _why(scope: Scope) -> str:
    reasons = []
    if (kind := scope.option("loss_type", "l2")) != "l2":
        reasons.append(f"--loss_type {kind}: train with --loss_type l2")
    if scope.option("masked_loss") or scope.batch.get("alpha_masks") is not None:
        reasons.append("--masked_loss or --alpha_mask: leave them out, the plugin has masks of its own")
    return ", because of " + " and ".join(reasons) if reasons else ""


def autoencoder(vae: Any, factor: float | None) -> tuple[Any, float | None]:
    """An autoencoder of diffusers, and the factor of the script where it is not in the autoencoder's config.

    Args:
        vae: what the script encodes with; one of kohya's own, of Flux and SD3, is put in the form of diffusers.
        factor: that the script multiplies its latents by, or None.
    """
    if hasattr(vae, "config"):
        return vae, factor
    if hasattr(vae, "process_in"):  # SD3
        zero, one = (vae.process_in(x) for x in (0.0, 1.0))
        return _Autoencoder(vae, one - zero, -zero / (one - zero)), None
    if hasattr(vae, "shift_factor") and hasattr(vae, "scale_factor"):  # Flux
        return _Autoencoder(vae, vae.scale_factor, vae.shift_factor), None
    return vae, None


@dataclass(frozen=True)
class _Config:
    scaling_factor: float
    shift_factor: float
    block_out_channels: tuple[int, ...]

    def get(self, name: str) -> Any:
        return getattr(self, name, None)


class _Autoencoder(nn.Module):
    """kohya's encoder and decoder of Flux or SD3, called as diffusers' autoencoders are; scaling is left to the caller.

    Encoding gives the mean: no random numbers are drawn.
    """

    def __init__(self, vae: Any, scaling_factor: float, shift_factor: float) -> None:
        super().__init__()
        self.encoder, self.decoder = vae.encoder, vae.decoder
        self.config = _Config(scaling_factor, shift_factor, (1,) * vae.decoder.num_resolutions)

    def encode(self, images: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (self.encoder(images).chunk(2, dim=1)[0],)

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (self.decoder(latents),)
