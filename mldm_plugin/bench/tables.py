"""What a run prints."""

from __future__ import annotations

from collections.abc import Sequence

from mldm_plugin.bench.agreement import Agreement
from mldm_plugin.bench.count import Counts
from mldm_plugin.bench.goals import Goal
from mldm_plugin.bench.rows import EXPECTED_AT, Row

NAME = 31
NONE = "-"
# Counted as `--size sd15 --count` does, at 512².
REFERENCE = "Stable Diffusion 1.5 at 512²: encode 1.12, network 2.33, decode 5.08, masked_lpips 0.48, face 0.02"


def counts_text(counts: Counts) -> str:
    """TFLOP an image of each part, beside those of Stable Diffusion 1.5, and both as shares of `encode`."""
    parts = {"encode": counts.encode, "network": counts.network, "decode": counts.decode, **counts.losses}
    unit, name = (1.0, "TFLOP") if counts.decode >= 0.1 else (1e3, "GFLOP")
    listed = ", ".join(f"{part} {value * unit:.3g}" for part, value in parts.items())
    shares = " : ".join(f"{1.117 * value / counts.encode:.2f}" for value in parts.values())
    return f"{name} an image, counted: {listed}\n  in proportion {shares}\n  TFLOP of {REFERENCE}"


def strategy_table(rows: Sequence[Row], n: int, reference: str, *, timed: bool) -> str:
    """Costs by number of gated images, and on average at each T, with the ratio to `reference`."""
    gated = sorted({k for row in rows if row.gate != "none" for k in row.cost})
    by_name = {row.candidate: row for row in rows}
    unit = "ms" if timed else "TFLOP"
    head = f"  {'candidate':<{NAME}}" + "".join(f"{f'k={k}':>8}" for k in gated)
    head += f"{'spread':>8}" * timed + "".join(f"{f'T={T}':>10}{'ratio':>7}" for T in EXPECTED_AT)
    head += f"{'peak MiB':>10}{'GFLOP':>8}" * timed
    lines = [f"  {unit} with k of {n} images gated; mean step under uniform timesteps; ratio to {reference}", head]
    for row in rows:
        line = f"  {row.candidate:<{NAME}}"
        line += "".join(f"{_cost(row, k, timed):>8}" for k in gated)
        line += f"{f'±{row.spread:.0%}' if row.cost else NONE:>8}" * timed
        for limit in EXPECTED_AT:
            mean = row.expected(n, limit)
            whole = by_name[reference].expected(n, limit) if reference in by_name else None
            ratio = f"{mean.median / whole.median:.2f}" if mean and whole and whole.median else NONE
            line += f"{number_text(mean.median * (1e3 if timed else 1)) if mean else NONE:>10}{ratio:>7}"
        if timed:
            line += f"{_mebibytes(row.most_bytes):>10}{_gflop(row.expected_tflop(n, EXPECTED_AT[0])):>8}"
        lines.append(line + (f"  {row.fault}" if row.fault else ""))
    return "\n".join(lines)


def loss_table(rows: Sequence[Row]) -> str:
    """Each loss alone."""
    lines = [f"  {'forward and backward':<{NAME}}{'ms':>10}{'spread':>8}{'peak MiB':>10}{'GFLOP':>8}"]
    for row in rows:
        cost = row.cost.get(1)
        line = f"  {row.candidate:<{NAME}}{number_text(cost.median * 1e3) if cost else NONE:>10}"
        line += f"{f'±{row.spread:.0%}' if cost else NONE:>8}{_mebibytes(row.most_bytes):>10}"
        line += f"{_gflop(row.tflop.get(1)):>8}"
        lines.append(line + (f"  {row.fault}" if row.fault else ""))
    return "\n".join(lines)


def goal_table(goals: Sequence[Goal]) -> str:
    """The ratios."""
    lines = [f"  {'ratio':<72}{'here':>8}{'counted':>9}  goal"]
    for goal in goals:
        verdict = {True: "reached", False: "not reached", None: ""}[goal.reached]
        lines.append(
            f"  {goal.text:<72}{_ratio(goal.measured):>8}{_ratio(goal.counted):>9}  "
            f"{goal.relation} {goal.limit:.3g}  {verdict}"
        )
    return "\n".join(lines)


def agreement_text(agreements: Sequence[Agreement]) -> str:
    """How far the candidates' results are apart."""
    lines = []
    for held, text in ((True, "compared before timing"), (False, "this preset decodes by other means")):
        if some := [a for a in agreements if (a.held_to is not None) == held]:
            value, gradient = max(a.value for a in some), max(a.gradient for a in some)
            lines.append(f"  {text}: values at most {value:.1g} apart, gradients {gradient:.1g}")
    return "\n".join(lines)


FOOTNOTE = (
    "  spread: half the distance of the quartiles, of the candidate's least steady k. T=…: k is binomial with\n"
    "  p = (T+1)/1000, costs between measured k on a straight line; one t a batch: (1-p) cost(0) + p cost(N).\n"
    "  peak: the most memory beyond what was there before, of any k. GFLOP: counted while running, mean at T=100."
)


def number_text(value: float) -> str:
    """Three digits, and no fewer than are before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _cost(row: Row, k: int, timed: bool) -> str:
    if row.gate == "none" or k not in row.cost:
        return NONE
    return number_text(row.cost[k].median * (1e3 if timed else 1))


def _mebibytes(count: int | None) -> str:
    return NONE if count is None else number_text(count / 2**20)


def _gflop(tflop: float | None) -> str:
    return NONE if tflop is None else number_text(tflop * 1e3)


def _ratio(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}"
