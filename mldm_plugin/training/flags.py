"""What a trainer's command line is made of. Nothing here needs torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mldm_plugin.errors import PresetError, nearest

DEFAULT_PANEL_STEPS = 500  # chosen: as rare as diffusers' checkpoints
NOT_IN_PRESETS = frozenset({"loss_plugin", "preset", "set", "pixel_memory_gb"})


@dataclass(frozen=True)
class Flag:
    """One flag.

    `kind` is what a value is made of; `bool` makes a switch. `many` takes several values, `repeated` may be
    given several times.
    """

    name: str
    kind: type
    default: Any
    help: str
    choices: tuple[str, ...] | None = None
    many: bool = False
    repeated: bool = False
    spellings: tuple[str, ...] = ()

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        """Declare the flag. It leaves nothing in the namespace unless the user gives it."""
        options: dict[str, Any] = {"dest": self.name, "default": argparse.SUPPRESS, "help": self._help_text()}
        if self.kind is bool:
            options["action"] = "store_true"
        else:
            options |= {"type": self.kind, "choices": self.choices}
            if self.many:
                options["nargs"] = "+"
            if self.repeated:
                options["action"] = "append"
        parser.add_argument(f"--{self.name}", *self.spellings, **options)

    def convert(self, value: Any) -> Any:
        """A value from a preset, as the command line would have made it; raises ValueError or TypeError."""
        if value is None and self.default is None:
            return None
        if self.many or self.repeated:
            return [self._convert_one(v) for v in (value if isinstance(value, list) else [value])]
        return self._convert_one(value)

    def _convert_one(self, value: Any) -> Any:
        if self.kind is bool:
            if not isinstance(value, bool):
                raise TypeError("expected true or false")
            return value
        if isinstance(value, (bool, list, dict)) or value is None:
            raise TypeError(f"expected {self.kind.__name__}")
        converted = self.kind(value)
        if self.kind is int and isinstance(value, float) and converted != value:
            raise ValueError("expected int")
        if self.choices is not None and converted not in self.choices:
            raise ValueError("expected one of " + ", ".join(self.choices))
        return converted

    def _help_text(self) -> str:
        shown = "" if self.default in (None, False) else f" (default: {self.default})"
        return (self.help + shown).replace("%", "%%")


@dataclass(frozen=True)
class FlagTable:
    """The command line of one trainer.

    Args:
        script: its file name, which is also that of the script of diffusers that it stands in for.
        description: for `--help`.
        theirs: diffusers' flags, with their meaning and defaults.
        ours: those that we add.
        check: raises MldmError for flags that cannot work together.
        constants: what this script always does where the shared code has a flag of another one.
    """

    script: str
    description: str
    theirs: tuple[Flag, ...]
    ours: tuple[Flag, ...]
    check: Callable[[argparse.Namespace], None]
    constants: Mapping[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Flag]:
        yield from (*self.theirs, *self.ours)

    def __contains__(self, name: object) -> bool:
        return any(flag.name == name for flag in self)

    def parser(self) -> argparse.ArgumentParser:
        """Flags that are not given leave no trace in this parser's namespace."""
        parser = argparse.ArgumentParser(prog=self.script, description=self.description)
        ours = parser.add_argument_group("losses and data")
        theirs = parser.add_argument_group(f"as in diffusers' {self.script}")
        for flag in self.ours:
            flag.add_to(ours)
        for flag in self.theirs:
            flag.add_to(theirs)
        return parser

    def parse(self, argv: Sequence[str] | None = None) -> dict[str, Any]:
        """The flags that the user gave, and no others."""
        return vars(self.parser().parse_args(argv))

    def resolve(self, given: Mapping[str, Any], training: Mapping[str, Any] | None = None) -> argparse.Namespace:
        """All flags: what the user gave, else what the preset's `training:` section says, else the default.

        Raises:
            PresetError: `training` names an unknown flag, or gives it a value it cannot have; all at once.
            MldmError: flags that do not belong together.
        """
        values = {flag.name: flag.default for flag in self} | self.convert(training or {}) | dict(given)
        arguments = argparse.Namespace(**values, **self.constants)
        if arguments.panel_steps is None and arguments.loss_plugin:
            arguments.panel_steps = DEFAULT_PANEL_STEPS
        self.check(arguments)
        return arguments

    def convert(self, training: Mapping[str, Any]) -> dict[str, Any]:
        """A preset's `training:` section as flag values; raises PresetError with all its faults."""
        known = {flag.name: flag for flag in self if flag.name not in NOT_IN_PRESETS}
        values, faults = {}, []
        for name, value in training.items():
            if name not in known:
                faults.append(f"training.{name}: unknown flag; {nearest(str(name), known)}")
                continue
            try:
                values[name] = known[name].convert(value)
            except (TypeError, ValueError) as error:
                faults.append(f"training.{name}: {error}, got {value!r}")
        if faults:
            raise PresetError("; ".join(faults))
        return values
