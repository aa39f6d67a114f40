"""What was measured of each loss's gradient, in numbers and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mldm_plugin.engine.ranges import RANGES

# Sums over the images that a loss reached, see audit.py: their number, and of each one ‖g_ij‖, κ_i ‖h_i‖ + Σ_k ‖g_ik‖,
# ‖h_i‖, the cosine, and ‖∂L_ij/∂p_i‖ without its weight.
QUANTITIES = ("measured", "gradient", "whole", "plain", "cosine", "alone")
REACHED = ("pictures", "faces", "hands")
# Chosen. Four pictures are no accident where the share is off by a factor of ten and more, or where the gradients of
# thousands of numbers each have a cosine that chance makes smaller than 0.05.
LEAST_PICTURES, LEAST_SHARE, _AIM, _APART = 4, 0.01, 0.1, -0.2
_MANY_PICTURES = 64  # of all processes, of which the first alone measures. Chosen.


def _nothing() -> list[list[float]]:
    return [[0.0] * len(RANGES) for _ in QUANTITIES]


@dataclass
class Tally:
    """One loss over some steps.

    Args:
        sums: of each of `QUANTITIES`, by range of t.
        reached: how many pictures it reached in all steps, and how many faces and hands are marked in those.
    """

    name: str
    sums: list[list[float]] = field(default_factory=_nothing)
    reached: list[int] = field(default_factory=lambda: [0] * len(REACHED))

    def add(self, other: Tally) -> None:
        """The same loss over other steps."""
        self.sums = [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(self.sums, other.sums, strict=True)]
        self.reached = [a + b for a, b in zip(self.reached, other.reached, strict=True)]

    @property
    def together(self) -> dict[str, float]:
        """`QUANTITIES`, summed over all ranges."""
        return {name: sum(row) for name, row in zip(QUANTITIES, self.sums, strict=True)}

    def by_range(self) -> dict[str, dict[str, float]]:
        """Range → number of images, means and share of the whole; ranges without images are left out."""
        found = {}
        for range_, *column in zip(RANGES, *self.sums, strict=True):
            measured, gradient, whole, plain, cosine, _ = column
            if measured:
                means = {"gradient": gradient / measured, "plain": plain / measured, "cosine": cosine / measured}
                found[range_] = {"measured": round(measured), **means, "share": gradient / whole if whole else 0.0}
        return found

    def logs(self) -> dict[str, float]:
        """For metrics.jsonl."""
        logs: dict[str, float] = {f"{self.name}/{n}": c for n, c in zip(REACHED, self.reached, strict=True)}
        for range_, values in self.by_range().items():
            logs |= {f"{self.name}/{quantity}/{range_}": value for quantity, value in values.items()}
        return logs


def complaints(tally: Tally, weight: float, room: float, factor: float | None = None) -> dict[str, str]:
    """What there is to complain of, by what it is about.

    Args:
        tally: of the run so far.
        weight: λ of the loss.
        room: the largest weight that the mix allows it.
        factor: of one that is balanced, whose strength is then what was asked for.
    """
    found, sums = {}, tally.together
    enough = sums["measured"] >= LEAST_PICTURES
    if factor == 0 and tally.reached[0] >= _MANY_PICTURES:
        found[f"{tally.name} unbalanced"] = (
            f"{tally.name} is to be balanced and reached {tally.reached[0]} pictures, but no gradient of it was "
            "measured on the first process: it weighs nothing."
        )
    if factor is None and enough and weight and not sums["gradient"]:
        found[f"{tally.name} quiet"] = f"{tally.name} has no gradient on the pictures it reaches: it trains nothing."
    elif factor is None and enough and sums["gradient"] < LEAST_SHARE * sums["whole"]:
        share = sums["gradient"] / sums["whole"]
        times = _AIM * (1 - share) / ((1 - _AIM) * share)  # so that it is _AIM of the whole
        remedy = f"raise its weight about {times:.0f} times or use `balance: gradient`"
        if weight * times > room:
            remedy = "use `balance: gradient`, for the convex mix has no room for a weight that much higher"
        of = "of the gradient of the pictures it reaches"
        found[f"{tally.name} quiet"] = f"{tally.name} is {100 * share:.2g} % {of}: {remedy}."
    for range_, values in tally.by_range().items():
        if values["measured"] >= LEAST_PICTURES and values["cosine"] < _APART:
            found[f"{tally.name} {range_}"] = (
                f"{tally.name} and the plain loss pull apart at t {range_[1:]} (cosine {values['cosine']:.2f}): what "
                "one learns there the other undoes; a lower weight or another max_timestep decides between them."
            )
    return found


def table(tallies: Sequence[Tally], step: int, where: str = "network's output") -> str:
    """What was measured `where` up to a step, for people; empty where nothing was."""
    lines = []
    for tally in tallies:
        for range_, v in tally.by_range().items():
            cells = f"{v['gradient']:>11.3g} {v['plain']:>9.3g} {100 * v['share']:>6.2g}% {v['cosine']:>+7.2f}"
            lines.append(f"  {tally.name:<20} {range_[1:]:>8} {v['measured']:>9.0f} {cells}")
        pictures, faces, hands = tally.reached
        if pictures:
            marked = " and ".join(f"{n} {what}" for n, what in ((faces, "faces"), (hands, "hands")) if n)
            lines.append(f"  {tally.name:<20} reached {pictures} pictures{f' with {marked}' if marked else ''}")
    if not any(tally.together["measured"] for tally in tallies):
        return ""
    head = f"  {'loss':<20} {'t':>8} {'measured':>9} {'|gradient|':>11} {'|plain|':>9} {'share':>7} {'cosine':>7}"
    return "\n".join(
        [f"Was each loss heard? Gradients at the {where}, of a few pictures up to step {step}", head, *lines]
    )
