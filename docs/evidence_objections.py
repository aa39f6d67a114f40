"""What a reviewer measured of the finished studies who was told that the claim is wrong.

python docs/evidence_objections.py one_step RUN              of `mldm reproduce evidence`: where the gain lies, its cost
python docs/evidence_objections.py faces P009=RUN P010=RUN   of `mldm reproduce likeness`: like her, or like anybody?

Both write a part of docs/evidence_objections.json; docs/evidence.md, "What a sceptic asks", says what came out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from mldm_plugin.evaluation.notes import read_notes
from mldm_plugin.evaluation.one_step import TIMESTEPS
from mldm_plugin.evaluation.picture import read_image
from mldm_plugin.evaluation.statistics import paired_difference
from mldm_plugin.hooks.metrics.copying import Copying
from mldm_plugin.people_mini.photos import openpeople_folder, photo_rows
from mldm_plugin.people_mini.unseen import HELD_OUT, LEARNT, SHEETS, STUDIO
from mldm_plugin.perceptual.face_crops import crop_faces
from mldm_plugin.perceptual.face_networks import FaceFeatures
from mldm_plugin.plugins import load_plugins
from mldm_plugin.records.files import write_text
from mldm_plugin.reproduce.study import Study

Array = NDArray[np.float64]
FILE = Path(__file__).parent / "evidence_objections.json"
GATE = 400  # T of the arms that are looked at
PAIRS = (("t400", "plain"), ("additive", "plain"), ("t400", "t100"), ("face_0.75", "face_0"))
QUANTITIES = ("one_step_face", "one_step_lpips_person", "one_step_lpips_outside", "one_step_blur_person")
UNTRAINED = ("one_step_face", "one_step_lpips_person", "one_step_error")
SAME_MOMENT = ("t100", "t400", "additive", "face_0", "face_0.75", "released", "masked_mse")  # p2 logs a weighted loss
PEOPLE = tuple(f"P{number:03d}" for number in range(1, 11))
FACE = 128 / 1.9  # height of a face in the photographs that people-mini sees, pixels


def told(one: Array, other: Array) -> dict[str, float]:
    """one − other, (R, C), with its 95 % interval over seeds and cases, and what the other is."""
    gap = paired_difference(one, other, same_seeds=len(one) == len(other) > 1)
    return {"value": gap.value, "low": gap.low, "high": gap.high, "against_mean": float(other.mean())}


def one_step(run: Path) -> dict[str, Any]:
    """The gain below and above the gate, the untrained model, the error of ε elsewhere, and the batches."""
    study = Study(run / "report", load_plugins(["mldm_plugin.people_mini.metrics"]), ())
    below = np.array(TIMESTEPS) <= GATE
    gated: dict[str, Any] = {}
    for arm, against in PAIRS:
        for quantity in QUANTITIES:
            one, other = study.one_step(quantity, arm), study.one_step(quantity, against)
            gap = (one - other).mean((0, 1))
            sides = {name: told(one[:, :, at].mean(2), other[:, :, at].mean(2)) for name, at in sides_of(below)}
            share, last = float(gap[~below].sum() / gap.sum()), float(gap[-1] / gap.sum())
            gated.setdefault(f"{arm} - {against}", {})[quantity] = {**sides, "share_above": share, "share_of_900": last}
    untrained = {
        arm: {q: told(study.one_step(q, arm).mean(2), study.one_step(q, "base").mean(2)) for q in UNTRAINED}
        for arm in ("plain", "t400")
    }
    outside = {arm: elsewhere(study, run, arm) for arm in ("plain", "t400", "additive", "face_0.75", "masked_mse")}
    cost = {arm: told(found, outside["plain"]) for arm, found in outside.items() if arm != "plain"}
    attributes = told(*(study.values("attributes", arm) for arm in ("masked_mse", "plain")))
    people = study.difference("kd_alexnet_person", "face_0.75", "plain")
    label = study._label("kd_alexnet_person")
    rows = [sum(len(v[label]) for v in notes.values()) for notes in study._measured["plain"]]
    return {
        "gated": gated,
        "against_base": untrained,
        "error_elsewhere": cost,
        "masked_mse_attributes": attributes,
        "face_0.75_people": {"value": people.value, "low": people.low, "high": people.high},
        "people_found": sum(rows) / len(rows),
        "distance_of_two_drawings_faces": strangers(study),
        "least_correlation_of_plain_losses": alike(run),
    }


def strangers(study: Study) -> float:
    """The mean cosine distance of faces of two different drawings, those that MTCNN finds among a hundred."""
    label = study._label("kd_faceres")
    rows = np.concatenate([v[label] for v in study._real.values() if v.get(label) is not None and len(v[label])])
    known = F.normalize(torch.from_numpy(rows), dim=1)
    near = known @ known.T
    return float(1 - (near.sum() - near.trace()) / (len(near) * (len(near) - 1)))


def sides_of(below: Any) -> tuple[tuple[str, Any], ...]:
    return ("below", below), ("above", ~below)


def elsewhere(study: Study, run: Path, arm: str) -> Array:
    """Error of ε where no people are, (R, C): the whole picture's without that of the latents that people cover."""
    lines = (run / "data" / "validation" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    covered = []
    for key in sorted(study._one_step[arm][0]):
        with Image.open(run / "data" / "validation" / json.loads(lines[int(key[0])])["mask_file_name"]) as mask:
            covered.append(float((np.asarray(mask) > 0).mean()))
    cover = np.array(covered)[None]
    whole, people = (study.one_step(q, arm).mean(2) for q in ("one_step_error", "one_step_error_person"))
    return (whole - cover * people) / (1 - cover)


def alike(run: Path) -> float:
    """The least correlation, over arms and seeds, of the plain losses of an arm and of `plain`, step by step."""

    def losses(arm: str, seed: int) -> Array:
        text = (run / "runs" / f"{arm}-s{seed}" / "metrics.jsonl").read_text(encoding="utf-8")
        return np.array([json.loads(line)["ldm"] for line in text.splitlines()])

    pairs = [(arm, seed) for arm in SAME_MOMENT for seed in range(5)]
    return min(float(np.corrcoef(losses(arm, seed), losses("plain", seed))[0, 1]) for arm, seed in pairs)


def faces(runs: dict[str, Path]) -> dict[str, Any]:
    """How like the person, and how like nine others, drawn faces and photographs are."""
    judge = FaceFeatures("faceres")
    known = {who: (panels_of(who, LEARNT, judge), panels_of(who, HELD_OUT, judge)) for who in PEOPLE}
    return {who: of_person(who, run, known, judge) for who, run in runs.items()}


def panels_of(person: str, panels: Sequence[str], judge: FaceFeatures) -> torch.Tensor:
    """Embeddings of photographs of openpeople, (n, D), at the size that the studies' have."""
    rows = {row[2] or row[1]: row for row in photo_rows() if row[0] == person and row[1].startswith((STUDIO, *SHEETS))}
    found = []
    for _, picture, _, box, face in (rows[panel] for panel in panels):
        with Image.open(openpeople_folder() / person / "assets" / f"{picture}.jpg") as whole:
            cut = whole.convert("RGB").crop(box)
        scale = FACE / (face[3] - face[1])
        small = cut.resize((round(cut.width * scale), round(cut.height * scale)), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(small, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)
        inside = [(v - corner) * scale for v, corner in zip(face, (box[0], box[1]) * 2, strict=True)]
        found.append(embedded(pixels, inside, judge))
    return torch.cat(found)


def embedded(image: torch.Tensor, box: Sequence[float], judge: FaceFeatures) -> torch.Tensor:
    """(1, D), of unit length."""
    with torch.no_grad():
        face = crop_faces(image[None], [torch.tensor([list(box)], dtype=torch.float32)], judge.crop)
        return F.normalize(judge(face)[-1].flatten(1), dim=1)


def of_person(who: str, run: Path, known: Any, judge: FaceFeatures) -> dict[str, Any]:
    learnt, kept = known[who]
    others = [known[other][0] for other in PEOPLE if other != who]

    def to(photographs: torch.Tensor, face: torch.Tensor) -> float:
        return float((photographs @ face[0]).mean())

    asked: dict[str, Callable[[torch.Tensor], float]] = {
        "own": lambda face: to(learnt, face),
        "kept_back": lambda face: to(kept, face),
        "others": lambda face: float(np.mean([to(one, face) for one in others])),
        "nearer_than_others": lambda face: to(learnt, face) - float(np.mean([to(one, face) for one in others])),
        "nearest_is_own": lambda face: float(to(learnt, face) > max(to(one, face) for one in others)),
    }
    drawn = {arm: faces_drawn(run / "report", arm, judge) for arm in ("plain", "plain_same_time", "masked_ldm")}
    found: dict[str, Any] = {
        "faces_not_found": {a: sum(f is None for s in d for c in s for f in c) for a, d in drawn.items()}
    }
    for name, ask in asked.items():
        arms = {
            arm: np.array([[np.mean([0.0 if f is None else ask(f) for f in case]) for case in seed] for seed in of_arm])
            for arm, of_arm in drawn.items()
        }
        gaps = {f"masked_ldm - {arm}": told(arms["masked_ldm"], arms[arm]) for arm in ("plain", "plain_same_time")}
        found[name] = {"arms": {arm: float(values.mean()) for arm, values in arms.items()}, **gaps}
    found["of_the_whole_picture"] = of_last_photograph(run / "report")
    found["photographs"] = {
        "own": float((kept @ learnt.T).mean()),
        "others": float((kept @ torch.cat(others).T).mean()),
    }
    return {**found, "copying_of_kept_back": copying_of_kept_back(run)}


def faces_drawn(report: Path, arm: str, judge: FaceFeatures) -> list[list[list[torch.Tensor | None]]]:
    """By seed and caption: the embedding of the largest face of each picture, None where none was found."""
    found = []
    for seed in range(5):
        notes = read_notes(report / "measured" / arm / str(seed))
        by_case: dict[str, list[torch.Tensor | None]] = {}
        for (key, repetition), values in sorted(notes.items()):
            boxes = values["faces@boxes"]
            image = read_image(report / "pictures" / arm / str(seed) / f"{key}-{repetition}.png")
            by_case.setdefault(key, []).append(embedded(image, boxes[0].tolist(), judge) if len(boxes) else None)
        found.append(list(by_case.values()))
    return found


def of_last_photograph(report: Path) -> dict[str, list[float]]:
    """Differences by seed in one-step face distance of `studio_posture`, the one kept back that is not of the sheet."""

    def distances(arm: str) -> Array:
        notes = [read_notes(report / "one_step" / arm / str(seed)) for seed in range(5)]
        return np.array([np.mean([of[max(of)][f"one_step_face@{t}"] for t in TIMESTEPS]) for of in notes])

    own = distances("masked_ldm")
    return {f"masked_ldm - {arm}": (own - distances(arm)).tolist() for arm in ("plain", "plain_same_time")}


def copying_of_kept_back(run: Path) -> float:
    """What the metric `copying` says, on average, of the photographs that no training saw."""
    learnt, kept = (
        [SimpleNamespace(image=read_image(file)) for file in sorted((run / "data" / name).glob("*.png"))]
        for name in ("train", "validation")
    )
    metric = Copying(train_data=learnt)
    return float(np.mean([metric(photograph) for photograph in kept]))


def rounded(value: Any) -> Any:
    """Six digits."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def main(words: Sequence[str]) -> None:
    """One of the parts."""
    if words[:1] == ["one_step"]:
        found: Any = one_step(Path(words[1]))
    elif words[:1] == ["faces"]:
        found = faces({who: Path(run) for who, _, run in (word.partition("=") for word in words[1:])})
    else:
        sys.exit(__doc__)
    known = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    write_text(FILE, json.dumps({**known, words[0]: rounded(found)}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
