"""The edits that put our calls into a script in the manner of diffusers' examples.

    import argparse; import mldm_plugin.attach as mldm; mldm.start()        the first import
    collate_fn=mldm.collate(collate_fn),                                    where the training data are loaded
    latents_cache.append(mldm.cache(…, locals()))                           where latents are cached, if they are
    accelerator.backward(mldm.loss(loss, locals()))                         where the loss is complete

Line numbers stay, so tracebacks stay right, and the result can be shown as a diff.
"""

from __future__ import annotations

import ast

from mldm_plugin.attach.edits import (
    NAME,
    WAY_OUT,
    Insertion,
    ScriptError,
    apply,
    around,
    backward_calls,
    calls_of,
    check_names,
    import_ours,
    insert,
    names_in,
)

_COLLATE_FN = 6  # its place among DataLoader's arguments


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
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    backward = _backward(tree, path)
    check_names(tree, path)
    edits = [import_ours(tree, path), *around(backward.args[0], "loss")]
    caching = [c for c in calls_of(tree, "append") if _is_cache(c)]
    for loader in {_loader(_loop(call, parents, path), tree, path) for call in (backward, *caching)}:
        edits += _collate(loader, path)
    for call in caching:
        edits += around(call.args[0], "cache")
    return apply(text, edits, path)


def _backward(tree: ast.Module, path: str) -> ast.Call:
    found = backward_calls(tree)
    if len(found) != 1:
        where = "there is none" if not found else "there are " + ", ".join(f"line {c.lineno}" for c in found)
        raise ScriptError(
            f"{path}: expected one call of accelerator.backward(loss), where the loss is complete; {where}. {WAY_OUT}"
        )
    return found[0]


def _loop(call: ast.Call, parents: dict[ast.AST, ast.AST], path: str) -> ast.For:
    """The innermost loop around a call that runs over a data loader."""
    node = parents.get(call)
    while node is not None:
        if isinstance(node, ast.For) and any("loader" in n for n in names_in(node.iter)):
            return node
        node = parents.get(node)
    raise ScriptError(f"{path}: line {call.lineno}, {ast.unparse(call)}, is in no loop over a data loader. {WAY_OUT}")


def _loader(loop: ast.For, tree: ast.Module, path: str) -> ast.Call:
    """The call of DataLoader whose result `loop` runs over."""
    (name, *_) = (n for n in names_in(loop.iter) if "loader" in n)
    made = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and name in [n for target in node.targets for n in names_in(target)]
        and ast.unparse(node.value.func).split(".")[-1] == "DataLoader"
    ]
    if len(made) != 1:
        where = "there is none" if not made else "there are " + ", ".join(f"line {c.lineno}" for c in made)
        raise ScriptError(
            f"{path}: expected one {name} = DataLoader(…) for the loop in line {loop.lineno}; {where}. {WAY_OUT}"
        )
    return made[0]


def _collate(loader: ast.Call, path: str) -> list[Insertion]:
    for keyword in loader.keywords:
        if keyword.arg is None:
            raise ScriptError(f"{path}: line {loader.lineno}, DataLoader(**…): is there a collate_fn? {WAY_OUT}")
        if keyword.arg == "collate_fn":
            return around(keyword.value, "collate", variables=False)
    if len(loader.args) > _COLLATE_FN:
        return around(loader.args[_COLLATE_FN], "collate", variables=False)
    last = loader.args[-1] if loader.args else loader.keywords[0].value
    return [insert(last.end_lineno, last.end_col_offset, f", collate_fn={NAME}.collate()")]


def _is_cache(call: ast.Call) -> bool:
    """`latents_cache.append(…)`."""
    return ast.unparse(call.func) == "latents_cache.append" and len(call.args) == 1
