"""Would anything that is sharper do? The untrained model's one-step estimates, sharpened by a filter or guided.

python docs/evidence_sharpened.py RUN     "sharpened" in docs/evidence_objections.json; RUN of `mldm reproduce evidence`

Beside them the first seed of two arms, with how far the Laplacian of people is from that of the drawing, so that
detail which is not the drawing's own can be told from detail that is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from evidence_objections import FILE, GATE, rounded, told
from tqdm import tqdm

from mldm_plugin.evaluation.cases import open_photographs
from mldm_plugin.evaluation.judges import Judges
from mldm_plugin.evaluation.models import load_pipeline, parse_models
from mldm_plugin.evaluation.notes import read_notes
from mldm_plugin.evaluation.one_step import TIMESTEPS, OneStep
from mldm_plugin.evaluation.predicting import Asker
from mldm_plugin.people_mini import PIPELINE
from mldm_plugin.perceptual.laplacian import laplacian
from mldm_plugin.records.files import write_text
from mldm_plugin.reproduce.study import JUDGES

AMOUNTS = (0.1, 0.5)  # of what a mean of 3 × 3 pixels takes away, added to the picture
GUIDANCE = 1.5
QUANTITIES = ("one_step_face", "one_step_lpips_person", "one_step_lpips_outside", "one_step_blur_person", "laplacian")
ARMS = ("plain", "t400")
Found = dict[str, dict[str, list[list[float]]]]  # variant → quantity → (drawings, t)


def measure(run: Path) -> dict[str, Any]:
    """Differences to the untrained model, over drawings, below and above the gate."""
    made = {"base": of_model(str(PIPELINE), run, plain=False)}
    made |= {arm: of_model(str(run / "runs" / f"{arm}-s0"), run, plain=True) for arm in ARMS}
    variants = {**made["base"], **{arm: made[arm]["as it is"] for arm in ARMS}}
    below, found = np.array(TIMESTEPS) <= GATE, {}
    for name, values in variants.items():
        if name != "as it is":
            pairs = {q: (np.array(values[q]), np.array(variants["as it is"][q])) for q in QUANTITIES if values[q]}
            found[name] = {
                q: {side: told(one[None, :, at].mean(2), base[None, :, at].mean(2)) for side, at in sides.items()}
                for q, (one, base) in pairs.items()
                for sides in ({"below": below, "above": ~below, "all": below | True},)
            }
    return found


def of_model(what: str, run: Path, *, plain: bool) -> Found:
    """Of each drawing that the study judged on, at each t: as it is, and, unless `plain`, sharpened and guided."""
    [model] = parse_models([f"model={what}"], str(PIPELINE))
    pipeline = load_pipeline(model.runs[0], torch.device("cpu"), torch.float32)
    ask, photographs = Asker(pipeline), open_photographs(run / "data", 128)
    one_step = OneStep(pipeline.vae, pipeline.scheduler, Judges(**JUDGES))

    def guided(noisy: torch.Tensor, t: float, caption: str, example: Any) -> torch.Tensor:
        with_text, without = (ask(noisy, t, words, example) for words in (caption, ""))
        return without + GUIDANCE * (with_text - without)

    found: Found = {}
    for row in tqdm(rows_of(run), desc=what):
        example, name = photographs.look(row), f"{row:05d}"
        truth, caption = example.pixel_values[None], photographs.captions[row]
        seen = one_step._looked_at(truth, example)

        def keep(variant: str, by_t: list[torch.Tensor], example: Any = example, seen: Any = seen) -> None:
            values = [{**one_step._distances(p, example, seen), "laplacian": strange(p, example)} for p in by_t]
            for quantity in QUANTITIES:
                found.setdefault(variant, {}).setdefault(quantity, []).append([float(v[quantity]) for v in values])

        with torch.no_grad():
            drawn = [one.picture for one in one_step.estimates(ask, example, caption, name, TIMESTEPS)]
            keep("as it is", drawn)
            if not plain:
                for amount in AMOUNTS:
                    keep(f"sharpened {amount}", [sharper(picture, amount) for picture in drawn])
                keep("guided", [one.picture for one in one_step.estimates(guided, example, caption, name, TIMESTEPS)])
    return found


def rows_of(run: Path) -> list[int]:
    """Every third drawing that the study judged on."""
    return sorted(int(key) for key, _ in read_notes(run / "report" / "one_step" / "plain" / "0"))[::3]


def sharper(picture: torch.Tensor, amount: float) -> torch.Tensor:
    """An unsharp mask."""
    blurred = F.avg_pool2d(F.pad(picture, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return (picture + amount * (picture - blurred)).clamp(-1, 1)


def strange(picture: torch.Tensor, example: Any) -> float:
    """Squared difference of the Laplacians of picture and drawing on people, over the drawing's: 1 for a picture
    without detail, more where its detail is not the drawing's."""
    inside = (example.person_mask[None] > 0).float()
    made, wanted = (laplacian(F.pad(p, (1, 1, 1, 1), mode="replicate")) for p in (picture, example.pixel_values[None]))
    return float(((made - wanted).square() * inside).sum() / (wanted.square() * inside).sum())


def main() -> None:
    """Measure and write."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    found = measure(Path(sys.argv[1]))
    known = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    write_text(FILE, json.dumps({**known, "sharpened": rounded(found)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
