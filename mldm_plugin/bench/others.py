"""How others do what the plugin does, each written plainly, with gradient.

The ways to decide which images to decode take the losses, weights and T of a stack, so that a difference in time is one
of strategy. Masked LPIPS stands here as it is computed with the `lpips` package, and eq. 2 as it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import lpips
import torch
from torch import Tensor
from torch.nn import functional as F

from mldm_plugin.bench.measure import TIMESTEPS
from mldm_plugin.decode.stages import decoded
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.engine.term import Term
from mldm_plugin.perceptual.lpips_network import lpips_model


@dataclass
class DecodeEverything:
    """Decode every image of the batch with gradient, then mask out the losses of those above T.

    Source: Li et al., "ControlNet++: Improving Conditional Controls with Efficient Consistency Feedback", whose
    released train/reward_control.py multiplies the reward loss of each image by `timestep_mask`.

    Args:
        stack: gives the terms and how they are mixed, nothing else.
        vae: decodes in its own precision.
        noise_scheduler: the trainer's.
    """

    stack: LossStack
    vae: Any
    noise_scheduler: Any

    def __call__(self, step: DiffusionStep) -> Tensor:
        with self.stack.pictures.in_its_precision(step):
            return self.mixed(self.decode_all(step), self.stack.terms)

    def mixed(self, step: DiffusionStep, terms: Sequence[Term]) -> Tensor:
        """The plain loss and `terms`, the losses of every image computed and then masked by its gate."""
        error = (step.model_pred.float() - step.target.float()).square().mean(dim=(1, 2, 3))
        total = error
        for term in terms:
            inside = step.timesteps <= (TIMESTEPS if term.max_timestep is None else term.max_timestep)
            mask = inside * term.weight
            total = total + mask * (term.evaluate(step)[0] - (error if self.stack.combine == "convex" else 0))
        return total.mean()

    def decode_all(self, step: DiffusionStep) -> DiffusionStep:
        """`step` with the decoded one-step estimate of every image, and what it is compared with."""
        alphas_cumprod = self.noise_scheduler.alphas_cumprod.to(step.timesteps.device)[step.timesteps]
        alphas_cumprod = alphas_cumprod[:, None, None, None]
        noisy, model_pred = step.noisy_latents.float(), step.model_pred.float()
        pred_latents = (noisy - (1 - alphas_cumprod).sqrt() * model_pred) / alphas_cumprod.sqrt()
        features = "pred_features" in self.stack.needs
        target_images, target_features = step.pixel_values, None
        if features or self.stack.pictures.target == "decoded":
            with torch.no_grad():
                target_decoded, target_features = decode_with_features(self.vae, step.latents, features)
            if self.stack.pictures.target == "decoded":
                target_images = target_decoded
        seen: dict[str, Any] = {"target_images": target_images, "target_features": target_features}
        seen["pred_images"], seen["pred_features"] = decode_with_features(self.vae, pred_latents, features)
        return replace(step, **seen)


@dataclass
class WholeBatchGate(DecodeEverything):
    """One timestep for the whole batch: decode all of it at or below T, nothing above.

    Source: the released code of "Improving Latent Diffusion with Perceptual Mask-Aware Loss" (mldm/mldm.py), which
    draws one t a batch; it decoded without gradient, here there is one. A loss without a gate, which looks at latents
    alone, is computed above T, too.
    """

    def __call__(self, step: DiffusionStep) -> Tensor:
        limits = [term.max_timestep for term in self.stack.terms if term.max_timestep is not None]
        if int(step.timesteps[0]) <= max(limits):
            return super().__call__(step)
        always = [term for term in self.stack.terms if term.max_timestep is None]
        return self.mixed(step, always) if always else plain_loss(step)


def plain_loss(step: DiffusionStep) -> Tensor:
    """A trainer without any loss on pixels."""
    if step.base_loss is None:
        raise ValueError("the step has no base_loss")
    return step.base_loss


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Pictures, float32."""
    return vae.decode((latents / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0].float()


def decode_with_features(vae: Any, latents: Tensor, features: bool) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """Pictures and, if wanted, the features of the decoder's stages, float32."""
    if not features:
        return decode(vae, latents), None
    pictures, found = decoded(vae, (latents / vae.config.scaling_factor).to(vae.dtype), features=True)
    return pictures.float(), tuple(feature.float() for feature in found)


def lpips_package() -> Any:
    """`lpips.LPIPS(net="vgg", spatial=True)`, frozen; its VGG16 has the random weights of the plugin's."""
    return lpips_model("vgg", spatial=True).eval().requires_grad_(False)


def spatial_times_mask(model: Any, pred_images: Tensor, target_images: Tensor, mask: Tensor) -> Tensor:
    """LPIPS's map of each image, (N, 1, H, W), times the mask, over the mask's area: (N,).

    Args:
        model: `lpips_package()`.
        pred_images, target_images: (N, 3, H, W) in [-1, 1].
        mask: (N, 1, H, W) in {0, 1}.
    """
    distance = model(pred_images, target_images)
    return (distance * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))


def lpips_features(model: Any, images: Tensor) -> list[Tensor]:
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
