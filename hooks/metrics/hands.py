"""hands_found, hand_score and hand_shape: whether the hands that were asked for are there, and can be hands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mldm_plugin import hookimpl
from mldm_plugin.perceptual.hand_shape import hand_shape_distance
from mldm_plugin.perceptual.weights import described, fetch

ASKS = "cases with a known number of hands"
NETWORKS = ("mediapipe_palm", "mediapipe_hand", "mediapipe_person", "mediapipe_pose")
# A hand that is not found: as far from real ones as the median of hands with one finger of double length
# (docs/hands_and_pose.md).
NOT_FOUND = 4.0


class _OfHands:
    """What the metrics of hands share: their networks, and what a case must say.

    Raises:
        WeightsError: weights that cannot be had.
    """

    asks = ASKS

    def __init__(self) -> None:
        for name in NETWORKS:
            fetch(name)
        self.networks = tuple(described(name) for name in NETWORKS)


class HandsFound(_OfHands):
    """The share of the hands asked for that are found, min(k, n)/n.

    Source: MediaPipe Hands (Zhang et al., 2020) as the detector, score .5 and more.
    """

    title = "hands found"
    better = "larger"

    def __call__(self, picture: Any) -> float | None:
        """The share in [0, 1]; None for a case that does not ask for hands."""
        hands = picture.case.hands
        return min(len(picture.hands), hands) / hands if hands else None


class HandScore(_OfHands):
    """How sure the network is of the hands, the mean of the n best scores; one that is not found counts 0.

    Source: MediaPipe Hands (Zhang et al., 2020), its hand presence.
    """

    title = "score of hands"
    better = "larger"

    def __call__(self, picture: Any) -> float | None:
        """The mean in [0, 1]; None for a case that does not ask for hands."""
        hands = picture.case.hands
        return sum(sorted((float(h.score) for h in picture.hands), reverse=True)[:hands]) / hands if hands else None


class HandShape(_OfHands):
    """How far the shape of the surest hands is from real hands', in spreads of theirs; one not found counts 4.

    The network believes in hands: a sixth finger is invisible to it.

    Source: `hand_shape_distance`.
    """

    title = "shape of hands, distance to real ones"
    better = "smaller"

    def __call__(self, picture: Any) -> float | None:
        """The mean ≥ 0; None for a case that does not ask for hands."""
        hands = picture.case.hands
        if not hands:
            return None
        far = [min(float(hand_shape_distance(hand.world)), NOT_FOUND) for hand in picture.hands[:hands]]
        return (sum(far) + NOT_FOUND * (hands - len(far))) / hands


@hookimpl
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("hands_found", HandsFound)
    register("hand_score", HandScore)
    register("hand_shape", HandShape)
