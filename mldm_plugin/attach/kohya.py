"""Scripts of kohya-ss/sd-scripts: recognised, and our calls put into them and into the modules beside them.

    collate_fn=mldm.collate(collator)                   wherever training data are loaded
    latents * mldm.factor(self.vae_scale_factor)        where latents are scaled, if that is by a number
    return mldm.note((noise_pred, …), locals())         where a trainer class predicts noise and computes its loss
    accelerator.backward(mldm.loss(loss, locals()))     where the loss is complete

The loop often lies in another file than the script (`import train_network`), so modules of the script's own folder are
given the same edits as they are imported. Line numbers stay.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType

from mldm_plugin.attach.edits import (
    NAME,
    WAY_OUT,
    Insertion,
    ScriptError,
    apply,
    around,
    backward_calls,
    check_names,
    import_ours,
    insert,
)
from mldm_plugin.attach.script import read_script

_PREDICTION = "get_noise_pred_and_target"  # of kohya's trainer classes since sd-scripts 0.10
_LIBRARY = "library.train_util"


def is_script(text: str) -> bool:
    """Whether this is the text of one of kohya's scripts: it imports `library.train_util`."""
    try:
        return any(_LIBRARY in _imports(node) for node in ast.walk(ast.parse(text)))
    except SyntaxError:
        return False


def splice(text: str, script: Path) -> dict[Path, str]:
    """The script and those modules beside it that need our calls, by path, with our calls in them.

    Raises:
        ScriptError: no place, or more than one, where the loss is handed to accelerator.backward; a trainer class whose
            step cannot be followed; or one of them is not Python.
    """
    texts = _closure(text, script)
    trees = {path: _parse(t, path) for path, t in texts.items()}
    found = [(path, call) for path, tree in trees.items() for call in backward_calls(tree)]
    if len(found) != 1:
        where = "there is none" if not found else "there are " + ", ".join(f"{p}:{c.lineno}" for p, c in found)
        raise ScriptError(
            f"{script}: expected one call of accelerator.backward(loss) in it and the modules beside it that it "
            f"imports; {where}. {WAY_OUT}"
        )
    check_names(ast.Module([node for tree in trees.values() for node in tree.body], []), str(script))
    edits = {path: _edits(tree, str(path)) for path, tree in trees.items()}
    return {path: apply(texts[path], e, str(path)) for path, e in edits.items() if e}


def install(texts: Mapping[Path, str]) -> None:
    """Have the modules that `texts` are of imported as those texts."""
    sys.meta_path.insert(0, _Finder({path.stem: (path, text) for path, text in texts.items()}))


class _Finder:
    """Finds the spliced modules by their names, ahead of Python's own finders."""

    def __init__(self, modules: Mapping[str, tuple[Path, str]]) -> None:
        self._modules = modules

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._modules:
            return None
        file, text = self._modules[name]
        return importlib.util.spec_from_file_location(name, file, loader=_Loader(name, str(file), text))


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module from a text; its file is what tracebacks name."""

    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self._text = text

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._text, self.path, "exec", dont_inherit=True)


def _closure(text: str, script: Path) -> dict[Path, str]:
    """The script and every module of its folder that it imports, directly or not."""
    folder = script.resolve().parent
    texts, left = {script: text}, [script]
    while left:
        path = left.pop()
        for node in ast.walk(_parse(texts[path], path)):
            for name in _imports(node):
                beside = folder / f"{name}.py"
                if "." not in name and beside not in texts and beside.is_file() and not beside.samefile(script):
                    texts[beside] = read_script(beside)
                    left.append(beside)
    return texts


def _parse(text: str, path: Path) -> ast.Module:
    try:
        return ast.parse(text, str(path))
    except SyntaxError as error:
        raise ScriptError(f"{path} is not Python: {error.msg} (line {error.lineno}).") from error


def _imports(node: ast.AST) -> list[str]:
    """The modules that a statement imports, in full; what a from-import takes may be a module too."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def _edits(tree: ast.Module, path: str) -> list[Insertion]:
    """All edits of one file; none if it has nothing to do with a training step."""
    edits = [e for call in backward_calls(tree) for e in around(call.args[0], "loss")]
    for function in _followed(tree):
        for value in _returned(function, path):
            edits += _note(value)
    if not edits:
        return []
    for factor in _factors(tree):
        edits += around(factor, "factor", variables=False)
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] == "DataLoader":
            for keyword in call.keywords:
                if keyword.arg == "collate_fn":
                    edits += around(keyword.value, "collate", variables=False)
    if any(isinstance(node, ast.Name) and node.id == NAME for node in ast.walk(tree)):
        raise ScriptError(f"{path} has a variable {NAME!r}: it is patched already, run it as it is, or rename that.")
    return [import_ours(tree, path), *edits]


def _followed(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """The methods that predict noise and that compute the loss from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            calls = any(isinstance(n, ast.Call) and _is_prediction(n.func) for n in ast.walk(node))
            if calls or node.name == _PREDICTION:
                yield node


def _is_prediction(function: ast.expr) -> bool:
    """`self.get_noise_pred_and_target`"""
    return isinstance(function, ast.Attribute) and function.attr == _PREDICTION


def _returned(function: ast.FunctionDef, path: str) -> list[ast.expr]:
    """What a method returns, at each of its own return statements; none of one that only raises."""
    found, left = [], list(function.body)
    while left:
        node: ast.AST = left.pop()
        if isinstance(node, ast.Return) and node.value is not None:
            found.append(node.value)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            left += ast.iter_child_nodes(node)  # type: ignore[arg-type]
    if not found and not any(isinstance(n, ast.Raise) for n in ast.walk(function)):
        raise ScriptError(f"{path}: line {function.lineno}, {function.name} returns nothing. {WAY_OUT}")
    return found


def _note(value: ast.expr) -> list[Insertion]:
    """`a, b` → `mldm.note((a, b), locals())`"""
    before = insert(value.lineno, value.col_offset, f"{NAME}.note((")
    return [before, insert(value.end_lineno, value.end_col_offset, "), locals())")]


def _factors(tree: ast.Module) -> Iterator[ast.expr]:
    """The number X, or the attribute that holds it, of every `latents * X`."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.BinOp)
            and isinstance(node.op, ast.Mult)
            and isinstance(node.left, ast.Name)
            and node.left.id == "latents"
            and isinstance(node.right, (ast.Constant, ast.Attribute))
        ):
            yield node.right
