"""The flags of other people's training scripts that presets set, as their parsers have them: tests/script_flags.json.

Written by `python tests/script_flags.py DIFFUSERS SD_SCRIPTS`, the two clones: names, types, defaults and choices, read
from each call of `add_argument` in the script and, for kohya's, in the modules that it imports. Later calls win.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("script_flags.json")
TYPES = {"int": int, "float": float, "str": str}


def flags_in(text: str) -> dict[str, dict[str, Any]]:
    """What each `add_argument("--name", …)` of a text says that can be read off it."""
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument" and node.args:
            name = getattr(node.args[0], "value", "")
            if isinstance(name, str) and name.startswith("--"):
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                found[name[2:]] = {
                    key: given[key].id if key == "type" and isinstance(given[key], ast.Name) else _literal(given[key])
                    for key in ("type", "default", "choices", "action", "nargs", "required")
                    if key in given
                }
    return found


def _literal(node: ast.AST) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def parser_of(flags: dict[str, dict[str, Any]]) -> argparse.ArgumentParser:
    """A parser that has them."""
    parser = argparse.ArgumentParser()
    for name, options in flags.items():
        typed = {"type": TYPES.get(options["type"])} if "type" in options else {}
        parser.add_argument(f"--{name}", **{**options, **typed})
    return parser


def sections() -> dict[str, set[str]]:
    """Script → flags that some built-in preset sets."""
    from mldm_plugin.preset import built_in_presets, load_preset

    wanted: dict[str, set[str]] = {}
    for preset in built_in_presets():
        for script, section in load_preset(preset).training.items():
            wanted.setdefault(script, set()).update(section)
    return wanted


def read(scripts: list[Path]) -> dict[str, dict[str, Any]]:
    """The flags of a script and of the modules after it."""
    found: dict[str, dict[str, Any]] = {}
    for path in reversed(scripts):
        found |= flags_in(path.read_text(encoding="utf-8"))
    return found


def find(script: str, diffusers: Path, kohya: Path) -> list[Path]:
    """Where a script's flags are written."""
    if found := sorted((diffusers / "examples").glob(f"*/{script}.py")):
        return found[:1]
    if (kohya / f"{script}.py").is_file():
        family = script.partition("_train")[0]
        beside = [kohya / "train_network.py", *(kohya / "library").glob(f"{family}_train_util*.py")]
        return [kohya / f"{script}.py", *beside, kohya / "library" / "train_util.py"]
    raise SystemExit(f"{script}.py is in neither clone")


if __name__ == "__main__":
    clones = Path(sys.argv[1]), Path(sys.argv[2])
    table = {}
    for script, names in sorted(sections().items()):
        flags = read(find(script, *clones))
        table[script] = {name: flags[name] for name in sorted(names & flags.keys())}
    lines = [",\n".join(f'  "{name}": {json.dumps(flag)}' for name, flag in of.items()) for of in table.values()]
    parts = [f'"{script}": {{\n{text}\n }}' for script, text in zip(table, lines, strict=True)]
    FILE.write_text("{\n " + ",\n ".join(parts) + "\n}\n", encoding="utf-8")
