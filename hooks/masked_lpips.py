"""Masked LPIPS: perceptual distance on the people in a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mldm_plugin import DiffusionStep, hookimpl
from mldm_plugin.perceptual.lpips_network import LPIPSNetwork, weight_files
from mldm_plugin.perceptual.masked_distance import masked_squared_norm, masked_sum
from mldm_plugin.perceptual.unit_difference import weighted_square

LayerWeight = Annotated[float, Field(ge=0)]


def spatial_distance(
    predicted: Sequence[Tensor], target: Sequence[Tensor], channel_weights: Sequence[Tensor], mask: Tensor
) -> Tensor:
    """Σ_p M_p Σ_l (U_l Σ_c w_lc (f̂_lc − f_lc)²)_p for each image and mask: LPIPS's spatial map, masked and summed.

    Args:
        predicted: features, one (n, C_l, h_l, w_l) a layer; gradients flow.
        target: the same of the picture, unit-normalised.
        channel_weights: LPIPS's learned weights, one (1, C_l, 1, 1) a layer.
        mask: (n, K, H, W), K masks an image, in {0, 1} or between.

    Returns:
        (n, K), ≥ 0; 0 for an empty mask.
    """
    layers = zip(predicted, target, channel_weights, strict=True)
    return sum_layers([masked_sum(weighted_square(p, t, w), mask) for p, t, w in layers])


def feature_distance(
    predicted: Sequence[Tensor],
    target: Sequence[Tensor],
    layer_weights: Sequence[float],
    mask: Tensor,
    size: Tensor,
) -> Tensor:
    """Σ_l α_l ‖M ⊙ U_l (f̂_l − f_l)‖₂ / √size for each image and mask: eq. 2.

    Args:
        predicted, target: unit-normalised features, one (n, C_l, h_l, w_l) a layer; gradients flow.
        mask: as in `spatial_distance`.
        layer_weights: α_l.
        size: (n, K), what the squared norm is divided by, > 0.

    Returns:
        (n, K), ≥ 0; 0, with gradient 0, for an empty mask and for equal features.
    """
    layers = zip(predicted, target, layer_weights, strict=True)
    return sum_layers([a * _root(masked_squared_norm(p - t, mask) / size) for p, t, a in layers])


def sum_layers(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum(dim=0)


def split_people(label_map: Tensor) -> Tensor:
    """One mask a person, (n, K, H, W) bool, from a label map (n, 1, H, W) with K different labels above 0."""
    # There is a background for certain, so it need not be asked for: a GPU is waited for once instead of twice.
    people = (label_map * (label_map > 0)).flatten()
    labels = torch.cat([people.new_zeros(1), people]).unique()[1:]
    return label_map == labels[None, :, None, None]


def _root(squared: Tensor) -> Tensor:
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1).sqrt(), 0)


class MaskedLPIPS:
    """LPIPS between the decoded estimate and the picture, on the people alone.

    `form: spatial` is what the released code computes: LPIPS's spatial map, times the mask, over its area.
    `form: features` is eq. 2: each layer's features upsampled to the picture, masked, and their L2 distance
    taken for each person. The paper leaves open which features and which α: here they are unit-normalised as in
    LPIPS and α is 1/5 a layer (chosen), so that a person's value lies between 0 and 2 whatever their size.

    Args:
        form: `spatial` or `features`.
        people: `union` takes all people of a picture as one mask, `each` sums over them as eq. 2 does; null
            means `union` for spatial and `each` for features, as published.
        divide_by: `area` of the mask, so that a small person counts as much as a large one, or `image`, the
            number of pixels of the picture, so that they count by their size.
        layer_weights: α of the five layers, for `features` only.
        network: `vgg`, the one of the paper, or `alex`, a twentieth of its arithmetic.
        weights: `pretrained`, or `random` (seeded), for tests and demonstrations.

    Source: "Improving Latent Diffusion with Perceptual Mask-Aware Loss", eq. 2; Zhang et al., "The Unreasonable
    Effectiveness of Deep Features as a Perceptual Metric". Differs from the released code: an empty mask is 0
    instead of 0/0, nothing is clamped, and there is a gradient.
    """

    needs = frozenset({"pred_images", "person_mask"})
    weight_files = staticmethod(weight_files)

    def __init__(
        self,
        *,
        form: Literal["spatial", "features"] = "spatial",
        people: Literal["union", "each"] | None = None,
        divide_by: Literal["area", "image"] = "area",
        layer_weights: tuple[LayerWeight, LayerWeight, LayerWeight, LayerWeight, LayerWeight] = (0.2,) * 5,
        network: Literal["vgg", "alex"] = "vgg",
        weights: Literal["pretrained", "random"] = "pretrained",
    ) -> None:
        self.form = form
        self.people = people or ("union" if form == "spatial" else "each")
        self.divide_by = divide_by
        self.layer_weights = layer_weights
        self.network = LPIPSNetwork(network, weights)
        self.networks = self.network.networks

    def __call__(self, step: DiffusionStep) -> Tensor:
        """(n,) one value per image, ≥ 0, 0 without people; gradient to `step.pred_images`."""
        with torch.no_grad():  # first, while nothing is kept for the backward pass yet
            target = self.network(step.target_images)
        spatial = self.form == "spatial"
        predicted = self.network.features(step.pred_images) if spatial else self.network(step.pred_images)
        label_map = step.person_mask.to(step.pred_images.device, non_blocking=True)
        mask = (label_map > 0 if self.people == "union" else split_people(label_map)).to(predicted[0].dtype)
        area = mask.sum(dim=(-2, -1))
        size = area.clamp_min(1) if self.divide_by == "area" else torch.full_like(area, label_map[0].numel())
        if spatial:
            weights = self.network.channel_weights(predicted[0])
            return (spatial_distance(predicted, target, weights, mask) / size).sum(dim=1)
        return feature_distance(predicted, target, self.layer_weights, mask, size).sum(dim=1)


@hookimpl
def register_losses(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("masked_lpips", MaskedLPIPS)
