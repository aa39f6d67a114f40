"""The head as a turned ellipsoid: where the features of a face lie in the picture.

Local unit: the height of the head from crown to chin; the origin is its middle, the crown at y = -0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mldm_plugin.prepare.synthetic.curve import Curve, Frame, Points, closed, mirrored
from mldm_plugin.prepare.synthetic.look import Look

HALF_WIDTH = 0.4  # of the ellipsoid that features turn on; a drawn head is a little wider than a real one
EYE = (0.168, 0.045)  # centre of the left eye; large and low eyes are a convention of illustration
MOUTH_Y = 0.325
NOSE = (0.0, 0.2)  # the tip


@dataclass(frozen=True)
class Head:
    """A head in the picture.

    Args:
        frame: from head units to pixels; its angle is the tilt.
        look: what the person looks like.
        yaw: turn in radians, positive towards the person's left, which is the picture's right.
        pitch: in head heights, positive looks down.
        seen_from_behind: whether the face is turned away.
    """

    frame: Frame
    look: Look
    yaw: float
    pitch: float
    seen_from_behind: bool = False

    @property
    def unit(self) -> float:
        """Pixels of the head's height."""
        return self.frame.scale

    def put(self, points: Points, out: float = 0.0) -> Curve:
        """Features of the face, in pixels; `out` is how far they stand out of the ellipsoid."""
        p = np.array(points, float).reshape(-1, 2)
        azimuth = np.arcsin(np.clip(p[:, 0] / HALF_WIDTH, -0.98, 0.98)) + self.yaw
        x = HALF_WIDTH * np.sin(azimuth) + out * np.sin(self.yaw)
        y = p[:, 1] + self.pitch * np.cos(azimuth) + out * 0.5 * self.pitch
        return self.frame(np.stack([x, y], 1))

    def point(self, x: float, y: float, out: float = 0.0) -> tuple[float, float]:
        [[px, py]] = self.put([[x, y]], out)
        return float(px), float(py)

    def outline(self) -> Curve:
        """The skin of the head from crown to chin."""
        jaw, chin = self.look.jaw, self.look.chin
        half = mirrored(
            [
                (0, -0.5),
                (0.21, -0.465),
                (0.34, -0.32),
                (0.375, -0.08),
                (0.36, 0.1),
                (0.32 * jaw, 0.27),
                (0.215 * jaw * chin, 0.42),
                (0.1 * chin, 0.495),
            ]
        )
        return self.frame(self.lean(closed(half, 6)))

    def lean(self, p: Curve) -> Curve:
        """The silhouette's share in a turn: the chin moves, the crown does not."""
        s = np.sin(self.yaw)
        low = np.clip((p[:, 1] + 0.2) / 0.7, 0, 1)
        x = p[:, 0] + s * 0.15 * low
        y = p[:, 1] + self.pitch * 0.5 * low
        return np.stack([x, y], 1)

    def face_box(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 in pixels around the face: cheek to cheek, hairline to chin."""
        p = self.outline()
        local = self.frame
        top = np.array([local.point(x, -0.33) for x in (-0.3, 0.0, 0.3)])
        direction = np.array(local.point(0, 1)) - np.array(local.point(0, 0))
        below = p[((p - top[1]) @ direction) >= 0]
        both = np.concatenate([below, top])
        x0, y0 = both.min(0)
        x1, y1 = both.max(0)
        return float(x0), float(y0), float(x1), float(y1)
