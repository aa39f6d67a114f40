"""Claims F1 to F6 of docs/evidence_protocol.md, and what `mldm reproduce faces-table1` and `-table5` say of them.

python docs/faces_claims.py table1=REPORT table5=REPORT guided=REPORT

writes docs/faces.json, of which docs/generate.py makes the tables of docs/faces.md. REPORT is a folder of `mldm
evaluate`; `guided` is table 5 with `--guidance 2`.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence import number

from mldm_plugin.conditions.judges import LABELS, mean_iou
from mldm_plugin.evaluation.notes import read_notes
from mldm_plugin.evaluation.statistics import Estimate, paired_difference, set_difference
from mldm_plugin.plugins import load_plugins
from mldm_plugin.records.files import write_text
from mldm_plugin.reproduce.study import Study

DOCS = Path(__file__).parent
FILE = DOCS / "faces.json"
MARGIN, LEAST_MIOU = 0.05, 0.7  # docs/evidence_protocol.md, F2 and F3
ATTRIBUTES, MASKS, DIVERSITY, DISTANCE = "attribute_accuracy", "mask_miou", "condition_diversity", "kd_vgg16"
NAMES = {
    ATTRIBUTES: "attribute accuracy",
    MASKS: "mIoU",
    "mask_accuracy": "mask accuracy",
    DIVERSITY: "diversity (LPIPS)",
    DISTANCE: "kernel distance (VGG16)",
    "fd_vgg16": "Fréchet distance (VGG16)",
}
ORDER = ("attributes", "mask_pooled", "mask", "multi")  # F5: ever more is given


def collect(reports: dict[str, Path]) -> dict[str, Any]:
    """Each report's values by model with their intervals, the judges' own of photographs, and the claims."""
    found = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    for name, report in reports.items():
        results = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
        found[name] = {
            "sampling": results["sampling"],
            "cases": len(results["cases"]),
            "runs": {model["name"]: len(model["runs"]) for model in results["models"]},
            "photographs": {m: of["all"]["photographs"] for m, of in results["parts"].items()},
            "values": {m["name"]: of_models(m["models"]) for m in results["metrics"] if m["name"] in NAMES},
            "versions": results["versions"],
        }
        if name == "table1":
            found[name]["claims"] = about_p2(report, results)
        else:
            found[name]["claims"] = about_conditions(report, results)
    return found


def of_models(estimates: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Value and ends of the interval."""
    return {model: {key: one[key] for key in ("value", "low", "high")} for model, one in estimates.items()}


def about_p2(report: Path, results: dict[str, Any]) -> list[dict[str, Any]]:
    """F1, over training seeds that are paired, and beside it the same at the earlier stages, "p2-666" and so on."""
    study = Study(report, load_plugins(), ())
    stages = sorted(int(model["name"].partition("-")[2] or 0) for model in results["models"] if "p2" in model["name"])
    gap = study.difference(DISTANCE, "p2", "plain")
    return [
        claim("F1", "kernel distance, `p2` − `plain`", told(gap), "below", 0.0) | {"p": gap.p},
        *(
            {
                "claim": "beside F1",
                "what": f"the same after {step} steps, `p2-{step}` − `plain-{step}`",
                **told(study.difference(DISTANCE, f"p2-{step}", f"plain-{step}")),
            }
            for step in stages[1:]  # the end has no number
        ),
    ]


def about_conditions(report: Path, results: dict[str, Any]) -> list[dict[str, Any]]:
    """F2 to F6."""
    values = {metric["name"]: metric["models"] for metric in results["metrics"]}
    least = {
        ATTRIBUTES: results["parts"][ATTRIBUTES]["all"]["photographs"] - MARGIN,
        MASKS: LEAST_MIOU,
    }
    follows = [
        claim(number, f"{NAMES[metric]} of `{arm}`", values[metric][arm], "above", least[metric])
        for number, metric, arms in (("F2", ATTRIBUTES, ("attributes", "multi")), ("F3", MASKS, ("mask", "multi")))
        for arm in arms
    ]
    places = claim("F4", "mIoU, `mask` − `mask_pooled`", difference_of_masks(report, results), "above", 0.0)
    varied = {arm: diversity(results, arm) for arm in ORDER}
    falls = [
        claim("F5", f"diversity, `{more}` − `{less}`", told(paired_difference(varied[more], varied[less])), "below", 0)
        for less, more in itertools.pairwise(ORDER)
    ]
    both = [one["verdict"] for one in follows if one["what"].endswith("`multi`")]
    said = "shown" if set(both) == {"shown"} else "refuted" if "refuted" in both else "not shown"
    last = {"claim": "F6", "what": "`multi` follows both: its F2 and its F3", "verdict": said}
    return [*follows, places, *falls, last]


