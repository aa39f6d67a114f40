"""Masked LPIPS as it is computed with the `lpips` package, and eq. 2 as it is written."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import lpips
import torch
from torch import Tensor
from torch.nn import functional as F

from mldm_plugin.perceptual.frozen import build_seeded


def lpips_package() -> Any:
    """`lpips.LPIPS(net="vgg", spatial=True)`, frozen; its VGG16 has the random weights of the plugin's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips 0.1.4 calls torchvision's deprecated `pretrained=`
        model = build_seeded(lambda: lpips.LPIPS(net="vgg", pnet_rand=True, spatial=True, verbose=False))
    return model.eval().requires_grad_(False)


def spatial_times_mask(model: Any, pred_images: Tensor, target_images: Tensor, mask: Tensor) -> Tensor:
    """LPIPS's map of each image, (N, 1, H, W), times the mask, over the mask's area: (N,).

    Args:
        model: `lpips_package()`.
        pred_images, target_images: (N, 3, H, W) in [-1, 1].
        mask: (N, 1, H, W) in {0, 1}.
    """
    distance = model(pred_images, target_images)
    return (distance * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))


def features(model: Any, images: Tensor) -> list[Tensor]:
    """Unit-normalised features of each layer, by the lpips package's own functions."""
    return [lpips.normalize_tensor(f) for f in model.net(model.scaling_layer(images))]


def upsample_then_mask(
    predicted: Sequence[Tensor], target: Sequence[Tensor], layer_weights: Sequence[float], mask: Tensor
) -> Tensor:
    """Eq. 2 to the letter: Σ_l α_l ‖VGG^l(ĉ) − VGG^l(c)‖₂ / √area of one masked person, (N,).

    c is the picture cut out by the mask. Features know no person, so each layer's are brought to the size of the
    picture and then masked.

    Source: "Improving Latent Diffusion with Perceptual Mask-Aware Loss", eq. 2.
    """
    area = mask.sum(dim=(1, 2, 3))
    total = torch.zeros_like(area)
    for alpha, p, t in zip(layer_weights, predicted, target, strict=True):
        size = mask.shape[-2:]
        person_p = F.interpolate(p, size=size, mode="bilinear", align_corners=False) * mask
        person_t = F.interpolate(t, size=size, mode="bilinear", align_corners=False) * mask
        total = total + alpha * ((person_p - person_t).square().sum(dim=(1, 2, 3)) / area).sqrt()
    return total
