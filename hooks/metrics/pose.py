"""pose_found and pose_oks: whether the bodies that were asked for are there, and in the pose that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mldm_plugin import hookimpl
from mldm_plugin.perceptual.pose import as_coco
from mldm_plugin.perceptual.weights import described, fetch

NETWORKS = ("mediapipe_person", "mediapipe_pose")
# COCO's: how far annotators differ, of nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles.
SIGMAS = (0.026, *(s for s in (0.025, 0.035, 0.079, 0.072, 0.062, 0.107, 0.087, 0.089) for _ in range(2)))


def oks(points: Tensor, known: Tensor, area: Tensor) -> Tensor:
    """Object keypoint similarity, the mean over the known keypoints of exp(−d² / (2 s² (2σ)²)).

    Args:
        points: (..., 17, 2) or more columns, found keypoints in pixels.
        known: (..., 17, 3) x, y, v of the annotation; those with v = 0 are left out.
        area: (...) s², the person's area in pixels.

    Returns:
        (...) in [0, 1]; 0 where no keypoint is known.

    Source: COCO's keypoint evaluation, `computeOks` of pycocotools.
    """
    variance = (2 * torch.tensor(SIGMAS).to(known)) ** 2
    squared = (points[..., :2] - known[..., :2]).square().sum(-1)
    there = (known[..., 2] > 0).to(known)
    likeness = torch.exp(-squared / (2 * variance * area.clamp(min=1)[..., None])) * there
    return likeness.sum(-1) / there.sum(-1).clamp(min=1)


class _OfPoses:
    """What the metrics of poses share.

    Raises:
        WeightsError: weights that cannot be had.
    """

    better = "larger"

    def __init__(self) -> None:
        for name in NETWORKS:
            fetch(name)
        self.networks = tuple(described(name) for name in NETWORKS)


class PoseFound(_OfPoses):
    """The share of the people asked for whose body is found, min(k, n)/n.

    Source: BlazePose (Bazarevsky et al., 2020), score .5 and more.
    """

    title = "bodies found"
    asks = "cases with a known number of people"

    def __call__(self, picture: Any) -> float | None:
        """The share in [0, 1]; None for a case that asks for nobody."""
        people = picture.case.people
        return min(len(picture.poses), people) / people if people else None


class PoseOKS(_OfPoses):
    """Likeness of the bodies to the poses of the photograph that the caption belongs to; for ControlNets of poses.

    OKS of the best assignment of bodies to people, the mean over people; one that is not found counts 0.

    Source: COCO's OKS. Its area is that of the person; here .53 of the box around the keypoints, the factor of MMPose's
    and others' evaluations of data without masks.
    """

    title = "likeness of poses (OKS)"
    asks = "photographs with keypoints (--data)"

    def __call__(self, picture: Any) -> float | None:
        """The mean in [0, 1]; None without a photograph with keypoints."""
        photo = picture if picture.known is not None else picture.photo
        known = None if photo is None else photo.known.keypoints
        if known is None or not len(known) or not bool((known[..., 2] > 0).any()):
            return None
        known = known[(known[..., 2] > 0).any(-1)] * ratio_of(picture.image, photo.image)
        if not picture.poses:
            return 0.0
        found = torch.stack([as_coco(pose) for pose in picture.poses])
        likeness = oks(found[:, None], known[None], area_of(known)[None].expand(len(found), -1))
        rows, columns = linear_sum_assignment(likeness.numpy(), maximize=True)
        return float(likeness[rows, columns].sum()) / len(known)


def ratio_of(picture: Tensor, photo: Tensor) -> Tensor:
    """(3,) factors of x, y and v that bring keypoints of a photograph (3, H, W) into a picture of another size."""
    return torch.tensor([picture.shape[2] / photo.shape[2], picture.shape[1] / photo.shape[1], 1.0])


def area_of(known: Tensor) -> Tensor:
    """(K,) .53 of the boxes around the known keypoints (K, 17, 3)."""
    there = known[..., 2:] > 0
    low = known[..., :2].masked_fill(~there, torch.inf).amin(1)
    high = known[..., :2].masked_fill(~there, -torch.inf).amax(1)
    return 0.53 * (high - low).clamp(min=1).prod(-1)


@hookimpl
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("pose_found", PoseFound)
    register("pose_oks", PoseOKS)
