"""The three networks of MTCNN and how a picture passes through them.

Source: Zhang et al., Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks, 2016; the
sizes, thresholds and roundings are those of facenet-pytorch (MIT), whose weights these are.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms

CELL, STRIDE = 12, 2  # the first network's window and how far it moves, in pixels
FACTOR = 0.709  # from one size of the picture to the next
THRESHOLDS = (0.6, 0.7, 0.7)  # of each network's score
WINDOWS_AT_ONCE = 512


class Proposals(nn.Module):
    """At each place of a picture of any size: is there a face, and how its box differs from the window."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3, H, W) → scores (n, H', W') and shifts (n, 4, H', W')."""
        x = _pooled(self.prelu1(self.conv1(x)), 2)
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.conv4_1(x).softmax(dim=1)[:, 1], self.conv4_2(x)


class Refinement(nn.Module):
    """Windows of 24 px: a surer score and a better box."""

    side = 24

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3, 24, 24) → scores (n,) and shifts (n, 4)."""
        x = _pooled(self.prelu1(self.conv1(x)), 3)
        x = _pooled(self.prelu2(self.conv2(x)), 3)
        x = self.prelu4(self.dense4(_flat(self.prelu3(self.conv3(x)))))
        return self.dense5_1(x).softmax(dim=1)[:, 1], self.dense5_2(x)


class Output(nn.Module):
    """Windows of 48 px: the last score and box, and five points."""

    side = 48

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2, self.dense6_3 = nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3, 48, 48) → scores (n,), and shifts and points (n, 14)."""
        x = _pooled(self.prelu1(self.conv1(x)), 3)
        x = _pooled(self.prelu2(self.conv2(x)), 3)
        x = _pooled(self.prelu3(self.conv3(x)), 2)
        x = self.prelu5(self.dense5(_flat(self.prelu4(self.conv4(x)))))
        return self.dense6_1(x).softmax(dim=1)[:, 1], torch.cat([self.dense6_2(x), self.dense6_3(x)], dim=1)


