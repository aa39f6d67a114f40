"""Whether a loss is heard: how strong its gradient is at the network's output beside the plain loss's, now and then.

With p_i the network's output for image i, b_i its plain loss, and L_ij the value of loss j, which enters the mix with
the factor λ_j s_j (s_j is 1, see balance.py), what reaches the output is g_ij = λ_j s_j ∂L_ij/∂p_i of the loss and
κ_i h_i = κ_i ∂b_i/∂p_i of the plain one; κ_i is what the mix leaves of b_i, 1 − Σ_j w_ij in the convex one and 1 in the
additive. Measured are, over the images that loss j reached,

    gradient   the mean of ‖g_ij‖
    plain      the mean of ‖h_i‖
    share      Σ_i ‖g_ij‖ / Σ_i (κ_i ‖h_i‖ + Σ_k ‖g_ik‖)
    cosine     the mean of ⟨g_ij, h_i⟩ / (‖g_ij‖ ‖h_i‖)

Each is of one image alone and of float32, before anything is averaged over images, micro-batches and processes, and
before a host scales its loss for float16.

Of losses on several answers of the network (ddim.py), p_i is the first, and the measurement goes back to it through the
others; what they put on the others themselves is not in it.

A loss is measured in the first micro-batch that it reaches after a reading, by a backward pass of its own, and on the
first process alone: others would wait for each in turn. Readings come after 1, 4, 16, … optimizer steps and then every
`EVERY_STEPS` a loss. So a reading is the only thing that waits for the device or for other processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mldm_plugin.engine.heard import QUANTITIES, REACHED, Tally, complaints, table
from mldm_plugin.engine.mix import Combine, PlainLoss
from mldm_plugin.engine.ranges import RANGES, in_ranges, range_of
from mldm_plugin.engine.step import DiffusionStep, on_device
from mldm_plugin.engine.term import Term
from mldm_plugin.errors import LossError

if TYPE_CHECKING:
    from accelerate import Accelerator

# A measured picture costs a backward pass through the decoder for each loss: at T = 100 and one picture a step, about
# one and a half mean steps with two losses. Chosen, so that the mean step costs less than 2 % more.
EVERY_STEPS = 100
MOST_UNREAD = 1000  # micro-batches, more than anybody accumulates. Chosen.
_WRISTS = [9, 10]  # of COCO's 17 keypoints


class Sample:
    """One micro-batch of N images in which gradients are measured.

    Args:
        factors: λ_j s_j, by term.
        plain: h, (N, …) float32.
        kept: κ, (N,).
        due: the terms that this is a measurement of. The others' gradients count in the share of these alone: images
            that were chosen because a narrow loss reaches them say nothing of where a wide one looks.
    """

    def __init__(self, factors: dict[str, float], plain: Tensor, kept: Tensor, due: Collection[str]) -> None:
        self._factors, self._kept, self._due = factors, kept, due
        self._plain = plain.flatten(1).nan_to_num(0.0, 0.0, 0.0)
        self._seen, self._norms, self._cosines = (plain.new_zeros(len(factors), len(plain)) for _ in range(3))

    @torch.no_grad()
    def add(self, name: str, rows: Sequence[int], gradient: Tensor, used: Tensor) -> None:
        """One term on some images.

        Args:
            rows: which images.
            gradient: ∂L_ij/∂p_i of each, (n, …) float32.
            used: (n,) bool, whether it is finite and enters the mix.
        """
        index, j = on_device(rows, gradient.device), list(self._factors).index(name)
        own, plain = gradient.flatten(1), self._plain[index]
        norm, length = own.norm(dim=1), plain.norm(dim=1)
        cosine = (own * plain).sum(dim=1) / (norm * length).clamp_min(torch.finfo(torch.float32).tiny)
        used = used & torch.isfinite(norm)
        seen = used.float() if name in self._due else torch.zeros_like(norm)
        for of_all, values in ((self._seen, seen), (self._norms, norm), (self._cosines, cosine)):
            of_all[j].index_copy_(0, index, torch.where(used, values, 0.0))

    @torch.no_grad()
    def sums(self, place: Tensor) -> Tensor:
        """(J, Q, R): each of `QUANTITIES`, summed over the images of each range, whose `place` (N,) says which is
        theirs."""
        factors = torch.tensor(list(self._factors.values())).to(self._norms, non_blocking=True)
        added, length = factors[:, None] * self._norms, self._plain.norm(dim=1)
        whole = self._kept * length + added.sum(dim=0)
        seen = self._seen
        sums = [torch.ones_like(seen), added, whole.expand_as(seen), length.expand_as(seen), self._cosines, self._norms]
        return in_ranges(seen[:, None] * torch.stack(sums, dim=1), place)


class Audit:
    """What is measured in a run, and what is said of it. Nothing that is trained with changes by it but the factors of
    losses that are balanced.

    Args:
        terms: those of the preset; detached ones have no gradient and are not measured.
        plain, combine: as for `LossStack`.
        every: how many optimizer steps lie between two readings; None is `EVERY_STEPS` a term, 0 is never.
        announce: where complaints go, each once.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        plain: PlainLoss,
        combine: Combine,
        every: int | None,
        announce: Callable[[str], None],
    ) -> None:
        self._terms, self._plain, self._combine, self._announce = terms, plain, combine, announce
        self.every = EVERY_STEPS * len(terms) if every is None else every
        measures = self.every > 0 and os.environ.get("RANK", "0") == "0"
        self._due = self._measured = {t.name for t in terms if measures and not t.detach}
        self._sums: Tensor | None = None  # since the last reading, as are the counts
        self._reached = [[0] * len(REACHED) for _ in terms]
        self._run = [Tally(t.name) for t in terms]
        self._told: set[str] = set()
        self._unread = self._read_at = 0

    def begin(self, step: DiffusionStep, rows: dict[str, list[int]]) -> Sample | None:
        """Count a micro-batch that trains, and if a loss is to be measured that reaches one of its images, measure.

        Args:
            rows: by term, the images that it reaches.

        Returns:
            what the gradients are to be added to, for `end`; None where nothing is measured. Waits for nothing.

        Raises:
            LossError: a loss is to be balanced, and `read` is never called.
        """
        self._refuse_unread()
        for term, counts in zip(self._terms, self._reached, strict=True):
            for i, count in enumerate(_reached(step, rows[term.name])):
                counts[i] += count
        due = {name for name in self._due if rows[name]}
        if not due:
            return None
        waiting = {t.name for t in self._terms if t.balance is not None and not t.balance.factor}
        self._due = (self._due - due) | (due & waiting)  # what weighs nothing yet is measured until it does
        additive = self._combine == "additive"
        kept = [1.0] * len(step)
        for term in () if additive else self._terms:
            for row in rows[term.name]:
                kept[row] -= term.strength
        plain = self._plain.gradient(step, whole=additive)
        factors = {term.name: term.strength * term.scale for term in self._terms}
        return Sample(factors, plain, torch.tensor(kept).to(plain, non_blocking=True), due)

    def end(self, step: DiffusionStep, sample: Sample) -> None:
        """The gradients of a micro-batch are there. Waits for nothing."""
        sums = sample.sums(range_of(step, self._plain.schedule))
        self._sums = sums if self._sums is None else self._sums.to(sums, non_blocking=True) + sums

    def read(self, step: int, accelerator: Accelerator | None = None) -> dict[str, float]:
        """What was measured since the last reading, and how many pictures were reached, on all processes, if `step`
        optimizer steps are time to tell.

        Every process calls this after each optimizer step. In steps that are no time for it nothing is waited for.

        Returns:
            for each term and range that was measured `<name>/<quantity>/<range>` of gradient, plain, share and cosine,
            and `<name>/measured/<range>` images; for each term `<name>/pictures`, `<name>/faces` and `<name>/hands`
            that it reached since, in all steps; of one that is balanced `<name>/balance`, its factor from now on.
            Nothing in other steps.

        Raises:
            LossError: a loss is to be balanced on several processes, which only an accelerator can tell its factor.
        """
        self._unread = 0
        self._refuse_alone(accelerator)
        if not self._terms or not is_reading(step, self.every):
            return {}
        logs: dict[str, float] = {}
        for term, window, run in zip(self._terms, self._gathered(accelerator), self._run, strict=True):
            run.add(window)
            logs |= window.logs()
            if term.balance is not None:
                together = window.together
                term.balance.learn(together["plain"], together["alone"], round(together["measured"]))
                logs[f"{term.name}/balance"] = term.balance.factor
        self._due, self._read_at = self._measured, step
        self._complain()
        return logs

    def table(self) -> str:
        """What was measured in the run so far, for people; empty where nothing was."""
        which = "first " if self._plain.schedule.answers > 1 else ""
        return table(self._run, self._read_at, f"network's {which}output")

    def state(self) -> dict[str, Any]:
        """All that a run needs to go on to the bit, as lists of numbers. Waits for the device."""
        return {
            "due": sorted(self._due),
            "sums": None if self._sums is None else self._sums.tolist(),
            "reached": [list(counts) for counts in self._reached],
            "run": [[tally.sums, tally.reached] for tally in self._run],
            "balance": {t.name: t.balance.state() for t in self._terms if t.balance is not None},
            "read_at": self._read_at,
            "told": sorted(self._told),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a state that was saved, of the same terms."""
        self._due = set(state["due"])
        self._sums = None if state["sums"] is None else torch.tensor(state["sums"])
        self._reached = [list(counts) for counts in state["reached"]]
        self._run = [Tally(t.name, *of) for t, of in zip(self._terms, state["run"], strict=True)]
        for term in self._terms:
            if term.balance is not None:
                term.balance.resume(state["balance"][term.name])
        self._read_at, self._told = state["read_at"], set(state["told"])

    def _gathered(self, accelerator: Accelerator | None) -> list[Tally]:
        """Sums and counts since the last reading, over all processes, and begun anew. The one thing that waits."""
        size = len(QUANTITIES) * len(RANGES)
        sums = [0.0] * (size * len(self._terms)) if self._sums is None else self._sums.flatten().tolist()
        numbers = [*sums, *(float(count) for counts in self._reached for count in counts)]
        self._sums, self._reached = None, [[0] * len(REACHED) for _ in self._terms]
        if accelerator is not None and accelerator.num_processes > 1:
            everyone = torch.tensor(numbers, dtype=torch.float64, device=accelerator.device)
            numbers = accelerator.reduce(everyone, reduction="sum").tolist()
        of_terms, counts = numbers[: len(sums)], list(map(int, numbers[len(sums) :]))
        tallies = []
        for j, term in enumerate(self._terms):
            own = of_terms[size * j : size * (j + 1)]
            rows = [own[i : i + len(RANGES)] for i in range(0, size, len(RANGES))]
            tallies.append(Tally(term.name, rows, counts[len(REACHED) * j : len(REACHED) * (j + 1)]))
        return tallies

    def _refuse_unread(self) -> None:
        """A loop that never reads would train without the losses that wait to be balanced."""
        self._unread += 1
        balanced = [term.name for term in self._terms if term.balance is not None]
        if balanced and self._unread > MOST_UNREAD:
            raise LossError(
                f"loss {balanced[0]!r} is to be balanced, but nobody reads how strong it is: call "
                "stack.audit.read(step) after each optimizer step."
            )

    def _refuse_alone(self, accelerator: Accelerator | None) -> None:
        """Each process would balance by what it has measured itself, which is nothing on all but the first."""
        balanced = [term.name for term in self._terms if term.balance is not None]
        alone = accelerator is None or accelerator.num_processes == 1
        if balanced and alone and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise LossError(
                f"loss {balanced[0]!r} is to be balanced on several processes: give audit.read(step, accelerator) "
                "its Accelerator, or the loss a weight without `balance`."
            )

    def _complain(self) -> None:
        """Say once each what the run so far gives reason to say."""
        total = sum(term.weight for term in self._terms)
        for term, tally in zip(self._terms, self._run, strict=True):
            room = float("inf") if self._combine == "additive" else 1 - (total - term.weight)
            factor = None if term.balance is None else term.balance.factor
            for about, text in complaints(tally, term.weight, room, factor).items():
                if about not in self._told:
                    self._told.add(about)
                    self._announce(f"warning: {text}")


def is_reading(step: int, every: int) -> bool:
    """Whether something is read after so many optimizer steps: every `every`, and before that at powers of four, so
    that a run need not be long to be told.

    >>> [step for step in range(1, 250) if is_reading(step, 100)]
    [1, 4, 16, 64, 100, 200]
    """
    early = 0 < step < every and step.bit_count() == 1 and step.bit_length() % 2 == 1
    return early or (every > 0 and step % every == 0)


def _reached(step: DiffusionStep, rows: Sequence[int]) -> tuple[int, int, int]:
    """How many pictures these are, and how many faces and hands are marked in them. Looked at on the host."""
    faces = 0 if step.face_boxes is None else sum(len(step.face_boxes[row]) for row in rows)
    hands = 0
    if step.keypoints is not None:
        hands = sum(int((step.keypoints[row].cpu().numpy()[:, _WRISTS, 2] > 0).sum()) for row in rows)
    return len(rows), faces, hands
