"""From a command line and a preset to the typed flags of a run, for every trainer. Nothing here needs torch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from mldm_plugin.errors import MldmError, PresetError, nearest
from mldm_plugin.training.flags import ControlNetFlags, LoraFlags, TrainerFlags

TRAINERS: tuple[type[TrainerFlags], ...] = (ControlNetFlags, LoraFlags)
NOT_IN_PRESETS = frozenset({"loss_plugin", "preset", "set"})
SPELLINGS = {"loss_plugin": ["--loss-plugin"]}

F = TypeVar("F", bound=TrainerFlags)


def make_parser(kind: type[TrainerFlags]) -> argparse.ArgumentParser:
    """The command line of a trainer. Flags that are not given leave no trace in its namespace."""
    parser = argparse.ArgumentParser(prog=kind.script, description=kind.description)
    for title, names in (("losses and data", kind.ours()), (f"as in diffusers' {kind.script}", kind.theirs())):
        group = parser.add_argument_group(title)
        for name in names:
            field = kind.model_fields[name]
            shown = "" if field.is_required() or field.default in (None, False) else f" (default: {field.default})"
            help_text = (kind.meaning(name) + shown).replace("%", "%%")
            spellings = [f"--{name}", *SPELLINGS.get(name, ())]
            group.add_argument(*spellings, dest=name, default=argparse.SUPPRESS, help=help_text, **_options(field))
    return parser


def _options(field: FieldInfo) -> dict[str, Any]:
    """What argparse is told of a field: its type, and whether it is a switch, a choice, or takes several values."""
    kind: Any = next((a for a in get_args(field.annotation) if a is not NoneType), None)
    if NoneType not in get_args(field.annotation):
        kind = field.annotation
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if kind is bool:
        return {"action": "store_true"}
    if get_origin(kind) is Literal:
        return {"type": str, "choices": get_args(kind)}
    if get_origin(kind) is list:
        many = {"action": "append"} if "repeated" in field.metadata else {"nargs": "+"}
        return {"type": get_args(kind)[0], **many}
    return {"type": kind}


def parse(kind: type[TrainerFlags], argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The flags that the user gave, and no others, with what `--loss-plugin` and `--preset` leave to each other.

    A preset without a plugin is one of the built-in plugin; `--loss-plugin mldm` without a preset means the
    preset `mldm`; any other plugin needs a preset.

    Raises:
        PresetError: a plugin of the user's without a preset, or `--set` without one.
    """
    given = vars(make_parser(kind).parse_args(argv))
    if "preset" in given:
        given.setdefault("loss_plugin", ["mldm"])
    elif "mldm" in given.get("loss_plugin", ()):
        given["preset"] = "mldm"
    elif "loss_plugin" in given:
        raise PresetError(
            f"--loss-plugin {' '.join(given['loss_plugin'])} comes without --preset: name the preset "
            "that gives its losses a weight, or copy one with `mldm presets copy`."
        )
    if "set" in given and "preset" not in given:
        raise PresetError("--set changes a preset, but there is none: add --preset or --loss-plugin mldm.")
    return given


def resolve(kind: type[F], given: Mapping[str, Any], training: Mapping[str, Any] | None = None) -> F:
    """All flags: what the user gave, else what the preset's `training:` section says, else the default.

    Raises:
        PresetError: `training` names a flag that no trainer has, or gives it a value it cannot have.
        MldmError: values that the user gave and that cannot be, or flags that do not belong together. All at once.
    """
    section = training or {}
    used = {name: value for name, value in section.items() if name in _settable(kind)}
    faults = _unknown(section)
    try:
        flags = kind.model_validate({**used, **given})
    except ValidationError as error:
        faults += [text for _, text in _describe(error, given)]
    if faults:
        of_preset = any(fault.startswith("training.") for fault in faults)
        raise (PresetError if of_preset else MldmError)("; ".join(faults))
    return flags


def of_other_trainers(kind: type[TrainerFlags], training: Mapping[str, Any]) -> list[str]:
    """The flags of a preset's `training:` section that this trainer does not have, but another does."""
    return [n for n in training if n not in _settable(kind) and any(n in _settable(other) for other in TRAINERS)]


def training_faults(training: Mapping[str, Any]) -> list[str]:
    """What is wrong with a preset's `training:` section: flags that no trainer has, values that none can take."""
    faults = _unknown(training)
    for name, value in training.items():
        rejections = [_rejection(kind, name, value) for kind in TRAINERS if name in _settable(kind)]
        if rejections and all(rejections):
            faults.append(rejections[0])
    return faults


def _settable(kind: type[TrainerFlags]) -> set[str]:
    return kind.model_fields.keys() - NOT_IN_PRESETS


def _unknown(training: Mapping[str, Any]) -> list[str]:
    known = set().union(*map(_settable, TRAINERS))
    return [f"training.{name}: unknown flag; {nearest(str(name), known)}" for name in training if name not in known]


def _rejection(kind: type[TrainerFlags], name: str, value: Any) -> str:
    """Why a trainer cannot take this value by itself; empty if it can."""
    try:
        kind.model_validate({name: value})
    except ValidationError as error:
        return "; ".join(text for where, text in _describe(error, {}) if where == name)
    return ""


def _describe(error: ValidationError, given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each fault: the flag, empty where several do not belong together, and a line on what was expected."""
    lines: list[tuple[str, str]] = []
    for fault in error.errors():
        name = str(fault["loc"][0]) if fault["loc"] else ""
        where = f"--{name}" if name in given else f"training.{name}"
        if not name:
            lines.append((name, str(fault["ctx"]["error"])))
        elif fault["type"] == "missing":
            lines.append((name, f"--{name} is missing"))
        else:
            lines.append((name, f"{where}: {fault['msg'][0].lower()}{fault['msg'][1:]}, got {fault['input']!r}"))
    return lines
