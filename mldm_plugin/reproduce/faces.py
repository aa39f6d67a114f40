"""The two scales of the tables of faces from attributes and masks: what is read, how it is trained and judged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from mldm_plugin.prepare.celebamask_hq import ATTRIBUTES_FILE
from mldm_plugin.preset import load_preset
from mldm_plugin.reproduce.commands import Command, Training
from mldm_plugin.reproduce.recipes import Arm, Recipe
from mldm_plugin.reproduce.scales import OwnFolder, in_words, losses_of, run_name

LDM_CELEBAHQ = "CompVis/ldm-celebahq-256"  # on the Hub: the autoencoder that the paper takes
TRAINED = 25_000  # pictures of CelebAMask-HQ, of 30 000
SEED_OF_DRAWINGS = 21
JUDGE_STEPS = 30_000  # of 16 photographs: 19 epochs, chosen; judges.txt says how often they are right
TRAINER = "train_conditional_ldm"  # in presets


class _Faces(OwnFolder):
    """What both scales have in common: one folder for five tables, in which each arm is trained once."""

    out: Path
    steps: int | None
    kind: ClassVar[str]  # what ends the names of presets

    @property
    def pictures(self) -> Path:
        return self.out / "data"

    @property
    def judges(self) -> Path:
        return self.out / "judges"

    def preset_of(self, arm: Arm) -> Arm:
        """The arm with the preset of this scale."""
        return replace(arm, preset=f"{arm.preset}{self.kind}")

    def trained(
        self, arm: Arm, seed: int, steps: int | None, autoencoder: str, *switches: str, **flags: str | int
    ) -> Training:
        """One training, whose checkpoints of each third stay."""
        flags = {
            "pretrained_model_name_or_path": autoencoder,
            "train_data_dir": str(self.pictures),
            "resume_from_checkpoint": "latest",
            "seed": seed,
            **flags,
        }
        words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
        name = run_name(arm, seed)
        given = (*losses_of(self.preset_of(arm)), *words, *switches)
        return Training(name, self.out / "runs" / name, "conditional_ldm", steps, given)

    def judged(self, recipe: Recipe, seeds: int, prompts: int, sampler_steps: int, every: int) -> Command:
        """All arms on held-out conditions, by DDIM; with new noise in each step where several are drawn of each."""
        out = self.out / recipe.name
        words = ["mldm", "evaluate", *self._models(recipe, seeds, every), "--data", str(self.pictures)]
        words += ["--judges", str(self.judges), "--metrics", ",".join(recipe.metrics), "--photographs", "0"]
        words += ["--prompts", str(prompts), "--sampler", "ddim", "--steps", str(sampler_steps)]
        if recipe.repetitions > 1:
            words += ["--repetitions", str(recipe.repetitions), "--eta", "1"]
        return Command((*words, "--out", str(out)), out / "report.html")

    def _models(self, recipe: Recipe, seeds: int, every: int) -> list[str]:
        """The finished runs of each arm, then their earlier stages."""
        runs = [(arm.name, self.out / "runs" / run_name(arm, seed)) for arm in recipe.arms for seed in range(seeds)]
        found = [f"{name}={run}" for name, run in runs]
        for stage in range(1, recipe.stages):
            found += [f"{name}-{stage * every}={run}/checkpoint-{stage * every}/model" for name, run in runs]
        return [word for model in found for word in ("--model", model)]


@dataclass(frozen=True)
class FacesMini(_Faces):
    """Drawn portraits, an autoencoder and judges trained on them, and small networks: for two CPU cores or a GPU.

    Args:
        out: folder of everything, that five tables share.
        steps: of the arms; None for those of their presets.
        portraits: that are drawn, every sixth of them held out.
        side: of the pictures.
        autoencoder_steps, judge_steps: of the trainings that come before.
        sampler_steps: of DDIM.
    """

    out: Path
    steps: int | None = None
    portraits: int = 6000
    side: int = 128
    autoencoder_steps: int = 4000
    judge_steps: int = 3000
    sampler_steps: int = 50
    kind: ClassVar[str] = "-mini"

    @staticmethod
    def prompts_of(recipe: Recipe) -> int:
        """How many conditions of held-out pictures each run draws from."""
        return recipe.prompts

    def data(self) -> list[Command]:
        """Draw the portraits; train what encodes and what judges them."""
        drawn, faces = self.out / "drawn", ("mldm", "faces")
        draw = ("mldm", "data", "synthetic", "--portraits", "--count", self.portraits, "--size", self.side)
        encoded = (self.pictures, "--out", self.autoencoder, "--steps", self.autoencoder_steps, "--side", self.side)
        judged = (self.pictures, "--out", self.judges, "--steps", self.judge_steps, "--side", self.side)
        return [
            _command([*draw, "--seed", SEED_OF_DRAWINGS, "--out", drawn], drawn / ATTRIBUTES_FILE),
            _command(
                ["mldm", "data", "celebamask-hq", drawn, "--out", self.pictures],
                self.pictures / "validation" / "metadata.jsonl",
            ),
            _command(
                [*faces, "autoencoder", *encoded],
                self.autoencoder / "autoencoder.txt",
            ),
            _command(
                [*faces, "judges", *judged],
                self.judges / "judges.txt",
            ),
        ]

    @property
    def autoencoder(self) -> Path:
        return self.out / "autoencoder"

    def steps_of(self, arm: Arm) -> int:
        """Those that were asked for, or its preset's."""
        return self.steps or int(load_preset(self.preset_of(arm).preset or "").training[TRAINER]["max_train_steps"])

    def training(self, arm: Arm, seed: int, steps: int | None) -> Training:
        """The preset as it stands, latents cached."""
        length = steps or self.steps_of(arm)
        return self.trained(
            arm,
            seed,
            length,
            str(self.autoencoder),
            "--cache_latents",
            checkpointing_steps=max(length // 3, 1),
            validation_rows=0,
            cache_dir=str(self.out / "cache"),
            latents_cache_dir=str(self.out / "latents"),
            resolution=self.side,
        )

    def cost(self, arm: Arm) -> str:
        """Of a training of this arm."""
        settings = load_preset(self.preset_of(arm).preset or "").training[TRAINER]
        return in_words(self.steps_of(arm), settings["train_batch_size"])

    def evaluation(self, recipe: Recipe, seeds: int, prompts: int) -> Command:
        """Every model at the end, and at the stages that the recipe asks for."""
        return self.judged(recipe, seeds, prompts, self.sampler_steps, max(self.steps_of(recipe.arms[0]) // 3, 1))


@dataclass(frozen=True)
class FacesPaper(_Faces):
    """The paper's own setting: CelebAMask-HQ at 256 px, the VQ autoencoder of LDM, 600 epochs, DDIM 500 steps.

    Args:
        out: folder of everything, that five tables share.
        celeba: the folder CelebAMask-HQ as it is handed out.
        model: whose autoencoder is taken, a folder or a name on the Hub.
        steps: of every arm; None for the epochs of its preset.
    """

    out: Path
    celeba: Path
    model: str = LDM_CELEBAHQ
    steps: int | None = None
    kind: ClassVar[str] = ""

    @staticmethod
    def prompts_of(recipe: Recipe) -> int:
        """50 000 pictures without a condition, of which Table 1 has 10 000; else one for each held-out picture."""
        return {"faces-table1": 10_000, "faces-table2": 50_000}.get(recipe.name, 5_000)

    def data(self) -> list[Command]:
        """Read CelebAMask-HQ; train the judges on it."""
        judges = ("mldm", "faces", "judges")
        large = ("--large", "--side", 256, "--steps", JUDGE_STEPS)
        return [
            _command(
                ["mldm", "data", "celebamask-hq", self.celeba, "--out", self.pictures],
                self.pictures / "validation" / "metadata.jsonl",
            ),
            _command(
                [*judges, self.pictures, "--out", self.judges, *large],
                self.judges / "judges.txt",
            ),
        ]

    def training(self, arm: Arm, seed: int, steps: int | None) -> Training:
        """The preset as it stands."""
        return self.trained(arm, seed, steps, self.model, checkpointing_steps=self._whole(arm) // 3)

    def _whole(self, arm: Arm) -> int:
        settings = load_preset(self.preset_of(arm).preset or "").training[TRAINER]
        return self.steps or settings["num_train_epochs"] * -(-TRAINED // settings["train_batch_size"])

    def cost(self, arm: Arm) -> str:
        """Of a training of this arm."""
        settings = load_preset(self.preset_of(arm).preset or "").training[TRAINER]
        return in_words(self._whole(arm), settings["train_batch_size"])

    def evaluation(self, recipe: Recipe, seeds: int, prompts: int) -> Command:
        """Five hundred steps of DDIM."""
        return self.judged(recipe, seeds, prompts, 500, self._whole(recipe.arms[0]) // 3)


def _command(words: list[object], made: Path) -> Command:
    return Command(tuple(str(word) for word in words), made)
