"""mldm new-loss: what it writes works as written, and it spoils nothing."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from mldm_plugin import load_plugins
from mldm_plugin.cli import main
from mldm_plugin.cli.new_loss import class_name

# The test that new-loss writes, run here on the template itself, so that its lines count.
from mldm_plugin.cli.template_loss_test import *  # noqa: F403


def run(*arguments):
    return CliRunner().invoke(main, ["new-loss", *map(str, arguments)])


def test_the_written_test_passes_as_written(tmp_path):
    result = run("soft_edges", "--out", tmp_path / "mine")
    assert result.exit_code == 0, result.stderr
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["soft_edges.py", "test_soft_edges.py"]
    for path in (tmp_path / "mine").iterdir():
        assert "template" not in path.read_text(encoding="utf-8").lower()
        assert "SoftEdges" in path.read_text(encoding="utf-8") or path.name.startswith("test_")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "test_soft_edges.py"],
        cwd=tmp_path / "mine",
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout


def test_what_it_says_to_do_can_be_done(tmp_path):
    output = run("soft_edges", "--out", tmp_path).output
    assert f"--loss-plugin mldm --loss-plugin {tmp_path / 'soft_edges.py'} --set losses.soft_edges.weight=0.1" in output
    checked = CliRunner().invoke(
        main,
        ["presets", "validate", "mldm", "--loss-plugin", str(tmp_path / "soft_edges.py")]
        + ["--set", "losses.soft_edges.weight=0.1", "--set", "losses.soft_edges.power=2"],
    )
    assert checked.exit_code == 0, checked.stderr
    assert "soft_edges 0.1 at t <= 100" in checked.output


def test_it_writes_into_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("soft_edges")
    assert (tmp_path / "soft_edges.py").is_file()


@pytest.mark.parametrize("there", ["soft_edges.py", "test_soft_edges.py"])
def test_it_overwrites_neither_file(tmp_path, there):
    (tmp_path / there).write_text("mine")
    result = run("soft_edges", "--out", tmp_path)
    assert result.exit_code == 1
    assert f"{there} exists already" in result.stderr
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(there, "mine")]


def test_half_of_it_is_taken_back(tmp_path, monkeypatch):
    from mldm_plugin.cli import new_file

    write_new = new_file.write_new

    def fail_at_the_test(path, text):
        if path.name.startswith("test_"):
            raise new_file.MldmError(f"{path} cannot be written.")
        write_new(path, text)

    monkeypatch.setattr(new_file, "write_new", fail_at_the_test)
    assert run("soft_edges", "--out", tmp_path).exit_code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["2x", "Soft", "soft-edges", "class", "", "a/b", "../up", "sôft"])
def test_names_that_are_no_identifiers(tmp_path, name):
    result = run("--out", tmp_path, "--", name)
    assert result.exit_code == 1
    assert "cannot be the name of a loss" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "says"), [("face", "built-in"), ("ldm", "the logs"), ("torch", "a module"), ("json", "a module")]
)
def test_names_that_are_taken(tmp_path, name, says):
    result = run(name, "--out", tmp_path)
    assert result.exit_code == 1
    assert says in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_template_is_a_plugin_by_its_dotted_name():
    plugins = load_plugins(["mldm_plugin.cli.template_loss"])
    step = SimpleNamespace(
        pred_images=torch.ones(1, 3, 2, 2), target_images=torch.zeros(1, 3, 2, 2), person_mask=torch.ones(1, 1, 2, 2)
    )
    assert plugins.losses["template_loss"]()(step).tolist() == [1.0]


def test_class_names():
    assert class_name("soft_edges_2") == "SoftEdges2"
