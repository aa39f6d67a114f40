"""What a command line asks for, looked at before diffusers and the model are loaded, which takes a while."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from mldm_plugin.announce import announce
from mldm_plugin.errors import MldmError
from mldm_plugin.plugins import Plugins, load_plugins
from mldm_plugin.preset import Preset, load_preset
from mldm_plugin.training import command_line
from mldm_plugin.training.flags import TrainerFlags


@dataclass(frozen=True)
class Asked:
    """The flags of a run; preset and plugins are None without losses."""

    flags: TrainerFlags
    preset: Preset | None = None
    plugins: Plugins | None = None


def read(kind: type[TrainerFlags], argv: Sequence[str] | None = None) -> Asked:
    """The flags, with the preset's settings among them, which are told; and the losses' weights, fetched.

    Raises:
        MldmError: whatever the user can mend of them.
    """
    given = command_line.parse(kind, argv)
    if "preset" not in given:
        return Asked(command_line.resolve(kind, given))
    plugins = load_plugins(given["loss_plugin"])
    preset = load_preset(given["preset"], given.get("set", ()), plugins=plugins)
    flags = command_line.resolve(kind, given, preset.training)
    for line in command_line.changes(flags, given, given["preset"], preset.training):
        announce(line)
    from mldm_plugin.weights_first import fetch_needed

    fetch_needed(preset, plugins)
    return Asked(flags, preset, plugins)


def start(kind: type[TrainerFlags], trainer: str) -> int:
    """The command of a trainer: 0 when trained or stopped in good order, 1 with one line on what to mend.

    Args:
        trainer: the module that trains, imported once the command line is known to be sound.
    """
    try:
        asked = read(kind)
    except MldmError as error:
        announce(f"mldm: {error}")
        return 1
    return int(import_module(trainer).main(asked))
