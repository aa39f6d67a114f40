"""The table of an evaluation for a paper."""

from __future__ import annotations

import re
from typing import Any

from mldm_plugin.evaluation.tables import number_of

# What a reader of pdfLaTeX does not know, as it would be written by hand; longer ones first.
WRITTEN = {
    "x̂₀": r"$\hat{x}_0$",
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "ε": r"$\epsilon$",
    "−": "$-$",
    "–": "--",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{sign: f"\\{sign}" for sign in "{}$&#_%"},
}
ARROWS = {"smaller": r"$\downarrow$", "larger": r"$\uparrow$"}


def escaped(text: str) -> str:
    """Text that LaTeX prints as it stands.

    >>> escaped("mldm_t400 & 5 %")
    'mldm\\\\_t400 \\\\& 5 \\\\%'
    """
    return re.sub("|".join(map(re.escape, WRITTEN)), lambda found: WRITTEN[found[0]], text)


def as_tex(results: dict[str, Any]) -> str:
    """N, values, and differences to the first model with 95 % intervals; bold where a difference is shown.

    A single model has the intervals of its values.
    """
    names = [model["name"] for model in results["models"]]
    head = ["", "$N$", *map(escaped, names), *(f"{escaped(name)} $-$ {escaped(names[0])}" for name in names[1:])]
    lines = [
        f"% {len(results['cases'])} prompts; differences to {escaped(names[0])} with 95 % intervals, bold where the",
        "% interval leaves out 0 and Holm's correction agrees. \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{lr{'r' * len(names)}{'l' * len(names[1:])}}}",
        "\\toprule",
        " & ".join(head) + r" \\",
    ]
    kind = None
    for metric in results["metrics"]:
        if metric["kind"] != kind:
            lines.append("\\midrule")
            kind = metric["kind"]
        values = [_value(metric["models"].get(name), alone=len(names) == 1) for name in names]
        gaps = [_gap(metric["differences"].get(name)) for name in names[1:]]
        title = f"{escaped(metric['title'])} {ARROWS[metric['better']]}"
        lines.append(" & ".join([title, escaped(number_of(metric)), *values, *gaps]) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _number(value: float | None, sign: str = "") -> str:
    if value is None:
        return "--"
    mantissa, _, exponent = f"{value:{sign}.3g}".partition("e")
    return f"${mantissa}\\cdot10^{{{int(exponent)}}}$" if exponent else f"${mantissa}$"


def _value(estimate: dict[str, Any] | None, alone: bool) -> str:
    if estimate is None:
        return "--"
    interval = alone and estimate["low"] is not None
    ends = f" [{_number(estimate['low'])}, {_number(estimate['high'])}]" if interval else ""
    return _number(estimate["value"]) + ends


def _gap(gap: dict[str, Any] | None) -> str:
    if gap is None or gap["value"] is None:
        return "--"
    value = _number(gap["value"], "+")
    if gap["verdict"] != "not shown":
        value = f"$\\mathbf{{{value[1:-1]}}}$"
    if gap["low"] is None:
        return value
    return f"{value} [{_number(gap['low'], '+')}, {_number(gap['high'], '+')}]"
