"""Whom people-mini draws: the figure of docs/people_mini.md, and people_mini_likeness.json.

python docs/people_mini_likeness.py

Eight pictures of each of the seven people it was trained on, by captions of moods and frames that it knows, and as many
photographs of them; FaceRes, which took no part in the training, says whose portrait each is nearest to. A picture
without a face counts as nobody's.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms.functional import to_tensor
from tqdm import tqdm

from mldm_plugin.evaluation.cases import Case
from mldm_plugin.evaluation.models import load_pipeline, parse_models, set_sampler
from mldm_plugin.evaluation.picture import Picture
from mldm_plugin.evaluation.sampling import noise_of
from mldm_plugin.people_mini.photos import openpeople_folder, photo_samples
from mldm_plugin.people_mini.who import PEOPLE
from mldm_plugin.plugins import load_plugins
from mldm_plugin.records.files import write_text

DOCS = Path(__file__).parent
FILE = DOCS / "people_mini_likeness.json"
PIPELINE = DOCS.parent / "mldm_plugin" / "people_mini" / "pipeline"
MOODS, FRAMES = ("calm", "smiling", "sad", "surprised"), ("bust", "close portrait")
EACH = len(MOODS) * len(FRAMES)
STEPS, GUIDANCE = 25, 3.0


def photographs() -> dict[str, list[Picture]]:
    """The panels with a face of each person, as large as the pictures that are drawn; the portrait first."""
    found: dict[str, list[Picture]] = {person: [] for person in PEOPLE}
    for sample in photo_samples(openpeople_folder()):
        if not sample.record.face:
            continue
        x0, y0, x1, y1 = sample.record.face
        side, x, y = 1.9 * (y1 - y0), (x0 + x1) / 2, (y0 + y1) / 2
        box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
        square = sample.picture.resize((128, 128), box=tuple(np.clip(box, 0, (*sample.picture.size,) * 2)))
        found[sample.record.person].append(Picture(2 * to_tensor(square) - 1, Case(sample.record.name, "", 1)))
    return found


def drawn() -> dict[str, list[Picture]]:
    """Pictures of each person by each caption."""
    [model] = parse_models([f"people-mini={PIPELINE}"], None)
    pipeline = load_pipeline(model.runs[0], torch.device("cpu"), torch.float32)
    set_sampler(pipeline, "dpm++")
    found: dict[str, list[Picture]] = {}
    for person, (mood, frame) in tqdm(list(itertools.product(PEOPLE, itertools.product(MOODS, FRAMES)))):
        case = Case(f"{person} {mood} {frame}", f"photo of {PEOPLE[person].name}, {mood}, {frame}, in a studio", 1)
        options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "generator": noise_of(0, case, 0)}
        picture = pipeline(case.text, **options).images[0]
        found.setdefault(person, []).append(Picture(2 * to_tensor(picture) - 1, case))
    return found


def said_of(pictures: dict[str, list[Picture]], judges: dict[str, object]) -> dict[str, object]:
    """How many of each person's pictures are nearest to their own portrait, and how near."""
    table = {
        person: np.array([[judge(one) for judge in judges.values()] for one in some])  # type: ignore[operator]
        for person, some in pictures.items()
    }
    names = list(judges)
    right = {p: int(((v.argmax(1) == names.index(p)) & (v.max(1) > 0)).sum()) for p, v in table.items()}
    own = np.concatenate([v[:, names.index(p)] for p, v in table.items()])
    others = np.concatenate([np.delete(v, names.index(p), 1).ravel() for p, v in table.items()])
    return {
        "pictures": sum(map(len, pictures.values())),
        "without a face": int(sum((v == 0).all(1).sum() for v in table.values())),
        "nearest to their own portrait": right,
        "likeness to their own": round(float(own.mean()), 3),
        "likeness to others": round(float(others.mean()), 3),
    }


def main() -> int:
    torch.set_num_threads(1)
    known = photographs()
    make = load_plugins().metrics["identity"]
    judges = {person: make(person=some[:1]) for person, some in known.items()}
    step = {person: max((len(some) - 1) // EACH, 1) for person, some in known.items()}
    others = {person: some[1 :: step[person]][:EACH] for person, some in known.items()}
    found = {"photographs": said_of(others, judges), "people-mini": said_of(drawn(), judges)}
    write_text(FILE, json.dumps(found, indent=1) + "\n")
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
