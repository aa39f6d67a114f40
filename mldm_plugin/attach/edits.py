"""Edits of a script's text: pieces put in at places that `ast` has found, each on its own line."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mldm_plugin.attach.names import NAMES
from mldm_plugin.errors import MldmError

NAME = "mldm"  # of our module in a script
WAY_OUT = (
    "For a loop without accelerate use the library form (docs/attach.md); if a loop with accelerator.backward lies in "
    "a module that the script imports, or looks different from diffusers' scripts, add --mldm-by-frame."
)


class ScriptError(MldmError):
    """A script in which a place to attach to is missing, or not the only one of its kind."""


@dataclass(frozen=True)
class Insertion:
    """Text to put in at a place: lines from 1, columns in UTF-8 bytes, as in `ast`."""

    line: int
    column: int
    text: str


def diff(text: str, spliced: str, path: str) -> str:
    """The unified diff from a script to its spliced text."""
    before, after = (t.splitlines(keepends=True) for t in (text, spliced))
    return "".join(difflib.unified_diff(before, after, fromfile=path, tofile=path, n=1))


def check_names(tree: ast.Module, path: str) -> None:
    """Everything that a step is read from must be a variable somewhere in the script."""
    bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    bound |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    bound |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    missing = [f"{field} ({', '.join(names)})" for field, names in NAMES.items() if not bound.intersection(names)]
    if missing:
        found = "; ".join(missing)
        raise ScriptError(f"{path}: expected variables that hold a diffusion step, found none for {found}. {WAY_OUT}")


def import_ours(tree: ast.Module, path: str) -> Insertion:
    ours = f"; import mldm_plugin.attach as {NAME}; {NAME}.start()"
    for node in tree.body:
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if isinstance(node, (ast.Import, ast.ImportFrom)) and not future:
            return insert(node.end_lineno, node.end_col_offset, ours)
    raise ScriptError(f"{path}: expected an import at the top level, there is none. {WAY_OUT}")


def around(node: ast.expr, call: str, *, variables: bool = True) -> list[Insertion]:
    """Wrap an expression in a call of ours, its text untouched."""
    before = insert(node.lineno, node.col_offset, f"{NAME}.{call}(")
    after = insert(node.end_lineno, node.end_col_offset, ", locals())" if variables else ")")
    return [before, after]


def insert(line: int | None, column: int | None, text: str) -> Insertion:
    if line is None or column is None:
        raise ValueError("a node without a place")
    return Insertion(line, column, text)


def apply(text: str, edits: Sequence[Insertion], path: str) -> str:
    """The text with all insertions made.

    Raises:
        ScriptError: the result would not be Python.
    """
    lines = [line.encode() for line in text.split("\n")]
    for edit in sorted(edits, key=lambda e: (e.line, e.column), reverse=True):
        line = lines[edit.line - 1]
        lines[edit.line - 1] = line[: edit.column] + edit.text.encode() + line[edit.column :]
    edited = b"\n".join(lines).decode()
    try:
        ast.parse(edited, path)
    except SyntaxError as error:
        raise ScriptError(f"{path}: line {error.lineno} cannot be edited ({error.msg}). {WAY_OUT}") from error
    return edited


def backward_calls(tree: ast.AST) -> list[ast.Call]:
    """Every `accelerator.backward(loss)`."""
    return [c for c in calls_of(tree, "backward") if owner_of(c) == "accelerator" and len(c.args) == 1]


def calls_of(tree: ast.AST, method: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method:
            yield node


def owner_of(call: ast.Call) -> str:
    """`self.accelerator.backward(…)` → accelerator."""
    return ast.unparse(call.func).split(".")[-2]


def names_in(node: ast.AST) -> list[str]:
    """Names and attributes in an expression: `enumerate(self.train_dataloader)` → enumerate, train_dataloader, self."""
    parts = (n for n in ast.walk(node) if isinstance(n, (ast.Name, ast.Attribute)))
    return [n.id if isinstance(n, ast.Name) else n.attr for n in parts]
