"""Faces by their landmarks: the eyes, the nose and the corners of the mouth, brought to the same places in each crop.

The third of MTCNN's networks says where they are in a face whose box is known. Its score says whether it is a face at
all; where it is not, the box stands in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mldm_plugin.perceptual.face_crops import FaceCrop, crop_faces, square_boxes
from mldm_plugin.perceptual.frozen import Frozen, build_seeded, build_to_fill, computing_in
from mldm_plugin.perceptual.mtcnn_networks import THRESHOLDS, Output
from mldm_plugin.perceptual.turned_squares import to_picture
from mldm_plugin.perceptual.weights import described, fill, load_state_dict

FivePoints = tuple[tuple[float, float], ...]
# Where the eyes, the nose and the corners of the mouth lie in the square around MTCNN's box: the mean over openpeople's
# 200 faces, the two sides of the face made alike.
_IN_BOX = ((0.332, 0.400), (0.668, 0.400), (0.5, 0.603), (0.354, 0.758), (0.646, 0.758))
# The window that the network was trained on: the square around the box, pixels as `FACE_NETWORKS` has them.
_WINDOW = FaceCrop(size=Output.side, extent=1.0)
_LARGER = 1.5  # chosen: a crop by landmarks that is so many times larger or smaller than that of the box is no face's


@dataclass(frozen=True)
class PlacedFaces:
    """The squares of all faces of a batch, on the device of the pictures, without gradient.

    Args:
        squares: (K, 4) as turned_squares.py has them, in the order of images and boxes.
        found: (K,) bool, whether a square is that of landmarks; the others are those of `crop_faces`.
    """

    squares: Tensor
    found: Tensor


class _Points(nn.Module):
    """The last of MTCNN's networks, named as in its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.onet = Output()

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        score, more = self.onet(windows)
        return score, torch.stack([more[:, 4:9], more[:, 9:14]], dim=2)


