"""Which images each term applies to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mldm_plugin.engine.schedule import NoiseSchedule
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.engine.term import Term


@dataclass(frozen=True)
class Gates:
    """Rows of a step, by term.

    Attributes:
        has: the images that have what the term needs, whatever their timestep.
        open: of those, the ones at or below the term's T.
    """

    has: dict[str, list[int]]
    open: dict[str, list[int]]

    @property
    def any_open(self) -> bool:
        return any(self.open.values())


def find_gates(terms: Sequence[Term], step: DiffusionStep, schedule: NoiseSchedule) -> Gates:
    """The gates of all terms. The device is waited for once; the host must know whether there is anything to decode."""
    if not terms:
        return Gates({}, {})
    snr = schedule.snr(step.timesteps, step.sigmas)
    inside = torch.stack([schedule.gate(snr, t.max_timestep) for t in terms])
    has = torch.stack([t.has(step) for t in terms])
    both = torch.stack([has, has & inside]).tolist()
    found = [{t.name: [i for i, is_ in enumerate(row) if is_] for t, row in zip(terms, of, strict=True)} for of in both]
    return Gates(*found)
