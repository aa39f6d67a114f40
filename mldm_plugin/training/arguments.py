"""From a command line and a preset to the arguments of a run, for every trainer. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mldm_plugin.errors import PresetError
from mldm_plugin.training import controlnet_flags, lora_flags
from mldm_plugin.training.flags import FlagTable

TABLES: tuple[FlagTable, ...] = (controlnet_flags.FLAGS, lora_flags.FLAGS)


def name_the_plugin(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what `--loss-plugin` and `--preset` leave to each other.

    A preset without a plugin is one of the built-in plugin; `--loss-plugin mldm` without a preset means the
    preset `mldm`; any other plugin needs a preset.
    """
    filled = dict(given)
    if "loss_plugin" not in given and "preset" in given:
        filled["loss_plugin"] = ["mldm"]
    if "loss_plugin" in filled and "preset" not in filled:
        if "mldm" not in filled["loss_plugin"]:
            raise PresetError(
                f"--loss-plugin {' '.join(filled['loss_plugin'])} comes without --preset: name the preset "
                "that gives its losses a weight, or copy one with `mldm presets copy`."
            )
        filled["preset"] = "mldm"
    if "pixel_memory_gb" in filled:
        filled["set"] = [*filled.get("set", ()), f"pixel_memory_gb={filled['pixel_memory_gb']}"]
    if "set" in filled and "preset" not in filled:
        raise PresetError(
            "--set and --pixel_memory_gb change a preset, but there is none: add --preset or --loss-plugin mldm."
        )
    return filled


def of_other_trainers(table: FlagTable, training: Mapping[str, Any]) -> list[str]:
    """The flags of a preset's `training:` section that this trainer does not have, but another does."""
    return [name for name in training if name not in table and any(name in other for other in TABLES)]


def convert_training(training: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's `training:` section as flag values, each as the first trainer that can take it reads it.

    Raises:
        PresetError: a flag that no trainer has, or a value that none can take; all at once.
    """
    values: dict[str, Any] = {}
    faults = []
    for name, value in training.items():
        rejections = []
        for table in [t for t in TABLES if name in t] or TABLES[:1]:
            try:
                values |= table.convert({name: value})
                break
            except PresetError as error:
                rejections.append(str(error))
        else:
            faults.append(rejections[0])
    if faults:
        raise PresetError("; ".join(faults))
    return values