class MTCNNNetworks(nn.Module):
    """The cascade. Names of its weights are those of facenet-pytorch's three files, behind `pnet.` and so on."""

    def __init__(self) -> None:
        super().__init__()
        self.pnet, self.rnet, self.onet = Proposals(), Refinement(), Output()

    @torch.inference_mode()
    def forward(self, picture: Tensor, least_face: float) -> tuple[Tensor, Tensor, Tensor]:
        """The faces of one picture.

        Args:
            picture: (3, H, W) RGB of 0 to 255.
            least_face: side in pixels of the smallest face that is looked for, ≥ 12.

        Returns:
            Boxes (K, 4) in pixels, scores (K,), and points (K, 5, 2): the eye at the picture's left and the one at its
            right, the nose, the corners of the mouth at the left and at the right.
        """
        image = picture[None]
        boxes = self._propose(image, least_face)
        boxes, scores, extra = _looked_at(self.rnet, image, boxes, THRESHOLDS[1])
        kept = nms(boxes, scores, 0.7)
        boxes = _squares(_shifted(boxes[kept], extra[kept], 1))
        boxes, scores, extra = _looked_at(self.onet, image, boxes, THRESHOLDS[2])
        width, height = (boxes[:, 2:] - boxes[:, :2] + 1).unbind(dim=1)
        across = boxes[:, :1] + width[:, None] * extra[:, 4:9] - 1
        down = boxes[:, 1:2] + height[:, None] * extra[:, 9:14] - 1
        boxes, points = _shifted(boxes, extra[:, :4], 1), torch.stack([across, down], dim=2)
        kept = _apart(boxes, scores)
        return boxes[kept], scores[kept], points[kept]

    def _propose(self, image: Tensor, least_face: float) -> Tensor:
        """Square boxes (K, 4) that may hold a face."""
        height, width = image.shape[2:]
        found, scores = [image.new_zeros(0, 4)], [image.new_zeros(0)]
        scale = CELL / least_face
        while min(height, width) * scale >= CELL:
            reduced = F.interpolate(image, size=(int(height * scale + 1), int(width * scale + 1)), mode="area")
            boxes, score = self._windows(reduced, scale)
            kept = nms(boxes[:, :4], score, 0.5)
            found.append(boxes[kept])
            scores.append(score[kept])
            scale *= FACTOR
        boxes, score = torch.cat([_with_shifts(f) for f in found]), torch.cat(scores)
        kept = nms(boxes[:, :4], score, 0.7)
        return _squares(_shifted(boxes[kept, :4], boxes[kept, 4:], 0))

    def _windows(self, reduced: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Windows and their shifts, (K, 8), in pixels of the picture, and their scores (K,)."""
        score, shift = self.pnet(_normalised(reduced))
        row, column = (score[0] >= THRESHOLDS[0]).nonzero(as_tuple=True)
        corner = torch.stack([column, row], dim=1).to(reduced.dtype) * STRIDE
        boxes = torch.cat([((corner + 1) / scale).floor(), ((corner + CELL) / scale).floor()], dim=1)
        return torch.cat([boxes, shift[0, :, row, column].T], dim=1), score[0, row, column]


def _with_shifts(boxes: Tensor) -> Tensor:
    return boxes if boxes.shape[1] == 8 else boxes.new_zeros(0, 8)


def _looked_at(
    network: Refinement | Output, image: Tensor, boxes: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes (K, 4) that the network says are faces, their scores, and what else it says of them."""
    height, width = image.shape[2:]
    whole = boxes.trunc().long()
    x0, y0 = whole[:, 0].clamp_min(1) - 1, whole[:, 1].clamp_min(1) - 1
    x1, y1 = whole[:, 2].clamp_max(width), whole[:, 3].clamp_max(height)
    seen = (x1 > x0) & (y1 > y0)
    boxes = boxes[seen]
    edges = torch.stack([x0, y0, x1, y1], dim=1)[seen].tolist()
    side = network.side
    windows = [F.interpolate(image[:, :, b:d, a:c], size=(side, side), mode="area") for a, b, c, d in edges]
    count = {24: 4, 48: 14}[side]
    scores, extra = [image.new_zeros(0)], [image.new_zeros(0, count)]
    for start in range(0, len(windows), WINDOWS_AT_ONCE):
        score, more = network(_normalised(torch.cat(windows[start : start + WINDOWS_AT_ONCE])))
        scores.append(score)
        extra.append(more)
    score, more = torch.cat(scores), torch.cat(extra)
    kept = score > threshold
    return boxes[kept], score[kept], more[kept]


def _normalised(pixels: Tensor) -> Tensor:
    return (pixels - 127.5) / 128


def _pooled(x: Tensor, side: Literal[2, 3]) -> Tensor:
    return F.max_pool2d(x, side, stride=2, ceil_mode=True)


def _flat(x: Tensor) -> Tensor:
    """(n, C, H, W) → (n, W·H·C): the weights were trained in Caffe's Matlab order."""
    return x.permute(0, 3, 2, 1).flatten(1)


def _shifted(boxes: Tensor, shifts: Tensor, more: int) -> Tensor:
    """Boxes moved by parts of their sides; `more` is 1 where a box holds both of its edges' pixels."""
    sides = boxes[:, 2:] - boxes[:, :2] + more
    return boxes + shifts[:, :4] * sides.repeat(1, 2)


def _squares(boxes: Tensor) -> Tensor:
    """Squares with the boxes' middles and longer sides."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longest = sides.amax(dim=1, keepdim=True)
    corner = boxes[:, :2] + sides * 0.5 - longest * 0.5
    return torch.cat([corner, corner + longest], dim=1)


def _apart(boxes: Tensor, scores: Tensor) -> Tensor:
    """Indices of boxes of which none shares 0.7 of the smaller one's area with a surer one, the surest first."""
    left = scores.argsort(descending=True, stable=True)
    area = (boxes[:, 2:] - boxes[:, :2] + 1).prod(dim=1)
    kept = []
    while len(left):
        first, left = left[0], left[1:]
        kept.append(first)
        corner = torch.maximum(boxes[first, :2], boxes[left, :2])
        shared = (torch.minimum(boxes[first, 2:], boxes[left, 2:]) - corner + 1).clamp_min(0).prod(dim=1)
        left = left[shared / torch.minimum(area[first], area[left]) <= 0.7]
    return torch.stack(kept) if kept else left
