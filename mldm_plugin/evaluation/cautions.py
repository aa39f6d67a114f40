"""What a reader of a report must know before believing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mldm_plugin.data.load import HELD_OUT
from mldm_plugin.evaluation.statistics import LEVEL, fewest, least_p

if TYPE_CHECKING:
    from mldm_plugin.evaluation.evaluate import Evaluation
    from mldm_plugin.evaluation.measuring import Metrics
    from mldm_plugin.evaluation.results import Measured

# kind of metric → what its cases are, and what gives more of them
UNITS = {"picture": ("prompts", "Draw"), "one_step": ("photographs", "Look in one step at")}
OWN_GUIDANCE = {"conditional": 1.0, "lora": 7.5, "controlnet": 7.5}  # of the pipelines that read conditions


def warnings_of(evaluation: Evaluation, measured: Sequence[Measured]) -> list[tuple[str, str]]:
    """What makes figures mean something else than they seem to: sentences to be printed strong, with reasons."""
    found = []
    photographs = evaluation.photographs
    if photographs is not None and photographs.split not in HELD_OUT:
        reason = "The data set has no split 'validation' or 'test'; a model trained on these looks better than it is."
        found.append(("The photographs may not be held out from training.", reason))
    return found + _other_cases(measured) + _hints(evaluation) + _conditions(evaluation) + _guided(evaluation)


def notes_of(metrics: Metrics, measured: Sequence[Measured]) -> list[tuple[str, str]]:
    """Where there is too little to say much; nothing that is said is wrong. Sentences and reasons as above."""
    few = _too_few(measured) if any(one.differences for one in measured) else []
    return few + _small_sets(metrics, measured)


def _small_sets(metrics: Metrics, measured: Sequence[Measured]) -> list[tuple[str, str]]:
    """Distances of sets of fewer pictures, people or faces than they ask for."""
    few = []
    for one in measured:
        least = getattr(metrics.ready[one.name], "least", 0) if one.kind == "set" else 0
        if (rows := min(one.rows.values(), default=least)) < least:
            few.append(f"{one.title} ({rows} of {least})")
    reason = f"There are fewer than wanted for {', '.join(few)}. Compare only values of the same number."
    return [("Few pictures for distances of sets.", reason)] if few else []


def _other_cases(measured: Sequence[Measured]) -> list[tuple[str, str]]:
    """Models that were measured on fewer cases than others."""
    fewer: dict[str, tuple[int, int]] = {}
    for one in measured:
        counts = {model: int((~np.isnan(array).any(0)).sum()) for model, array in one.values.items()}
        most = max(counts.values(), default=0)
        fewer |= {model: (count, most) for model, count in counts.items() if count < most}
    return [
        (
            f"{model} was measured on fewer cases.",
            f"{count} of {most}: its mean is not of the same ones as the others'.",
        )
        for model, (count, most) in fewer.items()
    ]


def _hints(evaluation: Evaluation) -> list[tuple[str, str]]:
    """ControlNets that were shown nothing."""
    photographs = evaluation.photographs
    seen = photographs is not None and any(case.row is not None for case in evaluation.cases)
    if seen and photographs is not None:
        seen = photographs.look(0).conditioning_pixel_values is not None
    blind = [model.name for model in evaluation.models if any(run.takes_hints for run in model.runs)]
    if seen or not blind:
        return []
    return [
        (
            f"{', '.join(blind)} drew from black hints.",
            "The prompts come without hints: give --data with a column of them.",
        )
    ]


def _conditions(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Models that draw from conditions, and cases that have none."""
    if not evaluation.encoders:
        return []
    without = sum(case.row is None for case in evaluation.cases)
    if not without:
        return []
    blind = [model.name for model in evaluation.models if any(run.reads_conditions for run in model.runs)]
    return [
        (
            f"{', '.join(blind)} drew {without} of {len(evaluation.cases)} pictures without conditions.",
            "They belong to no held-out row: give --data, and leave out --prompts-from.",
        )
    ]


def _guided(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Models that were guided away from absent conditions, and never had any absent in training."""
    if not evaluation.encoders:
        return []
    asked = evaluation.asked.sampling.guidance
    found = []
    for model in evaluation.models:
        scales = [asked if asked is not None else OWN_GUIDANCE[run.kind] for run in model.runs if run.never_without]
        found += [model.name] if any(scale != 1 for scale in scales) else []
    if not found:
        return []
    return [
        (
            f"{', '.join(found)} was guided away from what it never learnt.",
            "It was trained with its conditions in every picture, so its tokens for absent ones are noise, and "
            "guidance leads away from them: train with --condition_dropout 0.1, or draw with --guidance 1.",
        )
    ]


def _too_few(measured: Sequence[Measured]) -> list[tuple[str, str]]:
    """Where even the clearest difference could not be shown: all 2ⁿ flips of signs, and Holm's correction."""
    found, compared = [], [one for one in measured if one.differences]
    able = [one for one in compared if any(gap.least_p < 1 - LEVEL for gap in one.differences.values())]
    for kind, (what, how) in UNITS.items():
        of_kind = [gap for one in compared if one.kind == kind for gap in one.differences.values() if gap.least_p]
        cases = max((gap.cases for gap in of_kind), default=0)
        dead = cases < fewest()  # more of them would bring their metrics back among those that are corrected for
        tests = len(compared if dead else able)
        if of_kind and cases < fewest(tests):
            reason = f"The smallest p-value of {cases} is {least_p(cases):.2g}; of {tests} metrics one must be below "
            reason += f"{(1 - LEVEL) / tests:.2g}. {how} {fewest(tests)} or more, better a hundred."
            reason += " Until then the others are corrected as if these metrics were not there." if dead else ""
            found.append((f"Too few {what} to show any difference.", reason))
    return found
