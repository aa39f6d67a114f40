"""The tables of docs/metrics, made of the metrics that are registered and of docs/metrics/sensitivity.json."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

from mldm_plugin.evaluation.quantities import QUANTITIES
from mldm_plugin.plugins import load_plugins

METRICS = Path(__file__).parent / "metrics"
MARKS = {"worse": "•●", "better": "◇◆", "not shown": "○○"}
SURE = 2.8  # standard errors of a difference that four of five evaluations show, z₀.₉₇₅ + z₀.₈
DETECTORS = {
    "faces": "faces (MTCNN)",
    "poses": "bodies (BlazePose)",
    "hands": "hands of known bodies (MediaPipe Hands)",
}
OF_FACES = ("face_found", "face_score", "face_sharpness", "people_count", "identity", "diversity")
LOOKED_FOR = {**dict.fromkeys(OF_FACES, ("faces",)), "hands": ("poses", "hands"), "pose": ("poses",)}
NOT_HERE = ("clip", "dinov2", "inception")  # networks whose weights were not on the machine that measured
OTHERS = ("of", "network", "extrapolate")  # options that a registered name may set


def number(value: float | None, sign: str = "") -> str:
    """Two digits that count, none behind the fifth place."""
    if value is None:
        return "–"
    places = min(max(1 - math.floor(math.log10(abs(value))), 0), 5) if value else 0
    text = f"{value:{sign}.{places}f}"
    return "0" if not float(text) else text.replace("-", "−")


def figures(part: str) -> Any:
    return json.loads((METRICS / "sensitivity.json").read_text(encoding="utf-8"))[part]


def ms(value: float) -> str:
    return f"{value:.0f}" if value >= 1 else "< 1"


def as_table(rows: list[list[str]]) -> str:
    head, *body = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body]) + "\n"


def metrics_table() -> str:
    """Every metric: what it is, which way is good, its networks, its cost, its card."""
    rows = [["metric", "what it is", "good", "networks", "ms", "card"]]
    costs = figures("cost")
    for name, factory in load_plugins().metrics.entries.items():
        kind, given = getattr(factory, "func", factory), getattr(factory, "keywords", {})
        sentence = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()).rstrip(".").replace("|", "\\|")
        options = ", ".join(f"{key}: {given[key]}" for key in OTHERS if key in given)
        card = Path(inspect.getfile(kind)).stem
        networks = costs["networks"].get(name) or given.get(
            "network", "clip" if name.startswith(("cmmd", "clip_score")) else ""
        )
        what = sentence + (f" ({options})" if options else "")
        took = costs["ms"].get(name)
        cells = [f"`{name}`", what, {"larger": "↑", "smaller": "↓"}[kind.better], networks or "–"]
        why = "needs weights that were not here" if networks in NOT_HERE else "not measured yet"
        rows.append([*cells, why if took is None else ms(took), f"[{card}]({card}.md)"])
    return as_table(rows)


def one_step_table(prefix: str = "") -> str:
    """What is measured of one-step estimates; with what stands before the names in logs."""
    rows = [["quantity", "what it is"], *([f"`{prefix}{one.name}`", one.what] for one in QUANTITIES)]
    return as_table(rows)


def card_table(card: str) -> str:
    """The metrics of a card, with what a picture of 128 px costs on one core, detectors apart."""
    costs = figures("cost")
    rows = [["metric", "good", "networks", "ms", "and, once for all metrics, ms"]]
    looked = [f"{DETECTORS[n]} {ms(costs['detectors'][n])}" for n in LOOKED_FOR.get(card, ())]
    for name, factory in load_plugins().metrics.entries.items():
        kind = getattr(factory, "func", factory)
        if Path(inspect.getfile(kind)).stem == card:
            took = ms(costs["ms"][name]) if name in costs["ms"] else "not measured yet"
            cells = [f"`{name}`", kind.better, costs["networks"].get(name) or "–", took]
            rows.append([*cells, ", ".join(looked) or "–"])
    return as_table(rows)


def detectors_table() -> str:
    """What looking costs once for all metrics of a picture."""
    return as_table([["detector", "ms"], *([DETECTORS[n], ms(x)] for n, x in figures("cost")["detectors"].items())])


def seen_table(part: str) -> str:
    """Metrics × degradations: three marks each, from weak to strong."""
    found = figures(part)
    rows = [["metric", *(one["title"] for one in found["degradations"].values())]]
    for name, head in found["metrics"].items():
        arrow = {"larger": "↑", "smaller": "↓"}[head["better"]]
        marks = [[at[name] for at in one["found"]] for one in found["degradations"].values()]
        least = shown_by_200(head["error"], found["cases"])
        cells = ["".join("–" if m[1] is None else MARKS[m[3]][abs(m[0]) >= least] for m in of) for of in marks]
        rows.append([f"`{name}` {arrow}", *cells])
    return as_table(rows)


def shown_by_200(error: float, cases: int) -> float:
    """The difference that 200 pictures of each of two models show, by the standard error of fewer."""
    return SURE * math.sqrt(2 * cases / 200) * error


def strengths_table(part: str) -> str:
    """How strong weak, middle and strong are."""
    found = figures(part)["degradations"].values()
    return as_table(
        [["degradation", "weak", "middle", "strong"], *([one["title"], *one["strengths"]] for one in found)]
    )


def sizes_table(part: str) -> str:
    """The values of undegraded photographs, and how far the strongest degradation of each kind moves them."""
    found = figures(part)
    rows = [["metric", "undegraded", *(one["title"] for one in found["degradations"].values())]]
    for name, head in found["metrics"].items():
        gaps = [one["found"][-1][name][0] for one in found["degradations"].values()]
        rows.append([f"`{name}`", number(head["value"]), *(number(gap, "+") for gap in gaps)])
    return as_table(rows)


def alarms_table() -> str:
    """False alarms with their binomial intervals, and what 200 pictures of each model show."""
    found = figures("alarms")
    rows = [["metric", "samples", "false alarms", "95 % interval", "200 pictures a model show"]]
    for name, one in found["metrics"].items():
        if not one["error"]:
            rows.append([f"`{name}`", str(one["cases"]), "all values are equal", "–", "–"])
            continue
        least = shown_by_200(one["error"], one["cases"])
        interval = f"{one['low']:.1%} to {one['high']:.1%}"
        rate = f"{one['rate']:.1%}"
        if (again := one.get("again")) is not None:
            rate, interval = (
                f"{rate}; again {again['rate']:.1%}",
                f"{interval}; again {again['low']:.1%} to {again['high']:.1%}",
            )
        rows.append([f"`{name}`", str(one["cases"]), rate, interval, number(least)])
    return as_table(rows)


def sets_table() -> str:
    """Distances of sets of real faces."""
    found = figures("sets")["comparisons"]
    names = list(next(iter(found.values()))[1])
    rows = [["generated against real", "faces", *(f"`{name}`" for name in names)]]
    rows += [
        [title, ", ".join(map(str, sizes)), *(number(of[name]) for name in names)]
        for title, (sizes, of) in found.items()
    ]
    return as_table(rows)


def draws_table() -> str:
    """Mean and deviation of distances of few faces from as many others of the same people."""
    found = figures("sets")["sizes"]
    rows = [["N", *found]]
    for name in ("kd_vgg16_face", "kd_face", "fd_vgg16_face"):
        words = f"`{name}`, " + ("which is biased" if name.startswith("fd") else "mean ± deviation")
        rows.append([words, *(" ± ".join(map(number, of[name])) for of in found.values())])
    return as_table(rows)


def copies_table() -> str:
    """Likeness of altered copies, and of other photographs."""
    found = figures("copies")["likeness"]
    rows = [["picture", "least", "median", "most"]]
    return as_table(rows + [[way, *(f"{value:.3f}" for value in values)] for way, values in found.items()])
