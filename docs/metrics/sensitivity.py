"""What each metric sees: the figures of docs/metrics, in sensitivity.json, of which docs/generate.py makes tables.

python docs/metrics/sensitivity.py faces     degradations of faces
python docs/metrics/sensitivity.py bodies    degradations of hands and bodies
python docs/metrics/sensitivity.py alarms    two halves of one model's samples
python docs/metrics/sensitivity.py sets      distances of sets of faces: the tables of frechet.md and kernel.md
python docs/metrics/sensitivity.py copies    likeness of altered copies: the table of copying.md
python docs/metrics/sensitivity.py cost      milliseconds of each metric
python docs/metrics/sensitivity.py sheet     docs/images/degradations.jpg

What was measured lies in runs/sensitivity; the same command goes on there.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import planted
import torch
from copies import copies
from cost import cost
from face_sets import sets
from false_alarms import alarms
from measures import RUNS, compared, metrics_of, named, own, write
from photographs import OTHERS, PEOPLE, POSTURES, body_panel, body_scene, face_keys, face_scene, face_square
from PIL import Image
from planted import BODIES, FACES, Degradation, Scene, as_image

from mldm_plugin.data.batch import Example
from mldm_plugin.evaluation.cases import Case
from mldm_plugin.evaluation.claims import claim
from mldm_plugin.evaluation.measuring import Metrics, measure
from mldm_plugin.evaluation.notes import Notes, Values, read_notes
from mldm_plugin.evaluation.picture import Picture, PictureList

SHEET = Path(__file__).parent.parent / "images" / "degradations.jpg"
OF_FACES = (
    *("face_found", "face_score", "people_count", "face_sharpness", "identity", "identity_dlib", "copying"),
    *("fd_vgg16", "kd_vgg16", "fd_vgg16_face", "kd_vgg16_face", "fd_face", "kd_face", "kd_faceres", "diversity"),
)
OF_BODIES = (
    *("face_found", "face_sharpness", "identity", "hands_found", "hand_score", "hand_shape"),
    *("pose_found", "pose_oks", "fd_vgg16", "kd_vgg16", "fd_vgg16_person", "kd_alexnet_person"),
)


@dataclass(frozen=True)
class Planted:
    """A photograph that is to be degraded.

    Args:
        case: what it shows.
        scene: makes it.
        known: makes its annotation.
    """

    case: Case
    scene: Callable[[], Scene]
    known: Callable[[], Example | None] = lambda: None

    def picture(self, degradation: Degradation | None, strength: float) -> Picture:
        scene = self.scene()
        image = scene.image if degradation is None else degradation.plant(scene, strength)
        known = self.known()
        photo = None if known is None else (lambda: Picture(scene.image, self.case, known=known))
        return Picture(image, self.case, photo=photo)


def look(part: str, photographs: Sequence[Planted], degradations: dict[str, Degradation], metrics: Metrics) -> None:
    """Measure every photograph as it is, and degraded in each way and strength."""
    ways: list[tuple[str, Degradation | None, float]] = [("plain", None, 0)]
    for name, one in degradations.items():
        ways += [(f"{name}-{k}", one, strength) for k, strength in enumerate(one.strengths.values())]
    shared = [inspect.getsource(f) for f in (planted.ellipse, planted.face, planted.hand, planted._with_finger)]
    for name, degradation, strength in ways:
        source = "" if degradation is None else inspect.getsource(degradation.plant)
        how = {"strength": strength, "by": hashlib.sha256("".join([source, *shared]).encode()).hexdigest()}
        notes = Notes(claim(RUNS / part / name, how))
        makers = [((one.case.key, 0), partial(one.picture, degradation, strength)) for one in photographs]
        measure(makers, metrics, notes, title=f"{part}, {name}")


def references(part: str, pictures: Sequence[Picture], metrics: Metrics) -> Values:
    notes = Notes(claim(RUNS / part / "references", {}))
    measure([((p.case.key, 0), lambda p=p: p) for p in pictures], metrics, notes, title=f"{part}, others")  # type: ignore[misc]
    return named(notes.known)


def table(part: str, metrics: Metrics, degradations: dict[str, Any], cases: Sequence[str], real: Values) -> Any:
    """What goes into sensitivity.json. `degradations`: name → (title, strengths, notes of each)."""
    plain = named(read_notes(RUNS / part / "plain"))
    rows = {}
    for name, (title, strengths, notes) in degradations.items():
        found = [compared(metrics, one, plain, real, cases) for one in notes]
        rows[name] = {"title": title, "strengths": list(strengths), "found": found}
    heads = {
        name: {"better": metric.better, **own(metrics, name, plain, real, cases)}
        for name, metric in metrics.ready.items()
    }
    return {"cases": len(cases), "others": len(real), "metrics": heads, "degradations": rows}


def measured(part: str, degradations: dict[str, Degradation]) -> dict[str, Any]:
    folders = {name: [RUNS / part / f"{name}-{k}" for k in range(3)] for name in degradations}
    return {n: (d.title, d.strengths, [named(read_notes(f)) for f in folders[n]]) for n, d in degradations.items()}


# Commands


def faces() -> None:
    keys = face_keys()
    scenes = {f"{p} {panel}": partial(face_scene, p, panel, i) for i, (p, panel) in enumerate(keys)}
    shown = [Planted(Case(key, key[:4], 1), scene) for key, scene in scenes.items()]
    others = [Picture(face_square(*key), Case(" ".join(key), key[0], 1)) for key in face_keys(panels=OTHERS)]
    metrics = metrics_of(OF_FACES, others, PictureList([partial(one.picture, None, 0) for one in shown]))
    real = references("faces", others, metrics)
    look("faces", shown, FACES, metrics)
    rows = measured("faces", FACES)
    plain, last = named(read_notes(RUNS / "faces" / "plain")), PEOPLE[-1]
    # Likeness was asked of each picture's own person, so of an exchanged picture it is not known.
    plain = {key: {n: v for n, v in of.items() if not n.startswith("identity")} for key, of in plain.items()}
    notes = [
        {(case, r): plain[case if PEOPLE.index(case[:4]) >= count else last + case[4:], r] for case, r in plain}
        for count in (2, 4, 7)
    ]
    rows["one"] = ("one person in place of others", ["2 of 8", "4 of 8", "7 of 8"], notes)
    write("faces", table("faces", metrics, rows, list(scenes), real))


def bodies() -> None:
    shown = [Planted(Case(f"{p} {picture}", p, 1, 2), *_body(p, picture)) for p in PEOPLE for picture in POSTURES]
    panels = ("body front", "body left", "body right")
    others = [Picture(body_panel(p, panel), Case(f"{p} {panel}", p, 1)) for p in PEOPLE for panel in panels]
    metrics = metrics_of(OF_BODIES, others, others)
    real = references("bodies", others, metrics)
    look("bodies", shown, BODIES, metrics)
    cases = [one.case.key for one in shown]
    write("bodies", table("bodies", metrics, measured("bodies", BODIES), cases, real))


def _body(person: str, picture: str) -> tuple[Callable[[], Scene], Callable[[], Example]]:
    found: list[Any] = []

    def once() -> Any:
        if not found:
            found.append(body_scene(person, picture))
        return found[0]

    return lambda: once()[0], lambda: Example(pixel_values=once()[0].image, keypoints=once()[1])


def _padded(picture: Image.Image) -> Image.Image:
    """The picture in the middle of a white square."""
    out = Image.new("RGB", (picture.height, picture.height), "white")
    out.paste(picture, ((picture.height - picture.width) // 2, 0))
    return out


def sheet() -> None:
    """One face and one body of each degradation, from weak to strong."""
    face, (whole, _) = face_scene("P009", "happy"), body_scene("P009", "studio_posture")
    tiles = [[as_image(d.plant(face, s)) for s in d.strengths.values()] for d in FACES.values()]
    for name, one in BODIES.items():
        pictures = [as_image(one.plant(whole, strength)) for strength in one.strengths.values()]
        if name in ("finger", "mirror", "hands", "large"):
            x, y = ((whole.hands[0].amin(0) + whole.hands[0].amax(0)) / 2).int().tolist()
            pictures = [picture.crop((x - 48, y - 42, x + 48, y + 54)) for picture in pictures]
        else:
            pictures = [_padded(picture) for picture in pictures]
        tiles.append(pictures)
    side, gap = 132, 6
    out = Image.new("RGB", (6 * side + gap, (len(tiles) + 1) // 2 * side), "white")
    for i, row in enumerate(tiles):
        for k, tile in enumerate(row):
            at = (i % 2 * (3 * side + gap) + k * side, i // 2 * side)
            out.paste(tile.resize((side, side), Image.Resampling.LANCZOS), at)
    out.save(SHEET, quality=88, optimize=True)


COMMANDS = {f.__name__: f for f in (faces, bodies, alarms, sets, copies, cost, sheet)}

if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        COMMANDS[sys.argv[1]]()
