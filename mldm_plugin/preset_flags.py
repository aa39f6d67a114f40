"""A preset's settings for a training script, as flags of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

LENGTHS = frozenset({"max_train_steps", "num_train_epochs", "max_train_epochs"})  # of which a script takes one
REPEATED = frozenset({"loss_plugin", "set", "condition_option"})  # of our trainers; given once for each value


def nothing_for(script: str, training: Mapping[str, Any]) -> str:
    """That a preset leaves a script as it is."""
    return f"has settings for {', '.join(f'{name}.py' for name in training)}, none for {script}.py: its own hold."


def fills(section: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """What of a script's settings fills flags that were left unset; where a length was given, no other length does."""
    told = LENGTHS if LENGTHS.intersection(given) else set()
    return {name: value for name, value in section.items() if name not in given and name not in told}


def as_flags(given: Mapping[str, Any]) -> list[str]:
    """Flags of a command line: true is a switch; false, null and lists of nothing are left out, a 0 is not.

    >>> as_flags({"rank": 4, "seed": 0, "random_flip": True, "center_crop": False, "set": ["a=1", "b=2"]})
    ['--rank', '4', '--seed', '0', '--random_flip', '--set', 'a=1', '--set', 'b=2']
    """
    words = []
    for name, value in given.items():
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, list):
            each = [[one] for one in value] if name in REPEATED else [value] if value else []
            words += [word for some in each for word in (f"--{name}", *map(str, some))]
        elif value is not None and value is not False:
            words += [f"--{name}", str(value)]
    return words


def changed_line(preset: str, name: str, default: Any, value: Any) -> str:
    """A line on one flag."""
    return f"preset {preset}: {name} {'unset' if default is None else default} → {value}"
