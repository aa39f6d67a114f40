"""Data sets that are taken as they are, or of which it is said how they can be."""

import itertools
import os
import shlex

import pytest
from click.testing import CliRunner
from planned import commands, training_set

from mldm_plugin.cli import main
from mldm_plugin.errors import DataError, MldmError
from mldm_plugin.project.photos import look_at


def test_a_training_set_is_taken_as_it_is(tmp_path):
    photos = training_set(tmp_path / "photos", {"train": "abcd", "validation": "ef"})
    run, whole = commands(tmp_path, count=6)
    assert (run.masks, run.held_out, run.leave_out) == ("given", 2, [])
    assert run.steps == 72, "for six photographs"
    check, _, ours, judged = whole.plan().splitlines()
    assert check.startswith(f"mldm data check {photos}")
    assert f"--train_data_dir {photos / 'train'}" in ours
    assert f"--data {photos} " in judged
    assert run.training["cache_latents"]
    assert f"--latents_cache_dir {tmp_path / 'latents'}" in ours, "not beside somebody's photographs"


@pytest.mark.parametrize(
    ("files", "images", "told"),
    [
        (("annotations/instances_val2017.json", "annotations/captions_val2017.json"), "val2017", 2),
        (("instances.json", "captions.json", "person_keypoints.json"), "images", 3),
        (("instances.json",), "", 1),
    ],
)
def test_of_a_coco_data_set_the_command_is_said_that_makes_a_training_set(tmp_path, files, images, told):
    folder = tmp_path / "my coco"
    for name in (*files, f"{images}/a.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    done = CliRunner().invoke(main, ["start", str(folder), "--who", "anna woman", "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    [line] = done.output.splitlines()
    words = shlex.split(line.split("`")[1])
    flags = dict(itertools.pairwise(words))
    assert words[:3] == ["mldm", "data", "coco"]
    assert flags["--images"] == os.path.normpath(folder / images)
    assert [flags[f] for f in ("--instances", "--captions", "--keypoints") if f in flags] == [
        str(folder / name) for name in files[:told]
    ]
    assert flags["--out"] == f"{folder}-people"


def test_a_broken_training_set_is_said(tmp_path):
    photos = training_set(tmp_path / "photos", {"train": ["../../a"]})
    with pytest.raises(DataError, match="leaves the folder"):
        look_at(photos)
    (photos / "train" / "metadata.jsonl").write_text("\n[]\n")
    with pytest.raises(DataError, match="line 2: expected an object with a file_name"):
        look_at(photos)


def test_data_that_changed_between_two_trainings_are_told(tmp_path):
    """Else the page would compare a training before a review with one after it."""
    photos = training_set(tmp_path / "photos", {"": "abcd"})
    _, whole = commands(tmp_path, count=4)
    whole.scale.check_data()
    (tmp_path / "runs").mkdir()
    whole.scale.check_data()
    training_set(photos, {"": "abc"})
    with pytest.raises(MldmError, match="was changed after training had begun: remove"):
        whole.scale.check_data()
    (tmp_path / "runs").rmdir()
    whole.scale.check_data()
