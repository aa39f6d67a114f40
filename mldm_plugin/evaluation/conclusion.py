"""What an evaluation found, in a few plain sentences that claim no more than its verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mldm_plugin.evaluation.digits import decimals

# What is the case where a metric is better, where it is worse, and what its values are; others go by their titles.
WORDS = {
    "identity": ("faces are nearer to the person", "faces are farther from the person", "likeness"),
    "identity_dlib": ("faces are nearer to the person", "faces are farther from the person", "likeness"),
    "copying": (
        "pictures are less like those that were trained on",
        "pictures are more like those that were trained on",
        "likeness to the nearest",
    ),
    "face_found": ("more faces are found", "fewer faces are found", "share"),
    "face_sharpness": (
        "the sharpness of faces is nearer to that of photographs",
        "the sharpness of faces is farther from that of photographs",
        "octaves between them",
    ),
    "one_step_error": ("noise is predicted more exactly", "noise is predicted less exactly", "squared error"),
    "one_step_lpips_person": (
        "restored people look more like the photographs",
        "restored people look less like the photographs",
        "LPIPS",
    ),
    "one_step_blur_person": ("restored people keep more detail", "restored people keep less detail", "octaves lost"),
    "one_step_face": (
        "restored faces are nearer to the photographs",
        "restored faces are farther from the photographs",
        "distance",
    ),
}
MOST = 3  # metrics that are told with their numbers in either direction; chosen: more is no conclusion


def conclude(results: dict[str, Any]) -> dict[str, list[str]]:
    """For each model but the first: sentences of what is better and worse than the first, and what is not shown.

    A verdict is that of the table: the interval leaves out zero, and so does Holm's correction for all metrics.
    """
    first, *others = results["models"]
    return {one["name"]: _sentences(results["metrics"], first, one) for one in others}


def in_a_line(results: dict[str, Any]) -> list[str]:
    """What `conclude` says, as a paragraph for each model."""
    first = results["models"][0]["name"]
    return [f"{name} against {first}. {' '.join(said)}" for name, said in conclude(results).items()]


def _sentences(metrics: Sequence[dict[str, Any]], first: dict[str, Any], one: dict[str, Any]) -> list[str]:
    name = one["name"]
    compared = [(metric, metric["differences"][name]) for metric in metrics if metric["differences"].get(name)]
    if not compared:
        return ["Nothing was measured of both."]
    said, shown = [], 0
    for side, word in enumerate(("better", "worse")):
        found = [metric for metric, gap in compared if gap["verdict"] == word]
        shown += len(found)
        if found:
            told = [_told(metric, first["name"], name, side) for metric in found[:MOST]]
            others = [metric["title"] for metric in found[MOST:]]
            more = [f"and {len(others)} more ({', '.join(others)})"] if others else []
            said.append(f"{word.capitalize()}: {'; '.join([*told, *more])}.")
    few = [metric for metric, gap in compared if metric["too_few"]]
    rest = len(compared) - shown - len(few)
    if rest or few:
        what = "Everything else is not" if said else "Nothing is"
        said.append(f"{what} shown to differ{_of(rest, few)}.")
    return [*said, *(_once(first, one) if shown else [])]


def _told(metric: dict[str, Any], first: str, name: str, side: int) -> str:
    """What is the case, the two values, the interval of their difference, and whether its judge is a party."""
    digits, gap = decimals(metric), metric["differences"][name]
    *words, unit = WORDS.get(metric["name"], (metric["title"], metric["title"], ""))
    values = " against ".join(f"{metric['models'][model]['value']:.{digits}f}" for model in (name, first))
    numbers = f"{values}, difference {gap['low']:+.{digits}f} to {gap['high']:+.{digits}f}"
    party = "; its judge is a network that the loss trained on" if _is_party(metric, name) else ""
    return f"{words[side]} ({f'{unit} ' if unit else ''}{numbers}{party})"


def _is_party(metric: dict[str, Any], name: str) -> bool:
    return any(name in models for models in metric["trained_on"].values())


def _of(rest: int, few: Sequence[dict[str, Any]]) -> str:
    """How many metrics that is, and which of them rest on too few cases to show anything."""
    known = [_counted(rest, "metric")] if rest else []
    seen = sorted({cases_of(metric) for metric in few})
    known += [f"{len(few)}{' more' if rest else ''} on {' or '.join(seen)}, too few to show anything"] if few else []
    return f" ({'; '.join(known)})"


def cases_of(metric: dict[str, Any]) -> str:
    """How many of what a metric rests on."""
    return _counted(metric["cases"], "photograph" if metric["kind"] == "one_step" else "prompt")


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _once(*models: dict[str, Any]) -> list[str]:
    """That another seed may come out otherwise, where one was trained of each."""
    runs = [run for model in models for run in model["runs"]]
    trained = any(run["kind"] in ("lora", "controlnet", "conditional") for run in runs)
    return ["One training each: another seed may come out otherwise."] if trained and len(runs) == len(models) else []
