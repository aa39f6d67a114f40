"""A preset's settings for somebody else's script: they become the defaults of the flags that its parser has."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mldm_plugin.announce import announce
from mldm_plugin.errors import PresetError
from mldm_plugin.preset_flags import changed_line, fills, nothing_for


def fill_when_parsed(preset: str, script: str, training: Mapping[str, Mapping[str, Any]]) -> None:
    """Watch argparse until a parser comes that has flags of this script's section, and fill in those left unset.

    Args:
        preset: its name, for what is told.
        script: the script's name without .py.
        training: the preset's section; a script that it does not name is left as it is, which is told.
    """
    if script not in training:
        if training:
            announce(f"preset {preset} {nothing_for(script, training)}")
        return
    section = training[script]
    original = argparse.ArgumentParser.parse_known_args

    @functools.wraps(original)
    def parse_known_args(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        if any(action.dest in section for action in self._actions):
            argparse.ArgumentParser.parse_known_args = original  # type: ignore[method-assign]
            fill(self, section, sys.argv[1:] if args is None else list(args), preset, script)
        return original(self, args, namespace)

    argparse.ArgumentParser.parse_known_args = parse_known_args  # type: ignore[method-assign]


def fill(
    parser: argparse.ArgumentParser, section: Mapping[str, Any], argv: Sequence[str], preset: str, script: str
) -> None:
    """Make the values of a section the defaults of a parser, and tell each that differs and is not given in `argv`.

    Raises:
        PresetError: a value that its flag cannot have.
    """
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    given = given_in(argv, parser)
    for name, value in fills(section, given).items():
        if name not in actions:
            continue
        action, default = actions[name], parser.get_default(name)
        new = _converted(action, value, f"training.{script}.{name}")
        parser.set_defaults(**{name: new})
        action.required = False
        if new != default:
            announce(changed_line(preset, name, default, new))
    if absent := [name for name in section if name not in actions]:
        announce(f"preset {preset}: {script}.py has no flag for {', '.join(absent)}; not used.")
    if "--config_file" in given:  # kohya's
        announce("what --config_file sets holds over the preset's settings.")


def given_in(argv: Sequence[str], parser: argparse.ArgumentParser) -> set[str]:
    """The flags, by their dest, that a command line gives, shortened (`--learning 1e-4`) as argparse takes them too."""
    options = {option: action.dest for action in parser._actions for option in action.option_strings}
    given = set()
    for word in (word.partition("=")[0] for word in argv if word.startswith("-")):
        if word in options:
            given.add(options[word])
        elif word.startswith("--") and len(word) > 2 and parser.allow_abbrev:
            meant = {dest for option, dest in options.items() if option.startswith(word)}
            given |= meant if len(meant) == 1 else set()  # argparse refuses one that could be several
    return given


def _converted(action: argparse.Action, value: Any, where: str) -> Any:
    """The value as the parser would have made it of words on a command line."""
    if value is None:
        return None
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise PresetError(f"{where}: expected true or false for a switch, got {value!r}.")
        return value
    values = value if isinstance(value, list) else [value]
    several = action.nargs not in (None, "?")
    if len(values) > 1 and not several:
        raise PresetError(f"{where}: expected one value, got {value!r}.")
    convert: Any = action.type or str
    try:
        made = [convert(str(one)) for one in values]
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise PresetError(f"{where}: {value!r} cannot be {action.option_strings[0]}: {error}.") from error
    if action.choices is not None and (bad := [one for one in made if one not in action.choices]):
        raise PresetError(f"{where}: got {bad[0]!r}, expected one of {', '.join(map(str, action.choices))}.")
    return made if several else made[0]
