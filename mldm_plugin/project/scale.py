"""run.yaml as commands: data, trainings, evaluation."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mldm_plugin.errors import MldmError
from mldm_plugin.evaluation.models import LORA
from mldm_plugin.prepare.stored import listed_rows
from mldm_plugin.preset_flags import as_flags
from mldm_plugin.project import places
from mldm_plugin.project.models import OURS, REPEATS, how_to_get, is_kohyas, pipeline_of
from mldm_plugin.project.run_file import GIVEN, NAME, PRECISIONS, Run
from mldm_plugin.records.files import write_text
from mldm_plugin.reproduce.commands import Command, Training
from mldm_plugin.reproduce.recipes import NO_LOSSES, Arm, Recipe
from mldm_plugin.reproduce.scales import losses_of, models, run_name

METRICS = ("identity", "copying", "face_found")
DATA = ".data"  # in the folder: a digest of the rows and masks that are trained on
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
        known = pipeline_of(self.run.model)
        return known if known != self.run.model else places.beside_if_there(self.out, known)

    @property
    def people(self) -> Path:
        """The training set."""
        return self.photos if self.run.masks == GIVEN else self.out / "people"

    @property
    def learnt(self) -> Path:
        """The part of it that is trained on."""
        split = self.people / "train"
        return split if self.run.held_out or (split / "metadata.jsonl").is_file() else self.people

    @property
    def photos(self) -> Path:
        return Path(places.beside(self.out, self.run.photos))

    def asked(self) -> dict[str, Any]:
        return self.run.model_dump(exclude=JUDGED_ONLY)  # the folder may be called another way, or be moved

    def otherwise(self) -> str:
        """A folder beside this one, so that paths in the file go on to lead where they led."""
        out = self.out if self.out.name else self.out.resolve()
        anew, file = out.with_name(f"{out.name}-2"), self.out / NAME
        words = [("mkdir", anew), ("cp", file, self.out / self.run.prompts, anew), ("mldm", "train", anew)]
        commands = " && ".join(shlex.join(map(str, line)) for line in words)
        return f"change it back to go on, or train what {file} says now in a folder of its own: {commands}"

    def strangers(self) -> list[Path]:
        """Only what would be written over: run.yaml, prompts and perhaps the photographs lie there."""
        made = [self.out / name for name in ("people", "people-check", "runs", "report")]
        return [path for path in made if path.exists()]

    def recipe(self) -> Recipe:
        """The arms: the plain loss if it is asked for, and the preset's."""
        run = self.run
        script = Path(run.script).stem if run.script else OURS
        sets = (*run.set, f"training.{script}={{}}")  # run.yaml says all flags; what it leaves out is the script's own
        preset = places.preset_beside(self.out, run.preset)
        plain = Arm("plain", "the plain loss", preset, (*sets, *NO_LOSSES))
        ours = Arm("mldm", f"preset {run.preset}", preset, sets)
        arms = (plain, ours) if run.compare == "plain" else (ours,)
        return Recipe("photos", f"{run.who}, learnt from {run.photos}", arms)

    def data(self) -> list[Command]:
        """Masks and face boxes, and a look at them."""
        run = self.run
        words = ["mldm", "data", "folder", str(self.photos), "--caption", run.caption]
        words += ["--masks", places.masks_beside(self.out, run.masks)]
        words += ["--faces", run.faces, "--held-out", str(run.held_out)]
        words += [word for name in run.leave_out for word in ("--leave-out", name)]
        check = self.out / "people-check"
        look = ["mldm", "data", "check", str(self.people), "--report", str(check)]
        look += ["--resolution", str(run.training["resolution"])] if "resolution" in run.training else []
        made = Command((*words, "--out", str(self.people)), self.learnt / "metadata.jsonl")
        told = [*([] if run.masks == GIVEN else [made]), Command(tuple(look), check / "index.html")]
        if self.is_kohyas:
            words = [
                "mldm",
                "data",
                "kohya",
                str(self.learnt),
                "--out",
                str(self.kohyas_data),
                "--repeats",
                str(REPEATS),
            ]
            words += ["--resolution", str(run.training["resolution"])]
            words += ["--batch", str(run.training.get("train_batch_size", 1))]
            told.append(Command(tuple(words), self.kohyas_data))
        return told

    def check_data(self) -> None:
        """Rows and masks must be those of the first training, or the two would be compared on different data.

        Raises:
            MldmError: they were changed since, by `mldm data review` for example.
        """
        found = hashlib.sha256()
        for top, row in listed_rows(self.learnt):
            found.update(json.dumps(row, sort_keys=True).encode())
            mask = top / (row.get("mask_file_name") or "")
            found.update(mask.read_bytes() if mask.is_file() else b"")
        mark, runs = self.out / DATA, self.out / "runs"
        if mark.is_file() and runs.is_dir() and mark.read_text(encoding="utf-8") != found.hexdigest():
            raise MldmError(
                f"{self.learnt} was changed after training had begun: remove {runs} to train on what it holds now."
            )
        write_text(mark, found.hexdigest())

    def training(self, arm: Arm, seed: int, steps: int | None) -> Training:
        """A training with the flags of `training:`, those of the data and of the folder."""
        run = self.run
        given = {"pretrained_model_name_or_path": self.model, "seed": run.seed + seed}
        given |= self._kohyas_flags() if self.is_kohyas else {**self._flags(), **self._settings()}
        name = run_name(arm, seed)
        losses = losses_of(arm, plugins=[places.plugin_beside(self.out, name) for name in run.plugins])
        trainer = self.script if run.script else OURS.removeprefix("train_")
        return Training(name, self.out / "runs" / name, trainer, steps, (*losses, *as_flags(given)), self.python)

    def _settings(self) -> dict[str, Any]:
        """Those of `training:`."""
        return {name: places.flag_beside(self.out, value) for name, value in self.run.training.items()}

    def _flags(self) -> dict[str, Any]:
        """Data, checkpoints and resuming; nothing is written beside the photographs. DreamBooth's scripts read pictures
        alone, so masks are found by name."""
        every = max(self.steps // CHECKPOINTS, 1)
        told = {"checkpointing_steps": every, "checkpoints_total_limit": 2, "resume_from_checkpoint": "latest"}
        if not self.run.script:
            told |= {"latents_cache_dir": self.out / "latents"} if self.run.training.get("cache_latents") else {}
            return {**told, "train_data_dir": self.learnt, "panel_steps": every}
        if "dreambooth" not in Path(self.run.script).name:
            return {**told, "train_data_dir": self.learnt}
        told |= {"dataset_name": self.learnt, "image_column": "image", "caption_column": "text"}
        return {**told, "instance_prompt": self.run.caption, "mldm-mask-dir": self.learnt}

    def _kohyas_flags(self) -> dict[str, Any]:
        """Resolution and batch stand in the data set's file; a training that was stopped begins anew."""
        own = {
            name: value for name, value in self._settings().items() if name not in ("resolution", "train_batch_size")
        }
        told = {"dataset_config": self.kohyas_data, "mldm-mask-dir": self.learnt}
        return {**told, "output_name": Path(LORA).stem, "save_model_as": "safetensors", **own}

    @property
    def is_kohyas(self) -> bool:
        """Whether one of sd-scripts trains."""
        return is_kohyas(self.run.script)

    @property
    def kohyas_data(self) -> Path:
        """The file that describes the training set to it."""
        return self.out / "dataset.toml"

    @property
    def script(self) -> str:
        """The training script's file."""
        return places.beside(self.out, self.run.script)

    @property
    def python(self) -> str:
        """The interpreter of the script's environment, a path or a command; empty for this one."""
        return places.program_beside(self.out, self.run.python)

    def lacks(self) -> str:
        """What must be fetched before anything can be trained, with the command; empty where nothing must."""
        run, file = self.run, self.out / NAME
        if run.script and not Path(self.script).is_file():
            return (
                f"the script {self.script} is not there: get it with `{how_to_get(self.script)}`, or say in {file} "
                "where it is (`script:`)."
            )
        return "" if not run.python else _lacks_package(self.python, file)

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
        words += ["--prompts-from", places.beside(self.out, run.prompts), "--repetitions", str(run.pictures)]
        words += ["--person", str(self.learnt), "--train-data", str(self.learnt), "--metrics", ",".join(metrics)]
        words += ["--data", str(self.people)] if run.held_out else []
        words += ["--photographs", str(run.held_out)]
        words += ["--guidance", f"{run.guidance:g}"] if run.guidance is not None else []
        words += ["--resolution", str(run.training["resolution"])] if "resolution" in run.training else []
        words += ["--precision", PRECISIONS[run.training.get("mixed_precision") or "no"]]
        return Command((*words, "--out", str(out)), out / "report.html")


def _lacks_package(python: str, file: Path) -> str:
    """Why an interpreter cannot train with this package; empty where it can."""
    try:
        found = subprocess.run([python, "-c", "import accelerate, mldm_plugin"], capture_output=True, text=True)
    except OSError as error:
        return f"`python:` in {file} cannot be run: {error}"
    if not found.returncode:
        return ""
    last = (found.stderr.strip().splitlines() or [f"status {found.returncode}"])[-1]
    return f"{python} (`python:` in {file}) cannot train with this package: {last}; docs/how_to/kohya.md installs it."
