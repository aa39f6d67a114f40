"""Face loss: the difference of faces in the eyes of a face recognition network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mldm_plugin import DiffusionStep, hookimpl
from mldm_plugin.errors import DataError, PresetError
from mldm_plugin.perceptual.face_crops import crop_faces, largest
from mldm_plugin.perceptual.face_networks import FaceFeatures, weight_files
from mldm_plugin.perceptual.known_gradient import with_gradient

# A face of 224² keeps 82 MB of VGGFace2's activations, eight keep as much as a tenth of a picture's decode. Chosen.
FACES_TOGETHER = 8

LayerWeight = Annotated[float, Field(ge=0)]


def face_distance(pred: Sequence[Tensor], target: Sequence[Tensor], layer_weights: Sequence[float]) -> Tensor:
    """Weighted mean absolute difference of the features of each face.

    d_k = Σ_l α_l · mean|FE^l(ĉ_k) − FE^l(c_k)|, the mean over channels and pixels of stage l.

    Args:
        pred: L stages (K, C_l, H_l, W_l) of K predicted faces; gradients flow.
        target: the same of the true faces.
        layer_weights: L factors α_l.

    Returns:
        (K,) ≥ 0, in units of the features.

    Source: "Improving Latent Diffusion with Perceptual Mask-Aware Loss", eq. 1; its norm is read as in the
    released code, mean absolute difference.

    Example:
        >>> faces = [torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)]
        >>> face_distance(faces, [torch.zeros(2, 1, 1, 1)], [0.5])
        tensor([0.5000, 1.5000])
    """
    layers = zip(layer_weights, pred, target, strict=True)
    return torch.stack([alpha * (p - t).abs().flatten(1).mean(dim=1) for alpha, p, t in layers]).sum(dim=0)


class Face:
    """Face loss of Masked LDM on the face boxes of each image.

    Both pictures are cropped by the same boxes. Faces go through the network eight at a time, each eight with their
    gradient taken at once, so memory is that of eight however many there are; `max_faces` bounds the time, too, and
    never parts a predicted face from its true one.

    Args:
        form: `spatial`, the mean over the faces of an image, so that a crowd weighs no more than a portrait, or
            `features`, their sum (eq. 1).
        network: `vggface2_resnet50`, as published, `vggface2_inception` (FaceNet), `dlib_resnet`, free for any use.
        weights: `pretrained`, or `random` (seeded, for tests and demos).
        layer_weights: α_l of what the network gives, five stages, with `dlib_resnet` the embedding, too; null takes
            the network's own.
        max_faces: at most so many faces of an image, the largest ones; null takes all.

    Raises:
        PresetError: layer weights or a number of faces that make no sense.
        WeightsError: pretrained weights that cannot be had.

    Source: "Improving Latent Diffusion with Perceptual Mask-Aware Loss", eq. 1; its released code for stages
    and α. Differs from that code: the network's own input (it was fed RGB in [-1, 1] at 254 px), whole faces
    (foreheads and chins were cut), pairs capped as pairs, the mean over faces, no gradient of the target.

    Example:
        >>> pred = torch.zeros(1, 3, 32, 32, requires_grad=True)
        >>> z = torch.zeros(1, 4, 4, 4)
        >>> step = DiffusionStep(
        ...     latents=z, noise=z, noisy_latents=z, timesteps=torch.tensor([10]), model_pred=z, target=z,
        ...     face_boxes=[torch.tensor([[8.0, 8.0, 24.0, 28.0]])],
        ...     pred_images=pred, target_images=torch.full((1, 3, 32, 32), 0.1),
        ... )
        >>> loss = Face(weights="random")(step)
        >>> loss.shape, bool(loss > 0)
        (torch.Size([1]), True)
    """

    needs = frozenset({"pred_images", "face_boxes"})
    weight_files = staticmethod(weight_files)

    def __init__(
        self,
        *,
        form: Literal["spatial", "features"] = "spatial",
        network: Literal["vggface2_resnet50", "vggface2_inception", "dlib_resnet"] = "vggface2_resnet50",
        weights: Literal["pretrained", "random"] = "pretrained",
        layer_weights: tuple[LayerWeight, ...] | None = None,
        max_faces: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        if max_faces is not None and max_faces < 1:
            raise PresetError(f"max_faces is {max_faces}, expected at least 1; leave it out to take all faces.")
        self.form, self.max_faces = form, max_faces
        self.features = FaceFeatures(network, weights)
        self.networks, stages = self.features.networks, len(self.features.layer_weights)
        if layer_weights is not None and not _sensible(layer_weights, stages):
            raise PresetError(f"layer_weights is {layer_weights}, expected {stages} finite numbers ≥ 0, not all 0.")
        self.layer_weights = layer_weights or self.features.layer_weights

    def __call__(self, step: DiffusionStep) -> Tensor:
        """(n,) values for the images of `step`, with gradient to `pred_images`."""
        pred, target, boxes = step.pred_images, step.target_images, step.face_boxes
        if pred is None or target is None or boxes is None:
            raise DataError("the face loss needs pred_images, target_images and face_boxes: LossStack fills them in.")
        boxes = [largest(b, self.max_faces) for b in boxes]
        counts = [len(b) for b in boxes]
        leaf = pred.detach().requires_grad_(torch.is_grad_enabled() and pred.requires_grad)
        gradient = torch.zeros_like(leaf) if leaf.requires_grad else None
        distances = [leaf.new_zeros(0)]
        for some in _at_a_time(boxes, FACES_TOGETHER):
            distance = self._distance(leaf, target, some)
            shares = [1 / counts[i] if self.form == "spatial" else 1.0 for i, b in enumerate(some) for _ in b]
            distance = distance * torch.tensor(shares).to(distance, non_blocking=True)
            if gradient is not None:
                gradient += torch.autograd.grad(distance.sum(), leaf)[0]
            distances.append(distance.detach())
        values = torch.stack([of_image.sum() for of_image in torch.cat(distances).split(counts)])
        return with_gradient(values, pred, gradient)

    def _distance(self, pred: Tensor, target: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            true = self.features(crop_faces(target, boxes, self.features.crop))
        return face_distance(self.features(crop_faces(pred, boxes, self.features.crop)), true, self.layer_weights)


def _at_a_time(boxes: Sequence[Tensor], number: int) -> Iterator[list[Tensor]]:
    """The boxes of n images, `number` of them at a time, in order: n tensors each, most of them without rows."""
    order = [(i, k) for i, of_image in enumerate(boxes) for k in range(len(of_image))]
    for start in range(0, len(order), number):
        taken = order[start : start + number]
        places = [[k for j, k in taken if j == i] for i in range(len(boxes))]  # in a row, for order is by image
        yield [of_image[k[0] : k[-1] + 1] if k else of_image[:0] for of_image, k in zip(boxes, places, strict=True)]


def _sensible(layer_weights: Sequence[float], stages: int) -> bool:
    finite = all(map(math.isfinite, layer_weights))
    return len(layer_weights) == stages and finite and min(layer_weights) >= 0 and sum(layer_weights) > 0


@hookimpl
def register_losses(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("face", Face)
