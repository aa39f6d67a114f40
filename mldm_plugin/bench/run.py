"""The benchmark from beginning to end."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from mldm_plugin.bench import candidates, compare, report
from mldm_plugin.bench.count import Counts, count
from mldm_plugin.bench.further_losses import FurtherLosses
from mldm_plugin.bench.goals import judge
from mldm_plugin.bench.host import Host, attach, draw_people, random_preset, start_up
from mldm_plugin.bench.measure import Candidate, measure
from mldm_plugin.bench.report import Section
from mldm_plugin.bench.sizes import SIZES
from mldm_plugin.errors import MldmError
from mldm_plugin.plugins import load_plugins
from mldm_plugin.records.files import write_text

CLOSED_ROUNDS = 20  # of what the plugin itself takes, which is little


@dataclass
class Bench:
    """One run. Tables go to `echo` as they are finished.

    Args:
        size: a key of `SIZES`; what is None or empty below is taken from there.
        subjects: of `SUBJECTS`.
        resolution: side of the pictures, for the losses alone too.
        preset, overrides, loss_plugins: as for training.
    """

    size: str
    subjects: Sequence[str]
    echo: Callable[[str], None]
    batches: Sequence[int] = ()
    dtypes: Sequence[str] = ()
    resolution: int | None = None
    rounds: int | None = None
    preset: str = "mldm"
    overrides: Sequence[str] = ()
    loss_plugins: Sequence[str] = ()
    sections: list[Section] = field(default_factory=list, init=False)
    differences: list[compare.Difference] = field(default_factory=list, init=False)
    counts: Counts | None = field(default=None, init=False)
    interrupted: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._size = size = SIZES[self.size]
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._plugins = load_plugins(self.loss_plugins)
        self._preset = random_preset(self.preset, self.overrides, self._plugins)
        self._side = self.resolution or size.family.resolution
        self._rounds = self.rounds or size.rounds
        self._batches = self.batches or size.batches

    def count(self) -> None:
        """Operations alone, of whole steps."""
        with torch.random.fork_rng():
            self.counts = count(self._size, self._side, self._preset, self._plugins)
        self.echo(f"{self.size}: {self._size.what}; {self._side}², nothing is run")
        self.echo(report.counts_text(self.counts))
        for n in self._batches:
            found = self.counts.candidates(n)
            self._tell(Section("step", n, "any", self._side, False, found, judge("step", found, n, timed=False)))

    def measure(self) -> None:
        """Times, memory and operations."""
        name = "cuda" if self._device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
        self.echo(f"{self.size}: {self._size.what}; preset {self.preset}; {name}; {self._rounds} rounds")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for section in self._sections():
                self._tell(section)
                if self.interrupted:
                    self.echo("\nstopped by Ctrl-C; the tables hold what was measured until then")
                    break

    def write(self, path: Path) -> None:
        """The JSON file, whole or not at all.

        Raises:
            MldmError: it cannot be written.
        """
        about = {"size": self.size, "preset": self._preset.model_dump(), "interrupted": self.interrupted}
        content = about | report.as_json(self.sections, self.differences, self.counts, self._device)
        try:
            write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            raise MldmError(
                f"{path} cannot be written: {error.strerror}. Name a file in a folder that exists."
            ) from error

    def _sections(self) -> Iterator[Section]:
        if {"step", "pixels"} & set(self.subjects):
            host = Host(self._size, self._device)
            self._compared(compare.compare_ways(host, self._preset, self._plugins, self._side))
            for dtype in self.dtypes or self._size.dtypes:
                host.use(getattr(torch, dtype))
                yield from self._ways(host, dtype)
        if "losses" in self.subjects:
            losses = candidates.LossesAlone(self._plugins, self._size)
            self._compared(compare.compare_losses(losses, self._device))
            further = FurtherLosses(self._plugins, self._size)
            for n in self._batches:
                yield self._losses(losses, further, n)

    def _ways(self, host: Host, dtype: str) -> Iterator[Section]:
        """Steps and pixel paths in one precision."""
        stack = attach(host, self._preset, self._plugins)
        vae = nn.Module.to(copy.deepcopy(host.vae), start_up(host, stack, self._side))  # decodes as the plugin does
        ways = candidates.ways_to_a_loss(host, stack, vae)
        for n in self._batches:
            batch = host.draw(n, self._side)
            if "step" in self.subjects:
                closed = candidates.closed_candidates(host, stack, ways, batch)
                self._run(closed, CLOSED_ROUNDS, f"closed gate, batch {n}, {dtype}")
                found = candidates.step_candidates(host, stack, ways, batch)
                self._run(found, self._rounds, f"step, batch {n}, {dtype}")
                goals = judge("step", found, n, timed=True, closed=closed, every=stack.audit.every)
                yield Section("step", n, dtype, self._side, True, found, goals)
            if "pixels" in self.subjects:
                found = candidates.pixel_candidates(host, stack, ways, batch)
                self._run(found, self._rounds, f"pixels, batch {n}, {dtype}")
                yield Section("pixels", n, dtype, self._side, True, found, judge("pixels", found, n, timed=True))

    def _losses(self, losses: candidates.LossesAlone, further: FurtherLosses, n: int) -> Section:
        """Losses alone, in float32."""
        side = self.resolution or self._size.loss_resolution
        people = draw_people(n, side, self._device)
        functions = losses.on(people)
        for name in (
            candidates.SPATIAL,
            candidates.FACE,
            candidates.IDENTITY,
        ):  # brings networks that were compared back to float32
            candidates.value_and_gradient(*functions[name])
        found = candidates.loss_candidates(functions | further.on(people)) + further.missing
        self._run(found, self._rounds, f"losses, batch {n}")
        return Section("losses", n, "float32", side, True, found, judge("losses", found, n, timed=True))

    def _run(self, found: list[Candidate], rounds: int, title: str) -> None:
        if not self.interrupted:
            self.interrupted = not measure(found, rounds, self._device, title)
        for candidate in found:
            candidate.runs = {}  # frees the batch and the optimizer's state

    def _compared(self, found: list[compare.Difference]) -> None:
        self.differences += found
        self.echo(report.differences_text(found))

    def _tell(self, section: Section) -> None:
        self.sections.append(section)
        self.echo(section.as_text())
