"""Trainers with a door of their own, known by what their scripts import, and where to read how it is opened."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from mldm_plugin.attach.edits import ScriptError


@dataclass(frozen=True)
class Trainer:
    """A trainer that is not spliced: its name, packages that its scripts import, and its page in docs/recipes/."""

    name: str
    packages: tuple[str, ...]
    recipe: str


ONETRAINER = Trainer("OneTrainer", ("modules.util", "modules.trainer", "modules.ui"), "onetrainer.md")
OTHERS = (ONETRAINER, Trainer("ai-toolkit", ("toolkit",), "ai_toolkit.md"))


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


def is_onetrainer(text: str) -> bool:
    """Whether a script is OneTrainer's, which is followed as it is (see `onetrainer`)."""
    return trainer_of(text) is ONETRAINER


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
