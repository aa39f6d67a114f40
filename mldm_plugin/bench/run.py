"""The benchmark from beginning to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from mldm_plugin.bench import agreement, candidates, goals, tables
from mldm_plugin.bench.count import count
from mldm_plugin.bench.measure import measure
from mldm_plugin.bench.networks import attach, build_networks, cast, plain_vae, random_preset
from mldm_plugin.bench.record import Record, Section
from mldm_plugin.bench.rows import rows_of
from mldm_plugin.bench.sizes import SIZES, Size
from mldm_plugin.bench.workload import Batch, People, Timesteps, start_up
from mldm_plugin.plugins import Plugins, load_plugins
from mldm_plugin.preset import Preset


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Args:
        size: a key of `SIZES`; what is None or empty below is taken from there.
        subjects: of `SUBJECTS`.
        resolution: side of the pictures, for the losses alone too.
        preset, overrides, loss_plugins: as for training.
    """

    size: str
    subjects: Sequence[str]
    batches: Sequence[int] = ()
    dtypes: Sequence[str] = ()
    resolution: int | None = None
    rounds: int | None = None
    preset: str = "mldm"
    overrides: Sequence[str] = ()
    loss_plugins: Sequence[str] = ()


class Bench:
    """Runs a plan. Tables go to `echo` as they are finished."""

    def __init__(self, plan: Plan, echo: Callable[[str], None]) -> None:
        self.plan, self.echo = plan, echo
        self.size: Size = SIZES[plan.size]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.plugins: Plugins = load_plugins(plan.loss_plugins)
        self.preset: Preset = random_preset(plan.preset, plan.overrides, self.plugins)
        self.resolution = plan.resolution or self.size.resolution
        self.rounds = plan.rounds or self.size.rounds
        self.batches = plan.batches or self.size.batches
        self.dtypes = plan.dtypes or self.size.dtypes
        self.record = Record(plan.size, self.preset.model_dump(), self.device)

    def count(self) -> Record:
        """Operations alone, of whole steps."""
        with torch.random.fork_rng():
            counts = self.record.counts = count(self.size, self.resolution, self.preset, self.plugins)
        self.echo(f"{self.plan.size}: {self.size.what}; {self.resolution}², nothing is run")
        self.echo(tables.counts_text(counts))
        for n in self.batches:
            rows = counts.rows(n)
            section = Section("step", n, "any", self.resolution, "TFLOP", rows)
            section.goals = goals.step_goals(rows, n, timed=False)
            self._tell(section)
        return self.record

    def measure(self) -> Record:
        """Times, memory and operations."""
        name = "cuda" if self.device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
        self.echo(f"{self.plan.size}: {self.size.what}; preset {self.plan.preset}; {name}; {self.rounds} rounds")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if agreement.exact(self.preset) and set(self.plan.subjects) != {"losses"}:
                self.record.counts = count(self.size, self.resolution, self.preset, self.plugins)
                self.echo(tables.counts_text(self.record.counts))
            for section, whole in self._sections():
                self._tell(section)
                if not whole:
                    self.record.interrupted = True
                    self.echo("\nstopped by Ctrl-C; the tables hold what was measured until then")
                    break
        return self.record

    def _sections(self) -> Iterator[tuple[Section, bool]]:
        if {"step", "pixels"} & set(self.plan.subjects):
            for dtype in self.dtypes:
                yield from self._strategies(dtype)
        if "losses" in self.plan.subjects:
            for n in self.batches:
                yield self._losses(n)

    def _strategies(self, dtype: str) -> Iterator[tuple[Section, bool]]:
        """Steps and pixel paths in one precision."""
        networks = build_networks(self.size, self.device, getattr(torch, dtype))
        stack = attach(networks, self.preset, self.plugins)
        vae = plain_vae(networks, self.preset)
        decoding_dtype = vae.dtype
        timesteps = Timesteps(stack, self.device)
        start_up(networks, stack, timesteps, self.resolution)
        ways = candidates.strategies(networks, stack, vae)
        for n in self.batches:
            batch = Batch.draw(networks, n, self.resolution)
            cast(vae, torch.float32)
            agreements = agreement.compare_strategies(networks, ways, batch, timesteps, self.preset)
            cast(vae, decoding_dtype)
            step: Section | None = None
            for subject, cases_of in (("step", candidates.step_cases), ("pixels", candidates.pixel_cases)):
                if subject not in self.plan.subjects:
                    continue
                cases = cases_of(networks, ways, batch, timesteps)
                whole = measure(cases, self.rounds, self.device, f"{subject}, batch {n}, {dtype}")
                section = Section(subject, n, dtype, self.resolution, "seconds", rows_of(cases), cases)
                section.agreements = agreements
                if subject == "step":
                    step, section.goals = section, goals.step_goals(section.rows, n, timed=True)
                else:
                    section.goals = goals.pixel_goals(section.rows, n)
                    section.goals += goals.closed_gate_goal(section.rows, step.rows) if step else []
                yield section, whole

    def _losses(self, n: int) -> tuple[Section, bool]:
        """Losses alone, in float32."""
        resolution = self.plan.resolution or self.size.loss_resolution
        people = People.draw(n, resolution, self.device)
        losses = candidates.LossesAlone(self.plugins, self.size.face_crop)
        agreements = agreement.compare_losses(losses, people)
        cases = candidates.loss_cases(losses.on(people))
        whole = measure(cases, self.rounds, self.device, f"losses, batch {n}")
        rows = rows_of(cases)
        section = Section("losses", n, "float32", resolution, "seconds", rows, cases)
        section.goals, section.agreements = goals.loss_goals(rows), agreements
        return section, whole

    def _tell(self, section: Section) -> None:
        self.record.sections.append(section)
        timed = section.unit == "seconds"
        self.echo(f"\n{section.subject}: {section.resolution}², batch {section.batch}, {section.dtype}")
        if section.subject == "losses":
            self.echo(tables.loss_table(section.rows))
        else:
            reference = candidates.PLAIN if section.subject == "step" else candidates.OURS
            self.echo(tables.strategy_table(section.rows, section.batch, reference, timed=timed))
            if timed:
                self.echo(tables.FOOTNOTE)
        if section.agreements:
            self.echo(tables.agreement_text(section.agreements))
        self.echo(tables.goal_table(section.goals))
