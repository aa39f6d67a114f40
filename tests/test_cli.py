"""The command as a whole: it answers at once, and tells our errors in a line."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from mldm_plugin import __version__
from mldm_plugin.cli import main
from mldm_plugin.errors import MldmError


def commands(command=main, path=()):
    """Every command with its path, groups included."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


ALL = dict(commands())


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_help(path):
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0
    assert ALL[path].help
    for parameter in ALL[path].params:
        assert isinstance(parameter, click.Argument) or parameter.help, parameter.name


def test_no_help_imports_anything_heavy():
    program = f"""
import sys
from click.testing import CliRunner
from mldm_plugin.cli import main
for path in {list(ALL)!r}:
    assert CliRunner().invoke(main, [*path, "--help"]).exit_code == 0
assert CliRunner().invoke(main, ["--version"]).exit_code == 0
heavy = {{"torch", "torchvision", "diffusers", "numpy", "pydantic", "yaml", "pluggy"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


def test_listing_and_showing_presets_needs_no_torch():
    program = """
import sys
from click.testing import CliRunner
from mldm_plugin.cli import main
assert CliRunner().invoke(main, ["presets", "list"]).exit_code == 0
assert CliRunner().invoke(main, ["presets", "show", "mldm"]).exit_code == 0
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


def test_version():
    assert CliRunner().invoke(main, ["--version"]).output == f"mldm, version {__version__}\n"


def test_it_is_run_as_a_module_too():
    done = subprocess.run(
        [sys.executable, "-m", "mldm_plugin.cli", "presets", "show", "mldmm"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("mldm: unknown preset 'mldmm': did you mean 'mldm'")
    assert done.stderr.count("\n") == 1


def test_our_errors_are_a_line_and_status_1(monkeypatch):
    def refuse(*_):
        raise MldmError("expected a, came b: do c.")

    monkeypatch.setattr("mldm_plugin.cli.presets.summary", refuse)
    result = CliRunner().invoke(main, ["presets", "list"])
    assert result.exit_code == 1
    assert result.stderr == "mldm: expected a, came b: do c.\n"


def test_other_errors_stay_tracebacks(monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("mldm_plugin.cli.presets.summary", fail)
    assert isinstance(CliRunner().invoke(main, ["presets", "list"]).exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("typed", "told", "command"),
    [
        ("presets show mldm --bogus", "--bogus", "mldm presets show"),
        ("--bogus", "--bogus", "mldm"),
        ("trian run.yaml", "No such command 'trian'", "mldm"),
        ("start", "Missing argument 'PHOTOS'", "mldm start"),
        ("start nowhere", "'nowhere' does not exist", "mldm start"),
        ("data coco --instances x.json", "--images DIR is missing: the folder with the pictures.", "mldm data coco"),
        ("plan --vram 8 --train x", "is not one of 'controlnet', 'lora'", "mldm plan"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_told_in_a_line_too(typed, told, command):
    result = CliRunner().invoke(main, typed.split())
    assert (result.exit_code, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("mldm: ")
    assert told in line
    assert line.endswith(f" (see {command} --help)")


def test_a_group_alone_shows_its_help():
    assert "Usage: mldm data" in CliRunner().invoke(main, ["data"]).output
