"""insightface's detector SCRFD, through onnxruntime."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual.weights import fetch, locate
from mldm_plugin.prepare.faces.boxes import tidied
from mldm_plugin.prepare.source import Face, People, Shown, Source
from mldm_plugin.requirements import pip_install

WEIGHTS = "scrfd_10g"
PACKAGES = ("insightface", "onnxruntime")


@dataclass(frozen=True)
class Scrfd:
    """Faces of any pose by SCRFD-10GF (pack buffalo_l), each with its score.

    Args:
        least_score: of a face; 0.5 is insightface's own. Overlaps above IoU 0.4 are one face, which is its own, too.
        side: pixels of the square that the picture is fitted into, a multiple of 32; 640 is insightface's own. Small
            faces in large pictures are found only with a larger one.

    Raises:
        WeightsError: on the first call, where a package or the network is missing; the message says where to get it.

    Source: Guo et al., Sample and Computation Redistribution for Efficient Face Detection, ICLR 2022.
    """

    name = "insightface"
    scored = True
    pointed = False

    least_score: float = 0.5
    side: int = 640

    def __call__(self, source: Source, picture: Shown, people: People | None) -> list[Face]:
        """The faces, the largest first."""
        if min(picture.size) * self.side < max(picture.size):
            return []  # a strip that has no line of pixels left once it is fitted in
        bgr = np.ascontiguousarray(np.asarray(picture.rgb())[:, :, ::-1])
        boxes, _ = load_network(self.least_score, self.side).detect(bgr)
        faces = [Face((x0, y0, x1, y1), min(score, 1.0)) for x0, y0, x1, y1, score in boxes.tolist()]
        return tidied(faces, picture.size)


def is_here() -> bool:
    """Whether the packages and the network are on this machine."""
    return not _missing_packages() and locate(WEIGHTS) is not None


def check_installed() -> None:
    """Raise WeightsError where a package is missing."""
    if missing := _missing_packages():
        raise WeightsError(f"--faces insightface needs {' and '.join(missing)}: {pip_install(*missing)}")


def _missing_packages() -> list[str]:
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


@functools.cache
def load_network(least_score: float, side: int) -> Any:
    """insightface's detector, once a process. One thread: the work is spread over processes."""
    check_installed()
    path = fetch(WEIGHTS)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    known = onnxruntime.get_available_providers()
    providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in known]
    with contextlib.redirect_stdout(io.StringIO()):  # insightface 0.7 prints
        from insightface.model_zoo import get_model

        detector = get_model(str(path), providers=providers, sess_options=options)
    if getattr(detector, "taskname", None) != "detection":
        raise WeightsError(f"{path} is not a face detector, expected SCRFD's: delete it and fetch {WEIGHTS!r} again.")
    detector.prepare(0, input_size=(side, side), det_thresh=least_score)
    return detector
