"""Carry a comparison out: data, trainings side by side, evaluation. Stopped, the same goes on where it was."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from mldm_plugin.announce import announce
from mldm_plugin.errors import MldmError
from mldm_plugin.plugins import load_plugins
from mldm_plugin.records.files import write_text
from mldm_plugin.reproduce.commands import Command, Training, seconds_a_step, stop, threads_each
from mldm_plugin.reproduce.outdated import changed_since
from mldm_plugin.reproduce.proofs import in_short, proof_in
from mldm_plugin.reproduce.recipes import Arm, Recipe
from mldm_plugin.reproduce.scales import Scale, run_name

MOST_SAID = 5  # lines of what a trainer said last: one for each fault of a preset, as a rule
STEPS = 3  # training set, trainings, evaluation
LOOK = 2.0  # seconds between two looks at the trainings
FAILED = ".failed"  # in the folder: the command that has not come to its end
MARK = "reproduce.json"  # in the folder: what was asked for


@dataclass
class Reproduction:
    """One comparison in one folder.

    Args:
        recipe: what is compared.
        scale: how.
        seeds: trainings of each arm.
        prompts: pictures that each training draws.
        jobs: trainings at a time, and processes of the evaluation.
        expected: gives by number of the step how long it will take, in words.
    """

    recipe: Recipe
    scale: Scale
    seeds: int
    prompts: int
    jobs: int = 1
    expected: Callable[[], Mapping[int, str]] = dict

    @property
    def out(self) -> Path:
        return self.scale.out

    def run(self) -> Path:
        """All of it; returns the report.

        Raises:
            MldmError: the folder holds something else, is being filled by another process, or a command fails.
        """
        claim(self.scale, self.recipe.family or self.recipe.name)
        try:
            with FileLock(self.out / ".lock", timeout=0):
                return self._run()
        except Timeout as error:
            raise MldmError(
                f"{self.out} is being filled by another process already: wait for it, or stop it there with Ctrl-C."
            ) from error

    def _run(self) -> Path:
        self.tell(1, "training set")
        self.make_data()
        self.scale.check_data()
        self.tell(2, self.what_is_trained())
        self.check_done()
        self.train(self.trainings(timed=False))
        self.train(self.trainings(timed=True))
        evaluation = self.evaluation()
        self.tell(3, "pictures of each from the same noise, and what the judges say of them")
        evaluation.call()
        from mldm_plugin.reproduce import study as judged  # with torch and scipy, which nothing above waits for

        if (name := self.recipe.name) in judged.CLAIMS:
            plugins = load_plugins(["mldm_plugin.people_mini.metrics"])
            judges = judged.OTHER_JUDGES.get(name, judged.JUDGES)
            study = judged.Study(evaluation.made.parent, plugins, judged.CLAIMS[name], judges)
            wanted = {arm.name: self.seeds if arm.preset else 1 for arm in self.recipe.arms}
            if study.runs != wanted:  # a run that failed is not left out in silence
                raise MldmError(f"{evaluation.made} holds the runs {study.runs}, expected {wanted}; see why there.")
            study.write()
        return evaluation.made

    def tell(self, step: int, what: str) -> None:
        """Which step begins, with how long it will take where that is known."""
        long = self.expected().get(step, "") if step > 1 else ""  # the first begins at once
        announce(f"\nstep {step} of {STEPS}: {what}{f'; {long}' if long else ''}")

    def what_is_trained(self) -> str:
        """How many trainings, of what, and how many of them are done already."""
        pairs = [*self.pairs(timed=False), *self.pairs(timed=True)]
        done = sum(self.scale.training(arm, seed, None).is_done for arm, seed in pairs)
        names = ", ".join(dict.fromkeys(arm.name for arm, _ in pairs))
        many = "1 training" if len(pairs) == 1 else f"{len(pairs)} trainings"
        return f"{many} ({names}), {self.scale.cost(pairs[0][0])}{f'; {done} done already' if done else ''}"

    def check_done(self) -> None:
        """Runs that are done must have been trained with what their presets say today.

        Raises:
            MldmError: one was not.
        """
        trainings = [self.scale.training(*pair, None) for timed in (False, True) for pair in self.pairs(timed=timed)]
        for training in trainings:
            if training.is_done and (changes := changed_since(training)):
                raise MldmError(
                    f"{training.folder} was trained with other settings than its command takes now: "
                    f"{'; '.join(changes)}. Move it away to train it again, or choose another --out."
                )

    def make_data(self) -> None:
        """What is not there yet, or failed before although it left something behind."""
        mark = self.out / FAILED
        for command in self.scale.data():
            if not command.made.is_file() or (mark.is_file() and mark.read_text(encoding="utf-8") == str(command)):
                write_text(mark, str(command))
                command.call()
                mark.unlink()

    def trainings(self, *, timed: bool) -> list[Training]:
        """Those of so many steps, or those of equal time, whose steps are known when the others are done."""
        return [self.scale.training(arm, seed, self.steps_of(arm)) for arm, seed in self.pairs(timed=timed)]

    def evaluation(self) -> Command:
        """What judges all arms."""
        return self.scale.evaluation(self.recipe, self.seeds, self.prompts).over(self.jobs)

    def plan(self) -> str:
        """Every command, for a reader."""
        lines = [str(command) for command in self.scale.data()]
        for arm, seed in [*self.pairs(timed=False), *self.pairs(timed=True)]:
            cost = f"as many steps as {arm.as_long_as} has time for" if arm.as_long_as else self.scale.cost(arm)
            lines.append(f"{self.scale.training(arm, seed, self.scale.steps)}   # {cost}")
        return "\n".join([*lines, str(self.evaluation())])

    def pairs(self, *, timed: bool) -> list[tuple[Arm, int]]:
        """Arms and seeds, all arms of a seed before the next."""
        arms = [arm for arm in self.recipe.arms if arm.preset is not None and (arm.as_long_as is not None) == timed]
        return [(arm, seed) for seed in range(self.seeds) for arm in arms]

    def steps_of(self, arm: Arm) -> int | None:
        """An arm's steps. Those of equal time are told by the arm that is trained alike, once, over the
        seeds that there are then.

        Raises:
            MldmError: the arms have no number of steps.
        """
        if arm.as_long_as is None:
            return self.scale.steps
        if self.scale.steps is None:
            raise MldmError("arms of equal time need --steps.")
        file = self.out / "equal_time.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if arm.name not in known:
            slow = next(one for one in self.recipe.arms if one.name == arm.as_long_as)
            same = next(one for one in self.recipe.arms if (one.preset, one.sets) == (arm.preset, arm.sets))
            seconds = [self.mean_seconds(one) for one in (slow, same)]
            known[arm.name] = {"steps": round(self.scale.steps * seconds[0] / seconds[1]), "seconds_a_step": seconds}
            write_text(file, json.dumps(known, indent=1) + "\n")
        return int(known[arm.name]["steps"])

    def mean_seconds(self, arm: Arm) -> float:
        """Time of a step of this arm."""
        runs = [self.out / "runs" / run_name(arm, seed) for seed in range(self.seeds)]
        return sum(map(seconds_a_step, runs)) / len(runs)

    def train(self, trainings: Sequence[Training], until: float = math.inf) -> None:
        """Run trainings, `jobs` at a time, under one bar of all their steps.

        Args:
            trainings: in the order in which they begin.
            until: the time, of `time.monotonic()`, at which those that are not done are asked to stop.

        Raises:
            MldmError: one ended without its weights; the others are asked to stop.
        """
        waiting = [training for training in trainings if not training.is_done]
        unproven = list(waiting)
        running: list[tuple[Training, subprocess.Popen[bytes]]] = []
        if not waiting:
            return
        steps = sum(training.steps or 0 for training in trainings) or None
        bar = tqdm(total=steps, desc=f"{len(trainings)} trainings", unit="step", smoothing=0.05)
        try:
            while (waiting or running) and time.monotonic() < until:
                while waiting and len(running) < self.jobs:
                    running.append((waiting[0], self.start(waiting.pop(0))))
                time.sleep(LOOK)
                for training, process in list(running):
                    if process.poll() is not None:
                        running.remove((training, process))
                        self.check(training, process)
                unproven = [training for training in unproven if not self.show_proof(training, bar)]
                bar.set_postfix_str(", ".join(training.name for training, _ in running), refresh=False)
                bar.update(sum(training.steps_done for training in trainings) - bar.n)
        finally:
            stop([process for _, process in running])
            bar.close()

    def show_proof(self, training: Training, bar: Any) -> bool:
        """Say above the bar that the losses reach the network, once the training has said so; whether it has."""
        table = proof_in(self.log(training))
        if not table:
            return training.is_done  # without losses there is nothing to prove
        bar.write(f"{training.name}: {in_short(table)}; {self.log(training)}", file=sys.stderr)
        return True

    def start(self, training: Training) -> subprocess.Popen[bytes]:
        """Begin a training; what it prints goes to logs/."""
        log = self.log(training)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            return training.start(threads_each(self.jobs), out)

    def log(self, training: Training) -> Path:
        return self.out / "logs" / f"{training.name}.log"

    def check(self, training: Training, process: subprocess.Popen[bytes]) -> None:
        """Raises MldmError for a training that ended without its weights, with what it said last."""
        if not training.is_done:
            lines = self.log(training).read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
            starts = [number for number, line in enumerate(lines) if line.startswith("mldm: ")]
            last = " ".join(lines[starts[-1] : starts[-1] + MOST_SAID]) if starts else lines[-1] if lines else ""
            raise MldmError(f"{training.name} ended early (status {process.returncode}): {last} ({self.log(training)})")


def claim(scale: Scale, name: str) -> None:
    """Make the folder of a comparison; one that holds the same goes on, with more seeds or pictures, too.

    Raises:
        MldmError: it holds something else.
    """
    out, asked = scale.out, {"name": name, "scale": type(scale).__name__.lower()}
    asked = json.loads(json.dumps({**asked, **scale.asked()}, default=str))
    mark = out / MARK
    if mark.is_file():
        if (before := json.loads(mark.read_text(encoding="utf-8"))) != asked:
            changed = [f"{key} {before.get(key)}, now {asked[key]}" for key in asked if before.get(key) != asked[key]]
            raise MldmError(f"{out} was begun with {'; '.join(changed)}: {scale.otherwise()}")
    elif there := scale.strangers():
        raise MldmError(f"{out} holds something else, {there[0].name}; choose another folder.")
    out.mkdir(parents=True, exist_ok=True)
    write_text(mark, json.dumps(asked) + "\n")
