"""From a command line and a preset to the typed flags of a run, for every trainer. Nothing here needs torch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from mldm_plugin.errors import MldmError, PresetError, nearest
from mldm_plugin.parser import Parser
from mldm_plugin.preset import task_preset
from mldm_plugin.preset_flags import changed_line, fills, nothing_for
from mldm_plugin.training.conditional_flags import ConditionalFlags
from mldm_plugin.training.flags import ControlNetFlags, LoraFlags, TrainerFlags

TRAINERS: tuple[type[TrainerFlags], ...] = (ControlNetFlags, LoraFlags, ConditionalFlags)
NOT_IN_PRESETS = frozenset({"loss_plugin", "preset", "set"})
SPELLINGS = {"loss_plugin": ["--loss-plugin"]}

F = TypeVar("F", bound=TrainerFlags)


def make_parser(kind: type[TrainerFlags]) -> argparse.ArgumentParser:
    """The command line of a trainer. Flags that are not given leave no trace in its namespace."""
    parser = Parser(prog=kind.script, description=kind.description)
    as_theirs = f"as in diffusers' {kind.script if kind.stands_in else 'scripts'}"
    for title, names in (("losses and data", kind.ours()), (as_theirs, kind.theirs())):
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

    A preset without a plugin is one of the built-in plugin; `--loss-plugin mldm` without a preset means that of the
    trainer's task; any other plugin needs a preset.

    Raises:
        PresetError: a plugin of the user's without a preset, or `--set` without one.
    """
    given = vars(make_parser(kind).parse_args(argv))
    if "preset" in given:
        given.setdefault("loss_plugin", ["mldm"])
    elif "mldm" in given.get("loss_plugin", ()):
        given["preset"] = task_preset(kind.section())
    elif "loss_plugin" in given:
        raise PresetError(
            f"--loss-plugin {' '.join(given['loss_plugin'])} comes without --preset: name the preset "
            "that gives its losses a weight, or copy one with `mldm presets copy`."
        )
    if "set" in given and "preset" not in given:
        raise PresetError("--set changes a preset, but there is none: add --preset or --loss-plugin mldm.")
    return given


def resolve(kind: type[F], given: Mapping[str, Any], training: Mapping[str, Mapping[str, Any]] | None = None) -> F:
    """All flags: what the user gave, else what this trainer's part of a preset's `training:` says, else the default.

    Raises:
        PresetError: that part names a flag that the trainer does not have, or gives it a value it cannot have.
        MldmError: values that the user gave and that cannot be, or flags that do not belong together. All at once.
    """
    section = (training or {}).get(kind.section(), {})
    used = {name: value for name, value in fills(section, given).items() if name in _settable(kind)}
    faults = _unknown(kind, section)
    try:
        flags = kind.model_validate({**used, **given})
    except ValidationError as error:
        faults += [text for _, text in _describe(error, given, kind)]
    if faults:
        of_preset = any(fault.startswith("training.") for fault in faults)
        raise (PresetError if of_preset else MldmError)("; ".join(faults))
    return flags


def changes(flags: TrainerFlags, given: Mapping[str, Any], preset: str, training: Mapping[str, Any]) -> list[str]:
    """What a preset makes of the trainer's defaults, a line for each flag; or that it has nothing for this trainer.

    Args:
        flags: those of the run.
        given: flags of the command line, which a preset does not change.
        preset: its name, for the lines.
        training: its section.
    """
    script, fields = flags.section(), type(flags).model_fields
    if script not in training:
        return [f"preset {preset} {nothing_for(script, training)}"] if training else []
    changed = {name: getattr(flags, name) for name in fills(training[script], given)}
    return [
        changed_line(preset, name, fields[name].default, value)
        for name, value in changed.items()
        if value != fields[name].default
    ]


def training_faults(training: Any) -> list[str]:
    """What is wrong with the parts of a preset's `training:` that are for our trainers: unknown flags, bad values.

    Parts for other people's scripts are not looked at: their flags are known when they run.
    """
    if not isinstance(training, Mapping):
        return []  # that is told with the faults of the preset itself
    faults = []
    for kind in TRAINERS:
        section = training.get(kind.section())
        if isinstance(section, Mapping):
            faults += _unknown(kind, section)
            rejections = (_rejection(kind, name, value) for name, value in section.items() if name in _settable(kind))
            faults += [rejection for rejection in rejections if rejection]
    return faults


def _settable(kind: type[TrainerFlags]) -> set[str]:
    return kind.model_fields.keys() - NOT_IN_PRESETS


def _unknown(kind: type[TrainerFlags], section: Mapping[str, Any]) -> list[str]:
    known = _settable(kind)
    where = f"training.{kind.section()}"
    return [f"{where}.{name}: unknown flag; {nearest(str(name), known)}" for name in section if name not in known]


def _rejection(kind: type[TrainerFlags], name: str, value: Any) -> str:
    """Why a trainer cannot take this value by itself; empty if it can."""
    try:
        kind.model_validate({name: value})
    except ValidationError as error:
        return "; ".join(text for where, text in _describe(error, {}, kind) if where == name)
    return ""


def _describe(error: ValidationError, given: Mapping[str, Any], kind: type[TrainerFlags]) -> list[tuple[str, str]]:
    """Each fault: the flag, empty where several do not belong together, and a line on what was expected."""
    lines: list[tuple[str, str]] = []
    for fault in error.errors():
        name = str(fault["loc"][0]) if fault["loc"] else ""
        where = f"--{name}" if name in given else f"training.{kind.section()}.{name}"
        if not name:
            lines.append((name, str(fault["ctx"]["error"])))
        elif fault["type"] == "missing":
            lines.append((name, f"--{name} is missing"))
        else:
            lines.append((name, f"{where}: {fault['msg'][0].lower()}{fault['msg'][1:]}, got {fault['input']!r}"))
    return lines
