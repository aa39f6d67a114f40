"""The study on a GPU that is lent for minutes: fewer arms, more steps of more pictures (docs/evidence_protocol.md).

python docs/evidence_gpu.py FOLDER --keep RESULTS [--jobs 16] [--train-seconds 200]

All arms of a seed are trained, seed after seed, until the time for training is over; whole seeds are judged. Nothing is
downloaded: MLDM_WEIGHTS names the folder with the networks. The same command goes on where it was stopped.
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
from mldm_plugin.reproduce.commands import Training, seconds_a_step
from mldm_plugin.reproduce.recipes import PLAIN, RECIPES, Arm, Recipe
from mldm_plugin.reproduce.run import Reproduction, claim
from mldm_plugin.reproduce.scales import Mini
from mldm_plugin.reproduce.study import JUDGED, Claim, Study

TIMES = 3  # as many steps for the arm that is given more time than any other. Chosen.
LONGER = replace(PLAIN, name="plain_3x", what="the plain loss, three times as many steps")
METRICS = ("attributes", "kd_faceres", "kd_alexnet_person", "face_found")
COMPARED = {"G1": ("t100", "plain"), "G2": ("t100", "plain_3x"), "G3": ("t400", "plain"), "G4": ("t400", "plain_3x")}
CLAIMS = tuple(
    Claim(name, metric, arm, against, direction)
    for name, (arm, against) in COMPARED.items()
    for metric, direction in JUDGED
)


class Lent(Reproduction):
    """A comparison of which as many seeds count as are trained in time."""

    def steps_of(self, arm: Arm) -> int:
        return (TIMES if arm == LONGER else 1) * (self.scale.steps or 0)

    def train_for(self, seconds: float) -> int:
        """Train seed after seed; how many of them are whole when the time is over."""
        self.train(self.trainings(timed=False), time.monotonic() + seconds)
        for seed in range(self.seeds):
            if not all(one.is_done for one in self.of_seed(seed)):
                return seed
        return self.seeds

    def of_seed(self, seed: int) -> list[Training]:
        return [one for one in self.trainings(timed=False) if one.name.endswith(f"-s{seed}")]

    def judge(self, seeds: int) -> Path:
        """The report of the first `seeds` seeds, and what it says of the claims."""
        evaluation = self.scale.evaluation(self.recipe, seeds, self.prompts).over(self.jobs)
        evaluation.call()
        plugins = load_plugins(["mldm_plugin.people_mini.metrics"])
        return Study(evaluation.made.parent, plugins, CLAIMS).write()

    def times(self, seeds: int) -> dict[str, list[float]]:
        """Seconds a step of each training."""
        found: dict[str, list[float]] = {}
        for seed in range(seeds):
            for training in self.of_seed(seed):
                found.setdefault(training.name.rpartition("-s")[0], []).append(seconds_a_step(training.folder))
        return found


def recipe() -> Recipe:
    """The arms that the main question needs."""
    whole = RECIPES["evidence"]
    arms = tuple(arm for arm in whole.arms if arm.name in ("plain", "base", "t100", "t400"))
    return replace(whole, arms=(*arms, LONGER), metrics=METRICS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep", type=Path, required=True, help="folder that gets study.json and what it was made of")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pictures", type=int, default=800)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--photographs", type=int, default=24)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--train-seconds", type=float, default=200)
    args = parser.parse_args()
    scale = Mini(args.folder, args.steps, pictures=args.pictures, photographs=args.photographs, batch=args.batch)
    study, clock = Lent(recipe(), scale, args.seeds, args.prompts, args.jobs), time.monotonic()

    def said(what: str) -> None:
        print(f"{time.monotonic() - clock:6.1f} s: {what}", flush=True)  # noqa: T201

    claim(scale, study.recipe.name)
    study.make_data()
    said("the drawings are there")
    whole = study.train_for(args.train_seconds)
    said(f"{whole} whole seeds")
    if whole:
        args.keep.mkdir(parents=True, exist_ok=True)
        write_text(args.keep / "seconds_a_step.json", json.dumps(study.times(whole), indent=1) + "\n")
        made = study.judge(whole)
        for file in (made, made.parent / "metrics.json", args.folder / "reproduce.json"):
            shutil.copy(file, args.keep / file.name)
        said(f"judged, {args.keep}")


if __name__ == "__main__":
    main()
