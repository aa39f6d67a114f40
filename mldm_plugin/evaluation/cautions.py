"""What a reader of a report must know before believing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mldm_plugin.data.load import HELD_OUT
from mldm_plugin.evaluation.statistics import LEVEL, fewest

if TYPE_CHECKING:
    from mldm_plugin.evaluation.evaluate import Evaluation
    from mldm_plugin.evaluation.measuring import Metrics
    from mldm_plugin.evaluation.results import Measured


def warnings_of(evaluation: Evaluation, metrics: Metrics, measured: Sequence[Measured]) -> list[tuple[str, str]]:
    """Each a sentence to be printed strong, and what explains it."""
    found = []
    photographs = evaluation.photographs
    if photographs is not None and photographs.split not in HELD_OUT:
        reason = "The data set has no split 'validation' or 'test'; a model trained on these looks better than it is."
        found.append(("The photographs may not be held out from training.", reason))
    found += _other_cases(measured) + _hints(evaluation)
    if any(one.differences for one in measured):
        found += _too_few(evaluation, len(measured))
    pictures = len(evaluation.cases) * evaluation.asked.sampling.repetitions
    wanted = {metrics.ready[name].title: getattr(metrics.ready[name], "least", 0) for name in metrics.of_sets}
    if few := [f"{title} ({least})" for title, least in wanted.items() if pictures < least]:
        reason = f"There are {pictures}; wanted are, for {', '.join(few)}. Compare only values of the same number."
        found.append(("Few pictures for distances of sets.", reason))
    return found


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


def _too_few(evaluation: Evaluation, tests: int) -> list[tuple[str, str]]:
    """Where even the clearest difference could not be shown: all 2ⁿ flips of signs, and Holm's correction."""
    cases, enough = len(evaluation.cases), fewest(tests)
    if not 0 < cases < enough:
        return []
    least, wanted = min(2.0 ** (1 - cases), 1), (1 - LEVEL) / tests
    reason = f"Their smallest p-value is {least:.2g}; of {tests} metrics one must be below {wanted:.2g}. Draw {enough}"
    reason += " or more, better a hundred."
    return [("Too few prompts to show any difference.", reason)]
