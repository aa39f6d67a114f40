"""Keypoints loss: hands and bodies as networks that find keypoints see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mldm_plugin import DiffusionStep, hookimpl
from mldm_plugin.errors import DataError
from mldm_plugin.perceptual.limb_features import LimbFeatures, weight_files
from mldm_plugin.perceptual.limb_squares import body_squares, hand_squares

_NAMES = {"hands": ("hands",), "bodies": ("bodies",), "both": ("hands", "bodies")}
_NETWORKS = {"hands": "mediapipe_hand", "bodies": "mediapipe_pose"}
# Of a hand's square, in forearms: from before the wrist to beyond the fingertips. Chosen.
EXTENT = 1.1
# A square with a quarter of the picture's side weighs 1. Chosen.
ORDINARY = 0.25


def feature_distance(pred: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """d_k = mean_l mean_p (1 − cos(φ̂_lp, φ_lp)) of each hand or body k, over stages l and places p.

    Args:
        pred: φ̂, L stages (K, h, w, C); gradients flow.
        target: φ, the same of the photograph.

    Returns:
        (K,) in [0, 2]: 0 for features of the same direction.

    >>> phi = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 1, 2, 2)
    >>> feature_distance([phi, phi], [phi, phi.flip(2)])  # the same, and orthogonal
    tensor([0.5000])
    """
    stages = zip(pred, target, strict=True)
    return torch.stack([(1 - F.cosine_similarity(p, t, dim=3)).mean((1, 2)) for p, t in stages]).mean(dim=0)


def smallness(sides: Tensor, picture: float, power: float) -> Tensor:
    """w_k = (S / (4 s_k))^γ of squares with `sides` s, (K,), in a picture whose side is S: (K,) > 0.

    >>> smallness(torch.tensor([4.0, 2.0]), picture=16, power=0.5)
    tensor([1.0000, 1.4142])
    """
    return (ORDINARY * picture / sides.clamp_min(1)) ** power


class Keypoints:
    """Cosine distance of MediaPipe's features of hands and bodies, of estimate and photograph, at the same squares.

    Where hands and bodies are is told by the photograph's keypoints. What is compared is what the networks make of
    them on the way to keypoints, not the keypoints themselves: those networks believe in hands and bodies,
    so their answers tell a wrong hand from a right one less well (docs/losses/keypoints.md).

    Args:
        of: `hands`, `bodies`, or `both`, whose values are added.
        weights: `pretrained`, or `random` (seeded, for tests and demos).
        smallness: γ, by which a small hand weighs more, (side of the picture / (4 · side of its square))^γ; 0 weighs
            all alike.
        smallest: hands and bodies whose square has fewer pixels a side are left out; nothing can be told of them.

    Raises:
        WeightsError: pretrained weights that cannot be had.

    Source: MediaPipe Hands (Zhang et al., 2020) and BlazePose (Bazarevsky et al., 2020) for the networks, OpenPose (Cao
    et al., arXiv 1812.08008) for the squares of hands. The weight of small hands is what "Improving Latent Diffusion
    with Perceptual Mask-Aware Loss" leaves to future work. Stages and γ are chosen.

    Example:
        >>> arm = torch.zeros(1, 17, 3)
        >>> arm[0, 7], arm[0, 9] = torch.tensor([8.0, 8, 2]), torch.tensor([16.0, 16, 2])
        >>> z = torch.zeros(1, 4, 4, 4)
        >>> step = DiffusionStep(
        ...     latents=z, noise=z, noisy_latents=z, timesteps=torch.tensor([10]), model_pred=z, target=z,
        ...     keypoints=[arm], pred_images=torch.zeros(1, 3, 32, 32), target_images=torch.ones(1, 3, 32, 32),
        ... )
        >>> loss = Keypoints(weights="random")
        >>> loss.has(step), bool(loss(step) > 0)
        ([True], True)
    """

    needs = frozenset({"pred_images", "keypoints"})
    weight_files = staticmethod(weight_files)
    random_is_smaller = True  # so what it costs is not told by it

    def __init__(
        self,
        *,
        of: Literal["hands", "bodies", "both"] = "hands",
        weights: Literal["pretrained", "random"] = "pretrained",
        smallness: Annotated[float, Field(ge=0)] = 0.5,
        smallest: Annotated[float, Field(ge=1)] = 8.0,
    ) -> None:
        self.smallness, self.smallest = smallness, smallest
        self.features = {part: LimbFeatures(_NETWORKS[part], weights) for part in _NAMES[of]}
        self.networks = tuple(name for features in self.features.values() for name in features.networks)

    def has(self, step: DiffusionStep) -> Sequence[bool]:
        """Whether each image has a hand or body to look at."""
        known = [x.shape[-2:] for x in (step.pixel_values, step.person_mask) if x is not None]
        size = known[0] if known else None  # of latents that were cached alone, any place counts as in the picture
        people = step.keypoints or ()
        return [any(len(self._squares(part, of_image, size)) for part in self.features) for of_image in people]

    def __call__(self, step: DiffusionStep) -> Tensor:
        """(n,) the weighted mean over each image's hands, and that over its bodies; gradient to `pred_images`."""
        if step.pred_images is None or step.target_images is None or step.keypoints is None:
            raise DataError("keypoints needs pred_images, target_images and keypoints: LossStack fills them in.")
        parts = [self._of_part(step, part, step.keypoints) for part in self.features]
        return torch.stack(parts).sum(dim=0)

    def _of_part(self, step: DiffusionStep, part: str, keypoints: Sequence[Tensor]) -> Tensor:
        size, features = step.pred_images.shape[-2:], self.features[part]
        squares = [self._squares(part, people, size) for people in keypoints]
        counts = [len(of_image) for of_image in squares]
        with torch.no_grad():
            true = features(step.target_images, squares)
        distance = feature_distance(features(step.pred_images, squares), true)
        if part == "hands":
            weights = smallness(torch.cat(squares)[:, 2], (size[0] * size[1]) ** 0.5, self.smallness)
            distance = distance * weights.to(distance, non_blocking=True)
        return torch.stack([of_image.sum() / max(len(of_image), 1) for of_image in distance.split(counts)])

    def _squares(self, part: str, people: Tensor, size: Sequence[int] | None) -> Tensor:
        """(M, 4) on the CPU: those that are large enough and have their middle in the picture, (height, width)."""
        squares = body_squares(people) if part == "bodies" else hand_squares(people, EXTENT)
        kept = squares[:, 2] >= self.smallest
        if size is not None:
            end = torch.tensor([size[1], size[0]])
            kept &= ((squares[:, :2] >= 0) & (squares[:, :2] < end)).all(dim=1)
        return squares[kept]


@hookimpl
def register_losses(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("keypoints", Keypoints)
