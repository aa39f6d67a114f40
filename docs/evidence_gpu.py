"""The study on a GPU that is lent for minutes: fewer arms, more steps of more pictures (docs/evidence_protocol.md).

python docs/evidence_gpu.py FOLDER [--jobs 12] [--train-seconds 200]

First plain, T = 100 and T = 400 are trained alone for their time, which tells the arms of equal time their length; then
all arms of a seed, seed after seed, until the time for training is over. Whole seeds are judged. Nothing is downloaded:
MLDM_WEIGHTS names the folder with the networks. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

from mldm_plugin.plugins import load_plugins
from mldm_plugin.records.files import write_text
from mldm_plugin.reproduce.commands import Training, seconds_a_step, stop
from mldm_plugin.reproduce.recipes import RECIPES, Recipe
from mldm_plugin.reproduce.run import Reproduction, claim
from mldm_plugin.reproduce.scales import Mini
from mldm_plugin.reproduce.study import JUDGED, Claim, Study

ARMS = ("plain", "base", "t100", "t400", "additive", "masked_mse", "plain_t100", "plain_t400")
METRICS = ("attributes", "kd_faceres", "kd_alexnet_person", "face_found")
BETTER = {"G1": ("t100", "plain"), "G2": ("t100", "plain_t100"), "G3": ("t400", "plain"), "G4": ("t400", "plain_t400")}
CLAIMS = tuple(
    Claim(name, metric, arm, against, direction)
    for name, (arm, against) in BETTER.items()
    for metric, direction in JUDGED
)
TIMED_STEPS = 100


class Lent(Reproduction):
    """A comparison of which as many seeds count as are trained in time."""

    def train_for(self, seconds: float) -> int:
        """Train seed after seed; how many of them are whole when the time is over."""
        end = time.monotonic() + seconds
        waiting = [one for timed in (False, True) for one in self.trainings(timed=timed)]
        waiting.sort(key=lambda one: int(one.name.rpartition("-s")[2]))  # stable: all arms of a seed before the next
        waiting = [one for one in waiting if not one.is_done]
        running = []
        try:
            while (waiting or running) and time.monotonic() < end:
                while waiting and len(running) < self.jobs:
                    running.append((waiting[0], self.start(waiting.pop(0))))
                time.sleep(0.2)
                ended = [pair for pair in running if pair[1].poll() is not None]
                for training, process in ended:
                    self.check(training, process)
                running = [pair for pair in running if pair not in ended]
        finally:
            stop([process for _, process in running])
        done = {one.name for timed in (False, True) for one in self.trainings(timed=timed) if one.is_done}
        names = [arm.name for arm in self.recipe.arms if arm.preset]
        whole = [seed for seed in range(self.seeds) if all(f"{name}-s{seed}" in done for name in names)]
        return next((number for number, seed in enumerate(whole) if seed != number), len(whole))

    def time_arms(self) -> None:
        """equal_time.json, from trainings with nothing beside them."""
        file = self.out / "equal_time.json"
        if file.is_file():
            return
        arms = {arm.name: arm for arm in self.recipe.arms}
        seconds = {}
        for name in ("plain", "t100", "t400"):
            training: Training = self.scale.training(arms[name], 0, TIMED_STEPS)
            training = replace(training, name=f"timed-{name}", folder=self.out / "timed" / name)
            process = self.start(training)
            process.wait()
            self.check(training, process)
            seconds[name] = seconds_a_step(training.folder)
        known = {
            f"plain_{slow}": {
                "steps": round((self.scale.steps or 0) * seconds[slow] / seconds["plain"]),
                "seconds_a_step": [seconds[slow], seconds["plain"]],
            }
            for slow in ("t100", "t400")
        }
        write_text(file, json.dumps(known, indent=1) + "\n")

    def judge(self, seeds: int) -> Path:
        """The report of the first `seeds` seeds, and what it says of the claims."""
        evaluation = self.scale.evaluation(self.recipe, seeds, self.prompts)
        evaluation.call(self.jobs)
        plugins = load_plugins(["mldm_plugin.people_mini.metrics"])
        return Study(evaluation.made.parent, plugins, CLAIMS).write()


def recipe() -> Recipe:
    """Those arms of the study that its main question needs."""
    whole = RECIPES["evidence"]
    return replace(whole, arms=tuple(arm for arm in whole.arms if arm.name in ARMS), metrics=METRICS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pictures", type=int, default=1600)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--photographs", type=int, default=24)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--train-seconds", type=float, default=200)
    parser.add_argument("--only", choices=("data", "time", "all"), default="all")
    parser.add_argument("--keep", type=Path, help="folder that gets study.json, equal_time.json and reproduce.json")
    args = parser.parse_args()
    scale = Mini(args.folder, args.steps, pictures=args.pictures, photographs=args.photographs, batch=args.batch)
    study = Lent(recipe(), scale, args.seeds, args.prompts, args.jobs)
    clock = time.monotonic()

    def said(what: str) -> None:
        print(f"{time.monotonic() - clock:6.1f} s: {what}", flush=True)  # noqa: T201

    claim(scale, study.recipe.name)
    study.make_data()
    said("data")
    if args.only == "data":
        return
    study.time_arms()
    said((args.folder / "equal_time.json").read_text(encoding="utf-8"))
    if args.only == "time":
        return
    whole = study.train_for(args.train_seconds)
    said(f"{whole} whole seeds")
    for seeds in sorted({min(2, whole), whole} - {0}):  # a first report, in case the machine goes before the last
        made = study.judge(seeds)
        said(f"judged {seeds} seeds")
        if args.keep:
            args.keep.mkdir(parents=True, exist_ok=True)
            for file in (
                made,
                made.parent / "metrics.json",
                args.folder / "equal_time.json",
                args.folder / "reproduce.json",
            ):
                shutil.copy(file, args.keep / file.name)


if __name__ == "__main__":
    main()
