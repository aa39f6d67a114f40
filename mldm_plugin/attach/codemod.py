"""The edits that put our calls into a training script: found with `ast`, made in the text, each on its own line.

    import argparse; import mldm_plugin.attach as mldm; mldm.start()        the first import
    collate_fn=mldm.collate(collate_fn),                                    where the training data are loaded
    latents_cache.append(mldm.cache(…, locals()))                           where latents are cached, if they are
    accelerator.backward(mldm.loss(loss, locals()))                         where the loss is complete

Line numbers stay, so tracebacks stay right, and the result can be shown as a diff.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mldm_plugin.attach.names import NAMES
from mldm_plugin.errors import MldmError

NAME = "mldm"
_WAY_OUT = (
    "If the loop lies in a module that the script imports, add --mldm-by-frame; for a loop of your own use the library "
    "form (docs/attach.md)."
)


class ScriptError(MldmError):
    """A script in which a place to attach to is missing, or not the only one of its kind."""


@dataclass(frozen=True)
class Insertion:
    """Text to put in at a place: lines from 1, columns in UTF-8 bytes, as in `ast`."""

    line: int
    column: int
    text: str


def splice(text: str, path: str) -> str:
    """The text of a script with our calls in it.

    Raises:
        ScriptError: no place, or more than one, where the loss is handed to accelerator.backward or where the training
            data are loaded; or the script is not Python.
    """
    try:
        tree = ast.parse(text, path)
    except SyntaxError as error:
        raise ScriptError(f"{path} is not Python: {error.msg} (line {error.lineno}).") from error
    if any(isinstance(node, ast.Name) and node.id == NAME for node in ast.walk(tree)):
        raise ScriptError(f"{path} has a variable {NAME!r}: it is patched already, run it as it is, or rename that.")
    _check_names(tree, path)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    backward = _backward(tree, path)
    edits = [_import(tree, path), *_around(backward.args[0], "loss")]
    caching = [c for c in _calls(tree, "append") if _is_cache(c)]
    for loader in {_loader(_loop(call, parents, path), tree, path) for call in (backward, *caching)}:
        edits += _collate(loader)
    for call in caching:
        edits += _around(call.args[0], "cache")
    return _apply(text, edits)


def diff(text: str, spliced: str, path: str) -> str:
    """The unified diff from a script to its spliced text."""
    before, after = (t.splitlines(keepends=True) for t in (text, spliced))
    return "".join(difflib.unified_diff(before, after, fromfile=path, tofile=path, n=1))


def _backward(tree: ast.Module, path: str) -> ast.Call:
    found = [c for c in _calls(tree, "backward") if "accelerator" in _owner(c) and len(c.args) == 1]
    if len(found) != 1:
        where = "there is none" if not found else "there are " + ", ".join(f"line {c.lineno}" for c in found)
        raise ScriptError(
            f"{path}: expected one call of accelerator.backward(loss), where the loss is complete; {where}. {_WAY_OUT}"
        )
    return found[0]


def _loop(call: ast.Call, parents: dict[ast.AST, ast.AST], path: str) -> ast.For:
    """The innermost loop around a call that runs over a data loader."""
    node = parents.get(call)
    while node is not None:
        if isinstance(node, ast.For) and any("loader" in n for n in _names(node.iter)):
            return node
        node = parents.get(node)
    raise ScriptError(f"{path}: line {call.lineno}, {ast.unparse(call)}, is in no loop over a data loader. {_WAY_OUT}")


def _loader(loop: ast.For, tree: ast.Module, path: str) -> ast.Call:
    """The call of DataLoader whose result `loop` runs over."""
    (name, *_) = (n for n in _names(loop.iter) if "loader" in n)
    made = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and name in [n for target in node.targets for n in _names(target)]
        and ast.unparse(node.value.func).split(".")[-1] == "DataLoader"
    ]
    if len(made) != 1:
        where = "there is none" if not made else "there are " + ", ".join(f"line {c.lineno}" for c in made)
        raise ScriptError(
            f"{path}: expected one {name} = DataLoader(…) for the loop in line {loop.lineno}; {where}. {_WAY_OUT}"
        )
    return made[0]


def _collate(loader: ast.Call) -> list[Insertion]:
    for keyword in loader.keywords:
        if keyword.arg == "collate_fn":
            return _around(keyword.value, "collate", variables=False)
    last = (loader.args or [k.value for k in loader.keywords])[0]
    return [_insert(last.end_lineno, last.end_col_offset, f", collate_fn={NAME}.collate()")]


def _check_names(tree: ast.Module, path: str) -> None:
    """Everything that a step is read from must be a variable somewhere in the script."""
    bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    bound |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    bound |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    missing = [f"{field} ({', '.join(names)})" for field, names in NAMES.items() if not bound.intersection(names)]
    if missing:
        found = "; ".join(missing)
        raise ScriptError(f"{path}: expected variables that hold a diffusion step, found none for {found}. {_WAY_OUT}")


def _import(tree: ast.Module, path: str) -> Insertion:
    ours = f"; import mldm_plugin.attach as {NAME}; {NAME}.start()"
    for node in tree.body:
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if isinstance(node, (ast.Import, ast.ImportFrom)) and not future:
            return _insert(node.end_lineno, node.end_col_offset, ours)
    raise ScriptError(f"{path}: expected an import at the top level, there is none. {_WAY_OUT}")


def _is_cache(call: ast.Call) -> bool:
    """`latents_cache.append(…)`."""
    return ast.unparse(call.func) == "latents_cache.append" and len(call.args) == 1


def _around(node: ast.expr, call: str, *, variables: bool = True) -> list[Insertion]:
    """Wrap an expression in a call of ours, its text untouched."""
    before = _insert(node.lineno, node.col_offset, f"{NAME}.{call}(")
    after = _insert(node.end_lineno, node.end_col_offset, ", locals())" if variables else ")")
    return [before, after]


def _insert(line: int | None, column: int | None, text: str) -> Insertion:
    if line is None or column is None:
        raise ValueError("a node without a place")
    return Insertion(line, column, text)


def _apply(text: str, edits: Sequence[Insertion]) -> str:
    lines = [line.encode() for line in text.split("\n")]
    for edit in sorted(edits, key=lambda e: (e.line, e.column), reverse=True):
        line = lines[edit.line - 1]
        lines[edit.line - 1] = line[: edit.column] + edit.text.encode() + line[edit.column :]
    return b"\n".join(lines).decode()


def _calls(tree: ast.Module, method: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method:
            yield node


def _owner(call: ast.Call) -> str:
    """`self.accelerator.backward(…)` → accelerator."""
    return ast.unparse(call.func).split(".")[-2]


def _names(node: ast.AST) -> list[str]:
    """Names and attributes in an expression: `enumerate(self.train_dataloader)` → enumerate, train_dataloader, self."""
    parts = (n for n in ast.walk(node) if isinstance(n, (ast.Name, ast.Attribute)))
    return [n.id if isinstance(n, ast.Name) else n.attr for n in parts]
