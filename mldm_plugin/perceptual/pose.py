"""People's poses in a picture, by MediaPipe's BlazePose.

A detector finds people by their faces and tells of each the middle of the hips and how far the body reaches from there.
The square around that, turned so that the body stands upright, goes to the network that finds 33 points.

Source: Bazarevsky et al., "BlazePose: On-device Real-time Body Pose tracking" (2020); MediaPipe's graphs
pose_detection_cpu, pose_detection_to_roi, pose_landmark_by_roi_cpu and tensors_to_pose_landmarks_and_segmentation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mldm_plugin.perceptual.anchored import Detector
from mldm_plugin.perceptual.tflite_graph import frozen_graph
from mldm_plugin.perceptual.turned_squares import cut_out, moved, to_picture, upright

PEOPLE = Detector("mediapipe_person", size=224, strides=(8, 16, 32, 32, 32), lowest=-1.0)
POINTS, GIVEN_POINTS = 33, 39  # the network gives six more, for the next picture of a film
SIZE = 256
EXTENT = 1.25  # of the square, in what the detector says of the body
KERNEL = 7  # pixels of the heat map around a point; kernel_size
CONFIDENT = 0.5  # min_confidence_to_refine
HEAD = 2.1  # eyes to crown, in eyes to mouth: hair included, on openpeople's P001, P002 and P003
SAME = 0.1  # chosen, of a box's diagonal: moved squares of one person differ by up to .007, neighbours' boxes by .22
# COCO's seventeen points among BlazePose's.
COCO = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)


@dataclass(frozen=True)
class Pose:
    """A person in a picture of H × W pixels.

    Args:
        box: (4,) x0, y0, x1, y1 in pixels around the points that are likely to be seen and the head; clothes and
            fingertips lie a little outside.
        score: in [0, 1], of there being a person.
        points: (33, 2) x, y in pixels, in BlazePose's order; those outside the picture are guesses.
        visibility: (33,) in [0, 1], the likelihood of each point to be in the picture and not hidden.
    """

    box: Tensor
    score: Tensor
    points: Tensor
    visibility: Tensor


def find_pose(image: Tensor, threshold: float = 0.5) -> list[Pose]:
    """The people in a picture, the surest first.

    Args:
        image: (3, H, W) RGB in [-1, 1].
        threshold: the lowest score, of the detector and of the pose itself.

    Returns:
        Poses on the picture's device. Gradients flow from points, score and visibility to the picture, with the squares
        taken as given.

    Raises:
        WeightsError: `mediapipe_person` or `mediapipe_pose` cannot be had.
    """
    found = PEOPLE(image, threshold=threshold)
    if not len(found):
        return []
    poses = poses_in(image, _body_squares(found))
    kept: list[Pose] = []
    for pose in sorted(poses, key=lambda pose: -float(pose.score.detach())):
        if pose.score >= threshold and not any(same_person(pose, other) for other in kept):
            kept.append(pose)
    return kept


def poses_in(image: Tensor, squares: Tensor) -> list[Pose]:
    """The pose in each square (K, 4) of a picture (3, H, W), likely or not."""
    crops = cut_out((image + 1) / 2, squares, SIZE)
    raw, scores, heat = frozen_graph("mediapipe_pose", (0, 1, 3))(crops)
    numbers = raw.view(len(raw), GIVEN_POINTS, 5)
    points = refined(numbers[..., :2] / SIZE, heat)[:, :POINTS]
    visibility = numbers[:, :POINTS, 3].sigmoid()
    placed = to_picture(squares, points)
    return [
        Pose(_box(placed[i].detach(), visibility[i].detach()), scores[i, 0], placed[i], visibility[i])
        for i in range(len(squares))
    ]


def as_coco(pose: Pose) -> Tensor:
    """COCO's seventeen points, (17, 3): x, y in pixels and the visibility in [0, 1]."""
    return torch.cat([pose.points, pose.visibility[:, None]], dim=1)[list(COCO)]


def refined(points: Tensor, heat: Tensor) -> Tensor:
    """Points moved to the middle of the heat map around them, where it is sure of itself.

    Args:
        points: (K, P, 2) in fractions of the crop.
        heat: (K, H, W, P) logits.

    Returns:
        (K, P, 2); for a point in whose 7 × 7 pixels some confidence reaches 0.5, the mean of their places weighted by
        confidence. As in MediaPipe a pixel's place is its corner.

    Source: MediaPipe, RefineLandmarksFromHeatmapCalculator.
    """
    height, width = heat.shape[1:3]
    size = torch.tensor([width, height]).to(points)
    cells = (points.detach() * size).long()  # towards 0, as there
    inside = ((cells >= 0) & (cells < size)).all(2)
    rows, columns = (torch.arange(side, device=heat.device) for side in (height, width))
    reach = (KERNEL - 1) // 2
    near = ((rows - cells[..., 1:]).abs() <= reach)[..., None] & ((columns - cells[..., :1]).abs() <= reach)[:, :, None]
    confidence = heat.permute(0, 3, 1, 2).sigmoid() * near
    total = confidence.sum((2, 3)).clamp(min=1e-12)
    x = (confidence.sum(2) * columns).sum(2) / total
    y = (confidence.sum(3) * rows).sum(2) / total
    sure = inside & (confidence.amax((2, 3)) >= CONFIDENT)
    return torch.where(sure[..., None], torch.stack([x, y], dim=2) / size, points)


def _body_squares(found: Tensor) -> Tensor:
    """The squares (K, 4) around bodies: the first point is the middle of the hips, the second where the body ends."""
    hips, reach = found[:, 5:7], found[:, 7:9]
    side = 2 * (reach - hips).norm(dim=1, keepdim=True)
    return moved(torch.cat([hips, side, upright(hips, reach)[:, None]], dim=1), down=0, scale=EXTENT)


def _box(points: Tensor, visibility: Tensor) -> Tensor:
    """The box of the points that are seen, and of the crown, which lies above the eyes as far as HEAD says."""
    eyes, mouth = points[[2, 5]].mean(0), points[[9, 10]].mean(0)
    seen = visibility >= 0.5
    if not seen.any():
        return torch.cat([points.amin(0), points.amax(0)])
    crown = (eyes + HEAD * (eyes - mouth))[None]
    inside = torch.cat([points[seen], crown]) if seen[[2, 5, 9, 10]].all() else points[seen]
    return torch.cat([inside.amin(0), inside.amax(0)])


def same_person(one: Pose, other: Pose) -> bool:
    """Whether two poses are one person's: their points lie as close as those of two neighbours cannot."""
    distance = (one.points.detach() - other.points.detach()).norm(dim=1).mean()
    return bool(distance < SAME * (one.box[2:] - one.box[:2]).norm())
