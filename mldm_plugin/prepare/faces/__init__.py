"""Where the faces of a picture are: one detector a file, and the choice between them.

| `--faces` | boxes from | needs |
|---|---|---|
| annotated | the annotation | a data set that names faces |
| keypoints | the annotation's nose, eyes and ears | COCO's keypoints |
| insightface | SCRFD, a network; each box with a score | `mldm-plugin[data]`; weights for non-commercial use |
| lbp | a cascade of local binary patterns; frontal faces, no score | scikit-image |
| none | nowhere: rows have no `face_boxes` | |
"""

from __future__ import annotations

from mldm_plugin.errors import DataError, nearest
from mldm_plugin.prepare.faces import lbp, scrfd
from mldm_plugin.prepare.faces.annotated import Annotated
from mldm_plugin.prepare.faces.keypoints import Keypoints
from mldm_plugin.prepare.faces.lbp import Lbp
from mldm_plugin.prepare.faces.scrfd import Scrfd
from mldm_plugin.prepare.source import FindFaces

NAMES = ("auto", "annotated", "keypoints", "insightface", "lbp", "none")


def resolve(name: str, annotated: bool) -> tuple[FindFaces | None, str]:
    """The detector that `--faces name` asks for.

    A network is fetched here, once, before it is asked for in many processes.

    Args:
        name: one of `NAMES`. `auto` takes the annotation's boxes, else insightface where its network is on this
            machine, else lbp; it downloads nothing.
        annotated: whether the data set's annotation names faces.

    Returns:
        The detector, None for `none`; and a line for the user that says which and why.

    Raises:
        DataError: an unknown name, `annotated` where nothing is, or a package is missing.
        WeightsError: the network of `insightface` cannot be had.
    """
    if name not in NAMES:
        raise DataError(f"--faces {name}: no detector is called so; {nearest(name, NAMES)}")
    if name == "auto":
        return _automatic(annotated)
    if name == "annotated" and not annotated:
        raise DataError("--faces annotated: the annotation names no faces; choose another, or auto.")
    if name == "insightface":
        scrfd.check_installed()
        scrfd.fetch(scrfd.WEIGHTS)
    if name == "lbp":
        lbp.check_installed()
    detectors: dict[str, FindFaces | None] = {
        "annotated": Annotated(),
        "keypoints": Keypoints(),
        "insightface": Scrfd(),
        "lbp": Lbp(),
        "none": None,
    }
    return detectors[name], f"faces: {name}, as asked"


def _automatic(annotated: bool) -> tuple[FindFaces, str]:
    if annotated:
        return Annotated(), "faces: annotated, the annotation names them"
    if scrfd.is_here():
        return Scrfd(), "faces: insightface, its detector is on this machine"
    lbp.check_installed()
    return Lbp(), (
        "faces: lbp, since insightface's detector is not on this machine (mldm weights fetch "
        f"{scrfd.WEIGHTS}); lbp misses faces that are turned or small"
    )
