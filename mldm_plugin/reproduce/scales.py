"""The two scales of a comparison: what is read, how it is trained and how it is judged, as commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from mldm_plugin.errors import MldmError
from mldm_plugin.people_mini import PIPELINE
from mldm_plugin.preset import load_preset
from mldm_plugin.reproduce.commands import Command, Training
from mldm_plugin.reproduce.recipes import Arm, Recipe

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # on the Hub
# The published face network's weights cannot be had everywhere; dlib's are free for any use.
OPEN_NETWORKS = ("losses.face.network=dlib_resnet",)
TRAINED, VALIDATED, HOURS = 37470, 1565, 6  # the paper's pictures, and an epoch's time on an RTX 3090, section 4
FIRST_DRAWING = 1_000_000  # people-mini was trained on numbers below 200 000
FIRST_TEST, FIRST_TUNING = 2_000_000, 3_000_000  # of the held-out tenth


class Scale(Protocol):
    """How a comparison is carried out.

    Args:
        out: folder of everything.
        steps: of the arms; None where their presets say it.
    """

    @property
    def out(self) -> Path: ...

    @property
    def steps(self) -> int | None: ...

    def asked(self) -> dict[str, Any]:
        """What a folder that was begun must have been begun with."""

    def otherwise(self) -> str:
        """What to do who has begun with something else."""

    def strangers(self) -> list[Path]:
        """What lies in the folder before anything is made there, and must not."""

    def data(self) -> list[Command]:
        """What makes the data, each of which is run where what it makes is not there."""

    def check_data(self) -> None:
        """Raise MldmError where they are not those that the first training saw."""

    def training(self, arm: Arm, seed: int, steps: int | None) -> Training:
        """One training of an arm."""

    def cost(self, arm: Arm) -> str:
        """Of a training of this arm, in words."""

    def evaluation(self, recipe: Recipe, seeds: int, prompts: int) -> Command:
        """What judges all arms."""


class OwnFolder:
    """What the scales have in common that fill a folder of their own with data that nobody changes by hand."""

    out: Path

    def asked(self) -> dict[str, Any]:
        return vars(self)

    def otherwise(self) -> str:
        return "give the same again, or another folder."

    def strangers(self) -> list[Path]:
        return sorted(self.out.iterdir()) if self.out.is_dir() else []

    def check_data(self) -> None:
        """Nobody has changed them."""


class OnPeopleMini(OwnFolder):
    """What the scales have in common that train people-mini."""

    resolution = 128
    model = str(PIPELINE)
    out: Path
    steps: int
    batch: int

    @staticmethod
    def prompts_of(recipe: Recipe) -> int:
        """How many captions each run draws."""
        return recipe.prompts

    def cost(self, arm: Arm) -> str:
        """Of a training of this arm."""
        return in_words(self.steps, self.batch)


@dataclass(frozen=True)
class Mini(OnPeopleMini):
    """people-mini and drawn people, for two CPU cores or a GPU.

    A ControlNet without a hint, as in the paper, from people-mini's U-Net; every picture is of a drawing that
    people-mini has never seen, every prompt and every photograph of the evaluation of the tenth that nothing sees.

    Args:
        out: folder of everything.
        steps: of the arms.
        tuning: whether it is judged on the drawings that settings are chosen on, instead of the test's.
    """

    out: Path
    steps: int
    tuning: bool = False
    pictures: int = 800
    held_out: int = 100
    photographs: int = 24
    batch: int = 4
    learning_rate: float = 5e-4

    def data(self) -> list[Command]:
        """Draw the people to train on, and those to judge on."""
        workers = str(os.cpu_count() or 1)
        start = FIRST_TUNING if self.tuning else FIRST_TEST
        wanted = {
            "train": (self.pictures, FIRST_DRAWING, ()),
            "validation": (self.held_out, start, ("--held-out",)),
        }
        commands = []
        for name, (count, first, switches) in wanted.items():
            folder = self.out / "data" / name
            words = [sys.executable, "-m", "mldm_plugin.people_mini", "folder", "--out", str(folder)]
            words += ["--count", str(count), "--start", str(first), "--workers", workers, *switches]
            commands.append(Command(tuple(words), folder / "metadata.jsonl"))
        return commands

    def training(self, arm: Arm, seed: int, steps: int | None) -> Training:
        """A ControlNet without a hint, latents cached once for all."""
        changes = OPEN_NETWORKS if arm.preset is not None and "mldm" in arm.preset else ()
        flags = {
            "--pretrained_model_name_or_path": self.model,
            "--train_data_dir": self.out / "data" / "train",
            "--conditioning": "none",
            "--resolution": self.resolution,
            "--train_batch_size": self.batch,
            "--learning_rate": self.learning_rate,
            "--lr_scheduler": "cosine",
            "--lr_warmup_steps": 10,
            "--checkpointing_steps": 50,
            "--checkpoints_total_limit": 1,
            "--resume_from_checkpoint": "latest",
            "--panel_steps": 0,
            "--latents_cache_dir": self.out / "latents",
            "--cache_dir": self.out / "cache",
            "--seed": seed,
        }
        words = [str(word) for pair in flags.items() for word in pair]
        losses = losses_of(arm, changes)
        return Training(
            run_name(arm, seed),
            self.out / "runs" / run_name(arm, seed),
            "controlnet",
            steps,
            (*losses, *words, "--cache_latents"),
        )

    def evaluation(self, recipe: Recipe, seeds: int, prompts: int) -> Command:
        """All arms on held-out drawings."""
        out = self.out / "report"
        words = ["mldm", "evaluate", *models(recipe, self.out, seeds, self.model), "--base", self.model]
        words += ["--data", str(self.out / "data"), "--prompts", str(prompts), "--guidance", "3"]
        words += ["--photographs", str(self.photographs), "--loss-plugin", "mldm_plugin.people_mini.metrics"]
        words += ["--metrics", ",".join(recipe.metrics)] if recipe.metrics else []
        return Command((*words, "--out", str(out)), out / "report.html")


@dataclass(frozen=True)
class MiniWithKeypoints(Mini):
    """The same drawings with the keypoints of their people, for losses that need them."""

    def data(self) -> list[Command]:
        """Both splits, since `datasets` wants one set of columns."""
        return [replace(command, words=(*command.words, "--keypoints")) for command in super().data()]


@dataclass(frozen=True)
class Person(OnPeopleMini):
    """people-mini and ten photographs of somebody whom it has never seen: a LoRA, as its users would train one.

    Args:
        out: folder of everything.
        steps: of the arms.
        person: P008, on whom settings were chosen, P009 or P010.
        judge: the metric of likeness.
    """

    out: Path
    steps: int
    person: str
    judge: str = "identity"
    batch: int = 4
    noises: int = 2
    sampler_steps: int = 20

    def data(self) -> list[Command]:
        """Ten photographs to learn, nine to compare with."""
        words = (
            sys.executable,
            "-m",
            "mldm_plugin.people_mini",
            "person",
            self.person,
            "--out",
            str(self.out / "data"),
        )
        return [Command(words, self.out / "data" / "validation" / "metadata.jsonl")]

    def training(self, arm: Arm, seed: int, steps: int | None) -> Training:
        """A LoRA with the settings of preset `demo`, latents cached once for all."""
        flags = {
            "--pretrained_model_name_or_path": self.model,
            "--train_data_dir": self.out / "data" / "train",
            "--checkpointing_steps": 50,
            "--checkpoints_total_limit": 1,
            "--resume_from_checkpoint": "latest",
            "--panel_steps": 100,
            "--latents_cache_dir": self.out / "latents",
            "--cache_dir": self.out / "cache",
            "--seed": seed,
        }
        words = [str(word) for pair in flags.items() for word in pair]
        name = run_name(arm, seed)
        return Training(name, self.out / "runs" / name, "text_to_image_lora", steps, (*losses_of(arm), *words))

    def evaluation(self, recipe: Recipe, seeds: int, prompts: int) -> Command:
        """The same pictures by each, and one step of the photographs that were kept back."""
        out = self.out / "report"
        words = ["mldm", "evaluate", *models(recipe, self.out, seeds, self.model), "--base", self.model]
        words += ["--data", str(self.out / "data"), "--person", str(self.out / "data" / "train")]
        words += ["--train-data", str(self.out / "data" / "train"), "--metrics", f"{self.judge},copying"]
        words += ["--prompts", str(prompts), "--photographs", str(prompts), "--repetitions", str(self.noises)]
        words += ["--steps", str(self.sampler_steps), "--guidance", "3", "--out", str(out)]
        return Command(tuple(words), out / "report.html")


@dataclass(frozen=True)
class Paper(OwnFolder):
    """The paper's own setting: Stable Diffusion 1.5, COCO's pictures of people, 512 px, DDIM 50 steps at guidance 9.

    Args:
        out: folder of everything.
        coco: folder with train2017/, val2017/ and annotations/.
        model: Stable Diffusion 1.5, a folder or a name on the Hub.
        steps: of every arm; None for the epochs of its preset.
    """

    out: Path
    coco: Path
    model: str = SD15
    steps: int | None = None
    resolution = 512

    @staticmethod
    def prompts_of(recipe: Recipe) -> int:
        """How many pictures each run draws: as many as the paper has to validate with."""
        return VALIDATED

    def data(self) -> list[Command]:
        """COCO's pictures that people cover most: as many as the paper has."""
        commands = []
        for name, split, count in (("train", "train2017", TRAINED), ("validation", "val2017", VALIDATED)):
            folder, notes = self.out / "data" / name, self.coco / "annotations"
            words = ["mldm", "data", "coco", "--images", str(self.coco / split), "--target-count", str(count)]
            for kind, file in (("instances", "instances"), ("captions", "captions"), ("keypoints", "person_keypoints")):
                words += [f"--{kind}", str(notes / f"{file}_{split}.json")]
            commands.append(Command((*words, "--out", str(folder)), folder / "metadata.jsonl"))
        return commands

    def training(self, arm: Arm, seed: int, steps: int | None) -> Training:
        """The preset as it stands."""
        flags = {
            "--pretrained_model_name_or_path": self.model,
            "--train_data_dir": self.out / "data" / "train",
            "--checkpoints_total_limit": 2,
            "--resume_from_checkpoint": "latest",
            "--seed": seed,
        }
        words = [str(word) for pair in flags.items() for word in pair]
        name = run_name(arm, seed)
        return Training(name, self.out / "runs" / name, "controlnet", steps, (*losses_of(arm), *words))

    def cost(self, arm: Arm) -> str:
        """Of a training of this arm: the paper's RTX 3090 took about 6 hours an epoch of the plain loss (section 4)."""
        settings = load_preset(str(arm.preset), arm.sets).training["train_controlnet"]
        batch, epochs = settings["train_batch_size"], settings["num_train_epochs"]
        if self.steps is not None:
            return in_words(self.steps, batch)
        return f"{in_words(epochs * TRAINED // batch, batch)}, {epochs} epochs of {HOURS} hours on an RTX 3090 or more"

    def evaluation(self, recipe: Recipe, seeds: int, prompts: int) -> Command:
        """As the paper samples."""
        out = self.out / "report"
        words = ["mldm", "evaluate", *models(recipe, self.out, seeds, self.model), "--base", self.model]
        words += ["--data", str(self.out / "data"), "--prompts", str(prompts)]
        words += ["--sampler", "ddim", "--steps", "50", "--guidance", "9", "--out", str(out)]
        return Command(tuple(words), out / "report.html")


def in_words(steps: int, batch: int) -> str:
    return f"{steps} steps of {batch} picture{'s' if batch > 1 else ''}"


def losses_of(arm: Arm, changes: Sequence[str] = (), plugins: Sequence[str] = ("mldm",)) -> list[str]:
    """The flags that say what is optimised."""
    if arm.preset is None:
        raise MldmError(f"{arm.name} is not trained.")
    sets = [word for change in (*changes, *arm.sets) for word in ("--set", change)]
    loaded = [word for plugin in plugins for word in ("--loss-plugin", plugin)]
    return [*loaded, "--preset", arm.preset, *sets]


def run_name(arm: Arm, seed: int) -> str:
    return f"{arm.name}-s{seed}"


def models(recipe: Recipe, out: Path, seeds: int, base: str) -> list[str]:
    """The `--model` of each arm."""
    words = []
    for arm in recipe.arms:
        runs = [str(out / "runs" / run_name(arm, seed)) for seed in range(seeds)]
        words += [word for what in (runs if arm.preset else [base]) for word in ("--model", f"{arm.name}={what}")]
    return words
