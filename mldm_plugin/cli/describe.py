"""A loss or weighting as its constructor and docstring tell it: its options, their types, defaults and meaning."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin


@dataclass(frozen=True)
class Option:
    """One option of a loss, as text."""

    name: str
    type: str
    default: str
    meaning: str


def summary(factory: Callable[..., Any]) -> str:
    """The first paragraph of a docstring, or nothing."""
    return " ".join((inspect.getdoc(factory) or "").partition("\n\n")[0].split())


def describe_options(factory: Callable[..., Any]) -> list[Option]:
    """The options of a loss or weighting, in the order of its constructor."""
    from mldm_plugin.plugins import options_model

    meanings = described_arguments(inspect.getdoc(factory) or "")
    return [
        Option(
            name,
            type_text(field.annotation),
            "required" if field.is_required() else value_text(field.default),
            meanings.get(name, ""),
        )
        for name, field in options_model(factory).model_fields.items()
    ]


def described_arguments(docstring: str) -> dict[str, str]:
    """The `Args:` section of a docstring: name → text."""
    match = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", docstring, re.MULTILINE)
    meanings: dict[str, str] = {}
    names: list[str] = []
    lines = match.group(1).splitlines() if match else []
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    for line in lines:
        start = re.match(r"([\w, ]+): (.*)", line[indent:])
        if start and not line[indent:].startswith(" "):
            names, text = start.group(1).split(", "), start.group(2)
        else:
            text = line.strip()
        for name in names:
            meanings[name] = f"{meanings.get(name, '')} {text}".strip()
    return meanings


def type_text(annotation: Any) -> str:
    """A type as somebody who writes YAML thinks of it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        return " | ".join(map(value_text, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(map(type_text, arguments))
    if origin is tuple and Ellipsis not in arguments:
        kinds = {type_text(a) for a in arguments}
        return f"list of {len(arguments)} {kinds.pop()}s" if len(kinds) == 1 else "list"
    if origin in (list, tuple):
        return f"list of {type_text(arguments[0])}s"
    if annotation is type(None):
        return "null"
    return {bool: "true | false", str: "text"}.get(annotation, getattr(annotation, "__name__", str(annotation)))


def value_text(value: Any) -> str:
    """A value as YAML has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(value_text, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
