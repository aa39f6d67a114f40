"""Labels of the parts of a painted face: eyes, brows, nose, lips, glasses."""

from __future__ import annotations

import numpy as np

from mldm_plugin.prepare.synthetic.curve import Curve, closed, tube
from mldm_plugin.prepare.synthetic.face import SIDES, Face
from mldm_plugin.prepare.synthetic.head import NOSE, Head
from mldm_plugin.prepare.synthetic.part import FACE_PARTS, Part


def mark_face(face: Face) -> None:
    """Label the parts on the face's layer, after its features are painted and before hair falls over them; where two
    lie upon each other the later one has the pixel."""
    head, look, mark = face.head, face.look, face.layer.mark
    if look.glasses in ("round glasses", "square glasses"):
        width = face.rim() / 2
        for side, _ in SIDES:
            lens = head.put(face.lens(side), 0.02)
            rim = tube(np.concatenate([lens, lens[:1]]), [width] * 2)
            mark([lens, rim], Part.SPECTACLES, FACE_PARTS)
        mark(tube(face.bridge(), [width] * 2), Part.SPECTACLES, FACE_PARTS)
    mark(nose_outline(head), Part.NOSE, FACE_PARTS)
    for side, name in SIDES:
        upper, lower = face.eye_curves(side)
        almond = head.put(np.concatenate([upper, lower[::-1][1:-1]]))
        mark(almond, Part.LEFT_EYE if name == "left" else Part.RIGHT_EYE, FACE_PARTS)
        mark(face.brow_outline(side), Part.LEFT_BROW if name == "left" else Part.RIGHT_BROW, FACE_PARTS)
    top, low = face.mouth_lines()
    rim_top, rim_low = face.lip_rims(top, low)
    mark(head.put(np.concatenate([rim_top, top[::-1][1:-1]]), 0.03), Part.UPPER_LIP, FACE_PARTS)
    mark(head.put(np.concatenate([low, rim_low[::-1][1:-1]]), 0.03), Part.LOWER_LIP, FACE_PARTS)
    if face.mimic.opening:
        mark(head.put(np.concatenate([top, low[::-1][1:-1]]), 0.03), Part.MOUTH, FACE_PARTS)


def nose_outline(head: Head) -> Curve:
    """Bridge, wings and tip, in pixels: nothing of it is painted as one shape."""
    size, (x, y) = head.look.nose_size, NOSE
    half = [(0.026, -0.02), (0.034, 0.09), (0.072 * size, y - 0.01), (0.068 * size, y + 0.03), (0.0, y + 0.045)]
    right = [(x + dx, dy) for dx, dy in half]
    return head.put(closed([*right, *[(x - dx, dy) for dx, dy in half[-2::-1]]], 5), 0.06)
