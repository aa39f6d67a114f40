"""Trainers with a door of their own, known by what their scripts import, and where to read how it is opened."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from mldm_plugin.attach.edits import ScriptError


@dataclass(frozen=True)
class Trainer:
    """A trainer that is not spliced.

    Args:
        name: what it is called.
        packages: that its scripts import.
        recipe: its page in docs/recipes/.
        door: the module beside this one whose `install` follows the trainer as it is; empty where it is the trainer
            that calls us.
    """

    name: str
    packages: tuple[str, ...]
    recipe: str
    door: str = ""


OTHERS = (
    Trainer("OneTrainer", ("modules.util", "modules.trainer", "modules.ui"), "onetrainer.md", "onetrainer"),
    Trainer("ai-toolkit", ("toolkit",), "ai_toolkit.md"),
    Trainer("musubi-tuner", ("musubi_tuner",), "musubi_tuner.md", "musubi"),
    Trainer("SimpleTuner", ("simpletuner",), "simpletuner.md", "simpletuner"),
    Trainer("DiffSynth-Studio", ("diffsynth",), "diffsynth.md", "diffsynth"),
    Trainer("CompVis' latent diffusion", ("ldm", "cldm"), "lightning.md"),
)


def trainer_of(text: str) -> Trainer | None:
    """The trainer that a script's text is of; None for one that is read as diffusers' and kohya's are."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return None
    imported = [name for node in ast.walk(tree) for name in _imported(node)]
    for trainer in OTHERS:
        if any(name == p or name.startswith(f"{p}.") for name in imported for p in trainer.packages):
            return trainer
    return None


def door_of(text: str) -> Any:
    """The module that follows the trainer of a script as it is; None for a script that is spliced, or refused."""
    trainer = trainer_of(text)
    return import_module(f"{__package__}.{trainer.door}") if trainer is not None and trainer.door else None


def refuse_others(text: str, script: Path) -> None:
    """Stop before a script whose trainer is known and has nothing to splice.

    Raises:
        ScriptError: where its recipe is.
    """
    trainer = trainer_of(text)
    if trainer is not None:
        raise ScriptError(
            f"{script} is a script of {trainer.name}, in which nothing is spliced: how to train it with the plugin's "
            f"losses is in docs/recipes/{trainer.recipe}."
        )


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module else []
