"""Where the faces of a picture are: one detector a file, and the choice between them.

| `--faces` | boxes from | needs |
|---|---|---|
| annotated | the annotation | a data set that names faces |
| keypoints | the annotation's nose, eyes and ears | COCO's keypoints |
| mtcnn | MTCNN, three small networks; each box with a score and five points | 2 MB of weights, fetched once |
| insightface | SCRFD, a network; each box with a score | insightface and onnxruntime; weights for non-commercial use |
| none | nowhere: rows have no `face_boxes` | |
"""

from __future__ import annotations

from mldm_plugin.errors import DataError, WeightsError, nearest
from mldm_plugin.perceptual.weights import fetch
from mldm_plugin.prepare.faces import mtcnn, scrfd
from mldm_plugin.prepare.faces.annotated import Annotated
from mldm_plugin.prepare.faces.keypoints import Keypoints
from mldm_plugin.prepare.faces.mtcnn import Mtcnn
from mldm_plugin.prepare.faces.scrfd import Scrfd
from mldm_plugin.prepare.source import FindFaces

NAMES = ("auto", "annotated", "keypoints", "mtcnn", "insightface", "none")


def resolve(name: str, annotated: bool) -> tuple[FindFaces | None, str]:
    """The detector that `--faces name` asks for.

    A network is fetched here, once, before it is asked for in many processes.

    Args:
        name: one of `NAMES`. `auto` takes the annotation's boxes, else mtcnn; where its weights cannot be had,
            insightface if its network is on this machine.
        annotated: whether the data set's annotation names faces.

    Returns:
        The detector, None for `none`; and a line for the user that says which and why.

    Raises:
        DataError: an unknown name, or `annotated` where nothing is.
        WeightsError: the network that is asked for cannot be had, or none can.
    """
    if name not in NAMES:
        raise DataError(f"--faces {name}: no detector is called so; {nearest(name, NAMES)}")
    if name == "auto":
        return _automatic(annotated)
    if name == "annotated" and not annotated:
        raise DataError("--faces annotated: the annotation names no faces; choose another, or auto.")
    if name == "insightface":
        scrfd.check_installed()
        fetch(scrfd.WEIGHTS)
    if name == "mtcnn":
        fetch(mtcnn.WEIGHTS)
    detectors: dict[str, FindFaces | None] = {
        "annotated": Annotated(),
        "keypoints": Keypoints(),
        "mtcnn": Mtcnn(),
        "insightface": Scrfd(),
        "none": None,
    }
    return detectors[name], f"faces: {name}, as asked"


def _automatic(annotated: bool) -> tuple[FindFaces, str]:
    if annotated:
        return Annotated(), "faces: annotated, the annotation names them"
    try:
        fetch(mtcnn.WEIGHTS)
        return Mtcnn(), "faces: mtcnn, its weights are on this machine"
    except WeightsError:
        if not scrfd.is_here():
            raise
        return Scrfd(), "faces: insightface, since mtcnn's weights cannot be had and its detector is on this machine"
