"""run.yaml as commands: data, trainings, evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mldm_plugin.errors import MldmError
from mldm_plugin.project.models import OURS, how_to_get, pipeline_of
from mldm_plugin.project.run_file import GIVEN, Run
from mldm_plugin.reproduce.commands import Command, Training
from mldm_plugin.reproduce.recipes import NO_LOSSES, Arm, Recipe
from mldm_plugin.reproduce.scales import losses_of, models, run_name

METRICS = ("identity", "copying", "face_found")
CHECKPOINTS = 4  # of a training; chosen
JUDGED_ONLY = {"prompts", "pictures", "guidance", "compare"}  # may change between two calls


@dataclass(frozen=True)
class OwnPhotos:
    """Somebody's photographs, learnt by a LoRA.

    Args:
        out: folder of run.yaml.
        run: what it says.
    """

    out: Path
    run: Run

    @property
    def steps(self) -> int:
        return self.run.steps

    @property
    def model(self) -> str:
        """The pipeline's folder or Hub name."""
        return pipeline_of(self.run.model)

    @property
    def people(self) -> Path:
        """The training set."""
        return self.photos if self.run.masks == GIVEN else self.out / "people"

    @property
    def learnt(self) -> Path:
        """The part of it that is trained on."""
        return self.people / "train" if self.run.held_out else self.people

    @property
    def photos(self) -> Path:
        return self.out / self.run.photos

    def asked(self) -> dict[str, Any]:
        return {"out": self.out, **self.run.model_dump(exclude=JUDGED_ONLY)}

    def strangers(self) -> list[Path]:
        """Only what would be written over: run.yaml, prompts and perhaps the photographs lie there."""
        made = [self.out / name for name in ("people", "people-check", "runs", "report")]
        return [path for path in made if path.exists()]

    def recipe(self) -> Recipe:
        """The arms: the plain loss if it is asked for, and the preset's."""
        run = self.run
        plain = Arm("plain", "the plain loss", run.preset, (*run.set, *NO_LOSSES))
        arms = (
            *([plain] if run.compare == "plain" else []),
            Arm("mldm", f"preset {run.preset}", run.preset, tuple(run.set)),
        )
        return Recipe("photos", f"{run.who}, learnt from {run.photos}", arms)

    def data(self) -> list[Command]:
        """Masks and face boxes, and a look at them."""
        run = self.run
        words = ["mldm", "data", "folder", str(self.photos), "--caption", run.caption, "--masks", run.masks]
        words += ["--faces", run.faces, "--held-out", str(run.held_out)]
        words += [word for name in run.leave_out for word in ("--leave-out", name)]
        check = self.out / "people-check"
        look = ["mldm", "data", "check", str(self.people), "--report", str(check)]
        look += ["--resolution", str(run.training["resolution"])] if "resolution" in run.training else []
        made = Command((*words, "--out", str(self.people)), self.learnt / "metadata.jsonl")
        return [*([] if run.masks == GIVEN else [made]), Command(tuple(look), check / "index.html")]

    def training(self, arm: Arm, seed: int, steps: int | None) -> Training:
        """A training with the flags of `training:`, those of the data and of the folder."""
        run = self.run
        given = {**self._data_flags(), "seed": run.seed + seed, **run.training}
        given |= {"checkpointing_steps": max(self.steps // CHECKPOINTS, 1), "checkpoints_total_limit": 2}
        given |= {"pretrained_model_name_or_path": self.model, "resume_from_checkpoint": "latest"}
        name = run_name(arm, seed)
        losses = losses_of(arm, plugins=run.plugins)
        trainer = self.script() if run.script else OURS.removeprefix("train_")
        return Training(name, self.out / "runs" / name, trainer, steps, (*losses, *as_flags(given)))

    def _data_flags(self) -> dict[str, Any]:
        """How the trainer is told of the data; DreamBooth's scripts read pictures alone, so masks are found by name."""
        if not self.run.script:
            return {"train_data_dir": self.learnt, "panel_steps": max(self.steps // CHECKPOINTS, 1)}
        if "dreambooth" not in Path(self.run.script).name:
            return {"train_data_dir": self.learnt}
        told = {"dataset_name": self.learnt, "image_column": "image", "caption_column": "text"}
        return {**told, "instance_prompt": self.run.caption, "mldm-mask-dir": self.learnt}

    def script(self) -> str:
        """The training script's file.

        Raises:
            MldmError: it is not there; how to get it is said.
        """
        for file in (self.out / self.run.script, Path(self.run.script)):
            if file.is_file():
                return str(file)
        raise MldmError(
            f"the script {self.run.script} is not here: get it with `{how_to_get(self.run.script)}`, and say in "
            "run.yaml where it is (`script:`)."
        )

    def cost(self, arm: Arm) -> str:
        """Of a training."""
        settings = self.run.training
        batch = int(settings.get("train_batch_size", 1)) * int(settings.get("gradient_accumulation_steps", 1))
        return f"{self.steps} steps of {batch} picture{'s' if batch > 1 else ''}"

    def evaluation(self, recipe: Recipe, seeds: int, prompts: int) -> Command:
        """The same pictures by each training; in one step the photographs that were kept back."""
        run, out = self.run, self.out / "report"
        metrics = [*METRICS, *(["face_sharpness"] if run.held_out else [])]  # which is told against photographs
        words = ["mldm", "evaluate", *models(recipe, self.out, seeds, self.model), "--base", self.model]
        words += ["--prompts-from", str(self.out / run.prompts), "--repetitions", str(run.pictures)]
        words += ["--person", str(self.learnt), "--train-data", str(self.learnt), "--metrics", ",".join(metrics)]
        words += ["--data", str(self.people)] if run.held_out else []
        words += ["--photographs", str(run.held_out)]
        words += ["--guidance", f"{run.guidance:g}"] if run.guidance is not None else []
        return Command((*words, "--out", str(out)), out / "report.html")


def as_flags(given: dict[str, Any]) -> list[str]:
    """Flags of a command line: true is a switch, false and null are left out.

    >>> as_flags({"rank": 4, "random_flip": True, "center_crop": False})
    ['--rank', '4', '--random_flip']
    """
    words = []
    for name, value in given.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:
            words += [f"--{name}", str(value)]
    return words
