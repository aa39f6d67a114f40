"""What the report shows besides numbers: faces that were found, photographs of the cases, and their conditions."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchvision.transforms.functional import to_pil_image

from mldm_plugin.evaluation.conditional import as_picture, in_words
from mldm_plugin.evaluation.measuring import BOXES
from mldm_plugin.evaluation.notes import Values, read_notes
from mldm_plugin.records.files import write_changed

if TYPE_CHECKING:
    from mldm_plugin.evaluation.evaluate import Evaluation

FOLDER, CONDITIONS = "photographs", "conditions"  # of the framed photographs of the cases, and of their masks
PERSON, PERSON_SHOWN, SIDE = "person", 8, 384  # of the person's; how many, and pixels of their longer side


def boxes_of(evaluation: Evaluation, kind: str) -> dict[str, dict[str, list[list[float]]]]:
    """model → case → the boxes of the `faces` or `hands` in its first picture of the first run, in pixels."""
    notes = {model.name: read_notes(evaluation.folder("measured", model, 0)) for model in evaluation.models}
    return {model: _boxes(of_model, BOXES[kind]) for model, of_model in notes.items()}


def photographs_of(evaluation: Evaluation, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """case → the path of its photograph, framed as the models see it, and the boxes of its faces: those that a metric
    found, where one has looked, else those of the data set, None where it tells none of any."""
    photographs, found = evaluation.photographs, {}
    if photographs is None:
        return {}
    boxes = _boxes(read_notes(evaluation.asked.out / "measured" / "photographs"), BOXES["faces"])
    wanted = set(keys)
    for case in evaluation.cases:
        if case.row is not None and case.key in wanted:
            path = Path(FOLDER) / f"{case.key}.png"
            (evaluation.asked.out / FOLDER).mkdir(exist_ok=True)
            stream = io.BytesIO()
            shown = photographs.look(case.row)
            to_pil_image((shown.pixel_values + 1) / 2).save(stream, "PNG")
            write_changed(evaluation.asked.out / path, stream.getvalue())
            known = None if shown.face_boxes is None else shown.face_boxes.tolist()
            found[case.key] = {"path": str(path), "faces": boxes.get(f"{case.row:05d}", known)}
    return found


def conditions_of(evaluation: Evaluation, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """case → what its picture is drawn from, in `words`, and the `path` of its masks in colours, None without any."""
    photographs, encoders, found = evaluation.photographs, evaluation.encoders, {}
    wanted = set(keys)
    if photographs is None or not encoders:
        return {}
    for case in evaluation.cases:
        if case.row is None or case.key not in wanted:
            continue
        given = photographs.look(case.row).conditions
        path = None
        if (picture := as_picture(given, encoders)) is not None:
            path = f"{CONDITIONS}/{case.key}.png"
            (evaluation.asked.out / CONDITIONS).mkdir(exist_ok=True)
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            write_changed(evaluation.asked.out / path, stream.getvalue())
        found[case.key] = {"words": in_words(given, encoders), "path": path}
    return found


def person_of(evaluation: Evaluation) -> list[str]:
    """The paths of some photographs of --person, evenly over all, small."""
    photos = evaluation.given["person"]
    if photos is None:
        return []
    (evaluation.asked.out / PERSON).mkdir(exist_ok=True)
    paths, count = [], min(len(photos), PERSON_SHOWN)
    for number in range(count):
        picture = to_pil_image((photos[number * len(photos) // count].image + 1) / 2)
        picture.thumbnail((SIDE, SIDE))
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        paths.append(f"{PERSON}/{number}.png")
        write_changed(evaluation.asked.out / paths[-1], stream.getvalue())
    return paths


def _boxes(notes: Values, name: str) -> dict[str, list[list[float]]]:
    first: dict[str, Any] = {}
    for (case, _), values in sorted(notes.items(), reverse=True):
        if name in values:
            first[case] = values[name].tolist()
    return first
