"""Whether a finished run was trained with what the preset of its command says today."""

from __future__ import annotations

import argparse
from pathlib import Path

from mldm_plugin.errors import PresetError
from mldm_plugin.preset import load_preset
from mldm_plugin.reproduce.commands import Training


def changed_since(training: Training) -> list[str]:
    """What its preset, with the command's changes, says now and did not when the run was trained; a line each.

    Settings that are younger than the run count as unchanged where they stand at their default.
    """
    from mldm_plugin.plugins import load_plugins  # with torch, which no run that is still to be trained waits for
    from mldm_plugin.training.run_folder import PRESET, preset_changes

    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--preset")
    for repeated in ("--loss-plugin", "--set"):
        flags.add_argument(repeated, action="append", default=[])
    given = flags.parse_known_args(training.words)[0]
    plugins = load_plugins(given.loss_plugin)
    now = load_preset(given.preset, given.set, plugins=plugins).dump()
    try:
        before = load_preset(training.records / PRESET, plugins=plugins).dump()
    except PresetError as error:
        return [str(error)]
    script = Path(training.trainer).stem if training.is_attached else f"train_{training.trainer}"
    flags_given = {word.removeprefix("--") for word in training.words if word.startswith("--")}
    return preset_changes(before, now, script, flags_given)