def claim(number: str, what: str, found: dict[str, float], side: str, limit: float) -> dict[str, Any]:
    """Shown if the whole interval lies on the side that is claimed, refuted if it lies on the other."""
    low, high = (found["low"], found["high"]) if side == "above" else (-found["high"], -found["low"])
    edge = limit if side == "above" else -limit
    verdict = "shown" if low > edge else "refuted" if high < edge else "not shown"
    bare = {key: found[key] for key in ("value", "low", "high")}
    return {"claim": number, "what": what, **bare, "side": side, "limit": limit, "verdict": verdict}


def told(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def diversity(results: dict[str, Any], arm: str) -> Any:
    """(1, C) of the one run that there is."""
    [metric] = [metric for metric in results["metrics"] if metric["name"] == DIVERSITY]
    return np.array([metric["values"][arm]], dtype=np.float64)


def difference_of_masks(report: Path, results: dict[str, Any]) -> dict[str, float]:
    """Of the same cases, by a jackknife over them; the report compares with its first model alone."""
    keys = [case["key"] for case in results["cases"]]

    def of(arm: str) -> Any:
        notes = read_notes(report / "measured" / arm / "0")
        rows: dict[str, list[Any]] = {key: [] for key in keys}
        for (key, _), values in notes.items():
            rows[key] += [value for name, value in values.items() if name.startswith(f"{MASKS}@")]

        def statistic(_: int, cases: Any) -> float:
            counts = np.concatenate([row for case in cases for row in rows[keys[case]]])
            return mean_iou(torch.from_numpy(counts).unflatten(1, (2, LABELS)))

        return statistic

    return told(set_difference(of("mask"), of("mask_pooled"), (1, 1), len(keys)))


def claims_table(*reports: str) -> str:
    """Each claim with what was measured, what was claimed, and whether it was shown."""
    lines = ["| claim | | measured (95 %) | claimed | |", "|---|---|---|---|---|"]
    found = figures()
    for one in (one for report in reports for one in found[report]["claims"]):
        numbers = wanted = ""
        if "value" in one:
            sign = "+" if "−" in one["what"] else ""
            numbers = f"{number(one['value'], sign)} ({number(one['low'], sign)} to {number(one['high'], sign)})"
        if "side" in one:
            wanted = f"{one['side']} {number(one['limit'])}"
        said = f"**{one['verdict']}**" if "verdict" in one else ""
        lines.append(f"| {one['claim']} | {one['what']} | {numbers} | {wanted} | {said} |")
    return "\n".join(lines) + "\n"


def values_table(report: str) -> str:
    """Each model's values with their intervals, and what the judges say of the held-out drawings themselves."""
    of = figures()[report]
    metrics = [metric for metric in NAMES if metric in of["values"]]
    lines = ["| | " + " | ".join(NAMES[metric] for metric in metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for model in of["runs"]:
        cells = []
        for one in (of["values"][metric].get(model) for metric in metrics):
            known = one is not None and one["value"] is not None
            cells.append(f"{number(one['value'])} ({number(one['low'])} to {number(one['high'])})" if known else "–")
        lines.append(f"| `{model}` | " + " | ".join(cells) + " |")
    if of["photographs"]:
        cells = [number(of["photographs"][metric]) if metric in of["photographs"] else "–" for metric in metrics]
        lines.append("| held-out drawings | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def figures() -> Any:
    return json.loads(FILE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    given = {name: Path(path) for name, _, path in (word.partition("=") for word in sys.argv[1:])}
    write_text(FILE, json.dumps(collect(given), indent=1, allow_nan=False, ensure_ascii=False) + "\n")