class FaceLandmarks:
    """The five points of faces whose boxes are known, and the squares that they make.

    Args:
        weights: "pretrained" (MTCNN's, fetched on first use) or "random" (from a fixed seed).

    `networks` says which weights it is.

    Raises:
        WeightsError: weights that cannot be had.
    """

    weight_files = ("mtcnn",)

    def __init__(self, weights: Literal["pretrained", "random"] = "pretrained") -> None:
        if weights == "pretrained":
            network = build_to_fill(_Points)
            fill(network, load_state_dict("mtcnn"), "mtcnn", ignore=("pnet.", "rnet."))
        else:
            network = build_seeded(_Points)
        self.networks = (described("mtcnn"),) if weights == "pretrained" else ()
        self.frozen = Frozen(network)

    def __call__(self, images: Tensor, boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Points (ΣK_i, 5, 2) in pixels and scores (ΣK_i,) of the faces of `images`, as `crop_faces` takes them.

        The eye at the picture's left and the one at its right, the nose, the corners of the mouth at the left and at
        the right. Waits for nothing. No gradient flows.
        """
        with torch.no_grad(), computing_in(torch.float32):
            windows = crop_faces(images.float(), boxes, _WINDOW)
            scores, points = self.frozen(windows * (127.5 / 128))
        corners = _of_boxes(boxes, _WINDOW, like=points)
        return to_picture(corners, points), scores

    def place(self, images: Tensor, boxes: Sequence[Tensor], crop: FaceCrop, points: FivePoints | None) -> PlacedFaces:
        """Where the faces of `images` are cut out so that their landmarks lie at `points` of the crops, in sides of
        them; None is where they lie in the mean of upright faces that are cut out by their boxes."""
        found_points, scores = self(images, boxes)
        by_box = _of_boxes(boxes, crop, like=found_points)
        expected = torch.tensor(points or points_by_box(crop), dtype=found_points.dtype)
        by_points = square_of(found_points, expected.to(found_points.device, non_blocking=True))
        larger = by_points[:, 2] / by_box[:, 2]
        found = (scores >= THRESHOLDS[2]) & (larger < _LARGER) & (larger > 1 / _LARGER)
        return PlacedFaces(torch.where(found[:, None], by_points, by_box), found)


def points_by_box(crop: FaceCrop) -> FivePoints:
    """Where the points of an upright face lie in the crop of its box, in sides of the crop."""
    return tuple((0.5 + (x - 0.5) / crop.extent, 0.5 + (y - 0.5) / crop.extent - crop.down) for x, y in _IN_BOX)


def square_of(points: Tensor, canonical: Tensor) -> Tensor:
    """The squares (K, 4) in which `points` (K, P, 2) lie as near as can be to `canonical` (P, 2), by least squares.

    A similarity: turned, moved and scaled, never mirrored. With points as complex numbers, p ≈ a q + b has

        a = Σ (p − p̄) (q − q̄)* / Σ |q − q̄|²,   b = p̄ − a q̄;

    the square's side is |a|, its angle arg a, its centre where q = (½, ½) comes to.

    Args:
        points: in pixels.
        canonical: in sides of the square, (0, 0) top left.

    Source: Umeyama, "Least-squares estimation of transformation parameters between two point patterns" (1991), in two
    dimensions and without reflection.

    >>> corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    >>> square_of(torch.tensor([[[5.0, 5.0], [5.0, 9.0], [1.0, 9.0]]]), corners)  # of side 4, a quarter turn clockwise
    tensor([[3.0000, 7.0000, 4.0000, 1.5708]])
    """
    mean, middle = points.mean(dim=1), canonical.mean(dim=0)
    p, q = points - mean[:, None], canonical - middle
    total = q.square().sum()
    real = (p * q).sum(dim=(1, 2)) / total
    imaginary = (p[..., 1] * q[:, 0] - p[..., 0] * q[:, 1]).sum(dim=1) / total
    across, down = 0.5 - middle
    x = mean[:, 0] + real * across - imaginary * down
    y = mean[:, 1] + imaginary * across + real * down
    return torch.stack([x, y, torch.hypot(real, imaginary), torch.atan2(imaginary, real)], dim=1)


def crop_placed(images: Tensor, boxes: Sequence[Tensor], placed: PlacedFaces, crop: FaceCrop) -> Tensor:
    """Every face as `crop_faces` gives it, cut out of its square in `placed`; the same where that is the box's.

    Under each pixel of a crop lie as many bilinear samples as that of the box has pixels there; border pixels are
    repeated outside. Waits for nothing. On a GPU the gradient of grid sampling is not the same to the bit each run.

    Args:
        images: (N, 3, H, W), any range, gradients flow.
        boxes: N tensors (K_i, 4) on the CPU.
        placed: of these boxes, in these images or in others of the same size.

    Returns:
        (ΣK_i, 3, S, S).
    """
    crops = [images[:0, :, :1, :1].expand(0, -1, crop.size, crop.size)]
    fine = torch.promote_types(images.dtype, torch.float32)  # places are no halves: 511 is no bfloat16
    extent = torch.tensor([images.shape[3], images.shape[2]]).to(images.device, fine, non_blocking=True)
    squares = iter(placed.squares.to(fine).split(1))
    for image, of_image in zip(images, boxes, strict=True):
        for box in of_image.detach().cpu().double():
            side = square_boxes(box[None], crop)[0]
            samples = max(1, -int(-(side[2] - side[0]) // crop.size))
            count = crop.size * samples
            unit = (torch.arange(count, device=images.device, dtype=fine) + 0.5) / count
            grid = torch.stack(torch.meshgrid(unit, unit, indexing="xy"), dim=2).view(1, -1, 2)
            normal = (to_picture(next(squares), grid) / extent * 2 - 1).view(1, count, count, 2)
            with torch.autocast(images.device.type, enabled=False):
                whole = image[None].to(fine)
                cut = F.grid_sample(whole, normal, mode="bilinear", padding_mode="border", align_corners=False)
                crops.append(F.avg_pool2d(cut, samples).to(images.dtype))
    return torch.cat(crops)


def _of_boxes(boxes: Sequence[Tensor], crop: FaceCrop, like: Tensor) -> Tensor:
    """The upright squares (ΣK_i, 4) that `crop_faces` cuts out, on the device of `like`."""
    squares = square_boxes(torch.cat([b.detach().cpu().double().reshape(-1, 4) for b in boxes]), crop)
    sides = squares[:, 2:3] - squares[:, :1]
    upright = torch.cat([(squares[:, :2] + squares[:, 2:]) / 2, sides, torch.zeros_like(sides)], dim=1)
    return upright.to(like.dtype).to(like.device, non_blocking=True)
