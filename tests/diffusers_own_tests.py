"""diffusers' own tests of its examples, each script that they start going through our launcher.

The tests are those of the checkout that MLDM_DIFFUSERS_EXAMPLES names, unmodified. In the place of their `run_command`,
which gives a command to `accelerate launch`, one runs it through `python -m mldm_plugin` with the losses `mldm` and all
weights zero, or as it is. `python tests/diffusers_own_tests.py [WORDS…]` runs all cases whose names hold one of the
words and that docs/attach_own_tests.yaml does not know yet, without us and through us, and records what came.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import forked
import pytest
import yaml
from attached_scripts import LAUNCHER, PRESET, ZERO
from diffusers_hub import stand
from diffusers_scripts import EXAMPLES

from mldm_plugin.attach.edits import WAY_OUT

RECORD = Path(__file__).parent.parent / "docs" / "attach_own_tests.yaml"
LIMIT = 400  # seconds for one script


def cases(examples: Path = EXAMPLES) -> list[str]:
    """All cases, named as pytest does, `folder/test_file.py::Class::test`."""
    return [
        f"{file.relative_to(examples).as_posix()}::{kind.name}::{test.name}"
        for file in sorted(examples.glob("*/test_*.py"))
        for kind in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(kind, ast.ClassDef)
        for test in kind.body
        if isinstance(test, ast.FunctionDef) and test.name.startswith("test_") and not _is_property(test)
    ]


def _is_property(test: ast.FunctionDef) -> bool:
    """vqgan's tests keep configurations in properties whose names begin as those of tests do."""
    return any(isinstance(d, ast.Name) and d.id == "property" for d in test.decorator_list)


class ScriptError(Exception):
    """A script that a case started has not ended well."""


class Case:
    """A pytest plugin that gives one case our way to run commands, and keeps its outcome."""

    def __init__(self, preset: Path | None) -> None:
        self.outcome = "not found"
        self._preset = preset
        self._told = ""

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        vars(item.module)["run_command"] = self.run  # type: ignore[attr-defined]

    def run(self, command: list[str], return_stdout: bool = False) -> str:
        """`accelerate launch --config_file FILE script.py …`, through us if there is a preset; what it printed."""
        assert command[:3] == ["accelerate", "launch", "--config_file"]
        words = command[4:]
        if self._preset:
            words = [*LAUNCHER, *words, "--loss-plugin", "mldm", "--preset", str(self._preset), *ZERO]
        done = forked.run(*words, timeout=LIMIT, env={"TOKENIZERS_PARALLELISM": "false"})
        if done.returncode:
            self._told = _last_words(done.stderr)
        elif self._preset and not (_output(words) / "mldm" / "metrics.jsonl").is_file():
            self._told = "the losses have not seen a step"
        if self._told:
            raise ScriptError(self._told)
        return done.stdout

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            assert isinstance(report.longrepr, tuple)
            self.outcome = f"skips itself: {report.longrepr[2].removeprefix('Skipped: ')}"
        elif report.failed:
            words = self._told or report.longrepr.reprcrash.message.splitlines()[0]  # type: ignore[union-attr]
            kind = "" if words.startswith("refused: ") else f"fails {'through' if self._preset else 'without'} us: "
            self.outcome = kind + words
        elif report.when == "call":
            self.outcome = "passes"


def outcome(case: str, folder: Path, *, attached: bool) -> str:
    """What a case gives; `folder` keeps models and data for the next."""
    file = EXAMPLES / case.partition("::")[0]
    stand(folder, EXAMPLES.parent.resolve(), file.read_text(encoding="utf-8"))
    preset = folder / "zero.yaml"
    preset.write_text(PRESET, encoding="utf-8")
    plugin = Case(preset.resolve() if attached else None)
    with _as_it_was(folder):
        options = ["-p", "no:cacheprovider", "-p", "no:timeout", "--noconftest", "-c", os.devnull, "-q"]
        pytest.main([*options, f"--rootdir={EXAMPLES}", str(EXAMPLES / case)], plugins=[plugin])
    return plugin.outcome


def both(case: str, folder: Path) -> str:
    """What a case gives without us, if it does not pass; else what it gives through us."""
    plain = outcome(case, folder, attached=False)
    return outcome(case, folder, attached=True) if plain == "passes" else plain


def recorded() -> dict[str, str]:
    """What was seen, by case."""
    return yaml.safe_load(RECORD.read_text(encoding="utf-8")) or {}


def _output(words: list[str]) -> Path:
    """The --output_dir of a command, in either spelling."""
    (found,) = re.findall(r"--output_dir[= ](\S+)", " ".join(words))
    return Path(found)


def _last_words(told: str) -> str:
    """The error with which a script ended; `refused: …` where our launcher says what it expected."""
    lines = [line for line in told.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("mldm: ")]
    if ours and "Traceback" not in told:
        reason = ours[-1].removeprefix("mldm: ").replace(WAY_OUT, "").strip(" .")
        reason = re.sub(r" \([^()]*\)", "", re.sub(r"^\S*\.py:", "", reason))
        return f"refused: {reason.strip().partition(': ')[0]}"
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)]
    return (errors or lines or ["nothing was told"])[-1]


@contextmanager
def _as_it_was(folder: Path) -> Iterator[None]:
    """In `folder`, with the checkout's modules to import; path, modules, current folder and loggers are put back."""
    logger, here, path, modules = logging.getLogger(), Path.cwd(), list(sys.path), set(sys.modules)
    level, handlers = logger.level, list(logger.handlers)
    os.chdir(folder)
    sys.path[:0] = [str(EXAMPLES), str(EXAMPLES.parent)]
    try:
        yield
    finally:
        os.chdir(here)
        sys.path[:] = path
        for name in [n for n in sys.modules.keys() - modules if n.startswith("test_")]:
            del sys.modules[name]
        logger.level, logger.handlers = level, handlers


def main(words: list[str]) -> None:
    """Record the cases that are not known yet."""
    with tempfile.TemporaryDirectory() as folder:
        for case in cases():
            if case in recorded() or not any(word in case for word in words or [""]):
                continue
            with redirect_stdout(sys.stderr):
                seen = both(case, Path(folder))
            with RECORD.open("a", encoding="utf-8") as file:
                file.write(f"{case}: {json.dumps(seen, ensure_ascii=False)}\n")
            sys.stdout.write(f"{case}: {seen}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
