"""Squares around hands and bodies, by COCO's 17 keypoints; see `turned_squares` for what a square is."""

from __future__ import annotations

import torch
from torch import Tensor

from mldm_plugin.perceptual.turned_squares import upright

_ARMS = ((5, 7, 9), (6, 8, 10))  # shoulder, elbow, wrist in COCO's 17 keypoints
_LIMBS = range(5, 17)  # all but those of the head
_FEWEST = 3  # chosen: of those, labelled; fewer are no pose
_ROOM = 1.25  # chosen, of a body's square: MediaPipe's own, in what its detector says of the body


def hand_squares(keypoints: Tensor, extent: float = 1.5) -> Tensor:
    """A square around each hand whose elbow and wrist are labelled, turned so that its forearm points upwards.

    Its centre lies a third of the forearm beyond the wrist, its side is `extent` times the longer of the forearm and
    0.9 upper arms. Source: OpenPose (Cao et al., arXiv 1812.08008), handDetector, whose extent is 1.5; the turn is
    MediaPipe's.

    Args:
        keypoints: (K, 17, 3) x, y, v.

    Returns:
        (M, 4) x, y, side, angle, on the CPU.
    """
    squares = [torch.zeros(0, 4)]
    for person in keypoints.detach().cpu().float():
        for shoulder, elbow, wrist in (person[list(arm)] for arm in _ARMS):
            if elbow[2] > 0 and wrist[2] > 0:
                forearm = wrist[:2] - elbow[:2]
                upper = (elbow[:2] - shoulder[:2]).norm() * (shoulder[2] > 0)
                side = extent * torch.maximum(forearm.norm(), 0.9 * upper)
                angle = upright(elbow[None, :2], wrist[None, :2])
                squares.append(torch.cat([wrist[:2] + forearm * 0.33, side[None], angle])[None])
    return torch.cat(squares)


def body_squares(keypoints: Tensor) -> Tensor:
    """An upright square around all labelled keypoints of each person who shows three or more below the head: (K, 17, 3)
    → (M, 4) x, y, side, angle, on the CPU."""
    squares = [torch.zeros(0, 4)]
    for person in keypoints.detach().cpu().float():
        there = person[:, 2] > 0
        if int(there[list(_LIMBS)].sum()) >= _FEWEST:
            places = person[there][:, :2]
            low, high = places.amin(0), places.amax(0)
            side = _ROOM * (high - low).amax()
            squares.append(torch.cat([(low + high) / 2, side[None], torch.zeros(1)])[None])
    return torch.cat(squares)
