"""The plugin's flags on a script's command line: taken off it, so that the script's parser never sees them."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mldm_plugin.errors import MldmError, PresetError, nearest
from mldm_plugin.parser import Parser
from mldm_plugin.preset import task_preset

PANEL_STEPS = 500  # chosen: as rare as the checkpoints of diffusers' scripts


@dataclass(frozen=True)
class Settings:
    """What the plugin was asked to do; `script` is the script's name without .py, whose settings a preset may have."""

    loss_plugin: tuple[str, ...]
    preset: str
    script: str = ""
    set: tuple[str, ...] = ()
    mask_dir: str | None = None
    mask_column: str = "mask"
    face_boxes_column: str = "face_boxes"
    keypoints_column: str = "keypoints"
    output_dir: str | None = None
    panel_steps: int = PANEL_STEPS
    curve_steps: int = 0
    by_frame: bool = False


FLAGS: dict[str, dict[str, Any]] = {
    "--loss-plugin": {
        "action": "append",
        "metavar": "NAME",
        "help": "Losses to train with: mldm (the built-in ones), an installed plugin, a dotted module or a .py file. "
        "May be repeated.",
    },
    "--preset": {
        "metavar": "NAME",
        "help": "What to optimise: the name of a preset or a .yaml file. With --loss-plugin mldm alone it is the one "
        "by task that has settings for this script. Settings fill the flags that are left unset, a line for each.",
    },
    "--set": {
        "action": "append",
        "metavar": "KEY=VALUE",
        "help": "Override one value of the preset, for example losses.face.weight=0.3. May be repeated.",
    },
    "--mldm-mask-dir": {
        "dest": "mask_dir",
        "metavar": "DIR",
        "help": "Masks, boxes and keypoints by the pictures' file names, for scripts that do not keep extra columns of "
        "their data set: a folder that `mldm data` made (with its metadata.jsonl), or one with NAME.png, a label mask, "
        'and NAME.json, {"face_boxes": [[x0, y0, x1, y1], …], "keypoints": [[x, y, v, …], …]}, one of them or both, '
        "for each picture NAME.jpg.",
    },
    "--mldm-mask-column": {
        "dest": "mask_column",
        "metavar": "NAME",
        "help": "Column of the label masks (default: mask).",
    },
    "--mldm-face-boxes-column": {
        "dest": "face_boxes_column",
        "metavar": "NAME",
        "help": "Column of the face boxes (default: face_boxes).",
    },
    "--mldm-keypoints-column": {
        "dest": "keypoints_column",
        "metavar": "NAME",
        "help": "Column of COCO's 17 keypoints of each person, x, y, v each (default: keypoints).",
    },
    "--mldm-output-dir": {
        "dest": "output_dir",
        "metavar": "DIR",
        "help": "Folder for preset.yaml, metrics.jsonl and panels/ (default: mldm/ in the script's --output_dir).",
    },
    "--mldm-panel-steps": {
        "dest": "panel_steps",
        "type": int,
        "metavar": "N",
        "help": "Write a panel picture in the first step and every N optimizer steps; 0: none "
        f"(default: {PANEL_STEPS}).",
    },
    "--mldm-curve-steps": {
        "dest": "curve_steps",
        "type": int,
        "metavar": "N",
        "help": "Every N optimizer steps log the mean of the plain loss and of each loss over the images since, by "
        "range of t; 0: not (default: 0).",
    },
    "--mldm-by-frame": {
        "dest": "by_frame",
        "action": "store_true",
        "default": None,
        "help": "For a script whose loop lies in a module that it imports: find the loop while it runs, by "
        "accelerator.backward, instead of in the script's text.",
    },
}
SPELLINGS = {"--loss-plugin": "--loss_plugin"}


def build_parser() -> argparse.ArgumentParser:
    """The flags, for their help and for the documentation."""
    parser = Parser(
        prog="python -m mldm_plugin",
        usage="accelerate launch -m mldm_plugin SCRIPT [the script's flags] --loss-plugin mldm [--preset NAME] …",
        description="Run a training script, unedited, with the losses of a preset.",
        allow_abbrev=False,
        add_help=False,  # --help after the script's name is the script's
    )
    for name, options in FLAGS.items():
        parser.add_argument(name, *([SPELLINGS[name]] if name in SPELLINGS else []), **options)
    return parser


def take(argv: Sequence[str], script: str = "", name: str = "") -> tuple[Settings, list[str]]:
    """The plugin's settings, and the rest of a command line for the script.

    Args:
        argv: all flags, the script's name left out.
        script: the script's text; a flag that is written in it belongs to the script.
        name: the script's, without .py; that of a patched copy may end in _mldm.

    Raises:
        MldmError: a flag that is almost one of ours, or one of ours that is also the script's.
        PresetError: flags that do not say which preset is meant.
    """
    parser = build_parser()
    known, rest = parser.parse_known_args(argv)
    ours = [*FLAGS, *SPELLINGS.values()]
    for option in ours:
        if _has(script, option) and any(a.split("=")[0] == option for a in argv):
            raise MldmError(f"the script has a flag {option} of its own: put the plugin's value into a preset file.")
    for flag in (a.split("=")[0] for a in rest if a.startswith("--")):
        close = difflib.get_close_matches(flag, set(ours) - {"--set", flag}, n=1, cutoff=0.95)
        if flag.startswith("--mldm") or (close and not _has(script, flag)):
            raise MldmError(f"unknown flag {flag}: {nearest(flag, ours)}")
    given = {name: value for name, value in vars(known).items() if value is not None}
    return Settings(**_complete(given, name.removesuffix("_mldm"))), rest


def _has(script: str, flag: str) -> bool:
    """Whether a flag is written in a script."""
    return f'"{flag}"' in script or f"'{flag}'" in script


def _complete(given: dict[str, Any], script: str) -> dict[str, Any]:
    """Fill in what `--loss-plugin` and `--preset` leave to each other, as train_controlnet.py does."""
    plugins = tuple(given.pop("loss_plugin", ()))
    if not plugins and "preset" not in given:
        raise PresetError("nothing to do: give --loss-plugin mldm, --preset NAME, or both.")
    if "preset" not in given and "mldm" not in plugins:
        raise PresetError(
            f"--loss-plugin {' '.join(plugins)} comes without --preset: name the preset that gives its losses a "
            "weight, or copy one with `mldm presets copy`."
        )
    for name in ("panel_steps", "curve_steps"):
        if given.get(name, 0) < 0:
            raise MldmError(f"--mldm-{name.replace('_', '-')} is {given[name]}, expected at least 0.")
    return {
        **given,
        "loss_plugin": plugins or ("mldm",),
        "preset": given["preset"] if "preset" in given else task_preset(script),
        "script": script,
        "set": tuple(given.get("set", ())),
    }
