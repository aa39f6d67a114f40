"""A preset's settings for a training script, as flags of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

LENGTHS = frozenset({"max_train_steps", "num_train_epochs", "max_train_epochs"})  # of which a script takes one


def nothing_for(script: str, training: Mapping[str, Any]) -> str:
    """That a preset leaves a script as it is."""
    return f"has settings for {', '.join(f'{name}.py' for name in training)}, none for {script}.py: its own hold."


def fills(section: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """What of a script's settings fills flags that were left unset; where a length was given, no other length does."""
    told = LENGTHS if LENGTHS.intersection(given) else set()
    return {name: value for name, value in section.items() if name not in given and name not in told}


def as_flags(given: Mapping[str, Any]) -> list[str]:
    """Flags of a command line: true is a switch, false and null are left out.

    >>> as_flags({"rank": 4, "random_flip": True, "center_crop": False})
    ['--rank', '4', '--random_flip']
    """
    words = []
    for name, value in given.items():
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        elif value is not None and value is not False:
            words += [f"--{name}", str(value)]
    return words


def changed_line(preset: str, name: str, default: Any, value: Any) -> str:
    """A line on one flag."""
    return f"preset {preset}: {name} {'unset' if default is None else default} → {value}"
