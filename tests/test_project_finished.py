"""A run that is done: what is said of it, and of a folder that is another's."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from evaluation_results import make_results
from PIL import Image
from planned import decided, training_set

from mldm_plugin.cli import main
from mldm_plugin.errors import MldmError
from mldm_plugin.evaluation.models import LORA
from mldm_plugin.project.finished import keep_names, mark_finished
from mldm_plugin.project.run_file import NAME, read_run, write_run
from mldm_plugin.project.samples import open_finished
from mldm_plugin.project.scale import OwnPhotos
from mldm_plugin.reproduce.run import Reproduction, claim


def test_photographs_are_no_run(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.jpg")
    with pytest.raises(MldmError, match="is no finished run"):
        open_finished(folder, None)
    assert [path.name for path in folder.iterdir()] == ["a.jpg"], "nothing is written among photographs"


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """The folder of a run that is done, as far as its files say; anything that would be started fails."""
    for name in "abc":
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "photos" / f"{name}.jpg")
    out = tmp_path / "anna"
    run = decided(tmp_path, count=3).run
    out.mkdir()
    write_run(out / NAME, run, "x", {})
    (out / "prompts.txt").write_text("photo of anna\n")
    scale = OwnPhotos(out, run)
    claim(scale, "photos")
    keep_names(scale)
    training_set(out / "people", {"": "abc"})
    for name in ("plain", "mldm"):
        (out / "runs" / f"{name}-s0").mkdir(parents=True)
        (out / "runs" / f"{name}-s0" / LORA).touch()
    (out / "report").mkdir()
    (out / "report" / "report.html").touch()
    results = make_results(tmp_path / "report", models=("plain", "mldm"))
    (out / "report" / "metrics.json").write_text(json.dumps(results))
    mark_finished(scale)

    def never(*_):
        raise MldmError("something is started")

    monkeypatch.setattr(Reproduction, "_run", never)
    return out


def train(out):
    return CliRunner().invoke(main, ["train", str(out)])


def test_a_run_that_is_done_says_so_and_does_nothing(finished):
    told = train(finished)
    assert told.exit_code == 0, told.output
    assert f"done: {finished}/report/report.html" in told.output
    assert "mldm against plain. " in told.output
    assert "note:" not in told.output
    program = (
        "import sys\nfrom click.testing import CliRunner\nfrom mldm_plugin.cli import main\n"
        f"told = CliRunner().invoke(main, ['train', {str(finished)!r}])\n"
        "assert 'done: ' in told.output and not {'torch', 'scipy'} & set(sys.modules), told.output"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("what", ["prompts.txt", "report/report.html", "people/metadata.jsonl", NAME])
def test_a_run_of_which_something_else_is_asked_is_not_done(finished, what):
    file = finished / what
    if what == NAME:
        file.write_text(file.read_text().replace("\npictures: 2", "\npictures: 3"))
    elif what.endswith(".html"):
        file.unlink()
    else:
        file.write_text("{}\n")
    assert "something is started" in train(finished).output


def test_photographs_that_came_and_went_since_are_told_with_what_to_do(finished):
    photos = finished.parent / "photos"
    (photos / "a.jpg").unlink()
    Image.new("RGB", (64, 64)).save(photos / "d.jpg")
    told = train(finished).output
    assert "(added: d.jpg; gone: a.jpg)" in told
    assert f'mldm start {photos} --who "anna woman" --out ANEW' in told
    assert "done: " in told


def test_other_settings_in_a_run_that_has_begun_are_told_with_what_to_do(finished):
    file = finished / NAME
    file.write_text(file.read_text().replace("\nsteps: 60", "\nsteps: 90"))
    told = train(finished)
    assert told.exit_code == 1
    assert "was begun with steps 60, now 90: change it back to go on" in told.output
    commands = told.output.partition("of its own: ")[2].strip()
    assert commands.endswith(f"&& mldm train {finished}-2")
    made = subprocess.run(commands.rpartition(" && ")[0], shell=True)
    assert made.returncode == 0
    assert read_run(Path(f"{finished}-2")).steps == 90


@pytest.mark.parametrize(
    ("name", "message"),
    [("prompts.txt", r"did you mean: mldm train \S*/anna/run\.yaml"), ("other.yaml", r"call it run\.yaml")],
)
def test_another_file_than_run_yaml_is_told_in_one_line(finished, name, message):
    (finished / name).write_text("a photo\n")
    told = train(finished / name)
    assert told.exit_code == 1
    [line] = told.output.splitlines()
    assert re.search(message, line)
