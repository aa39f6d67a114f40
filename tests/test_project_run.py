"""Two commands, from a folder of photographs to a page; then pictures of the result. The trainer is the real one."""

import json

import pytest
from click.testing import CliRunner
from weights_entries import needs_weights

from mldm_plugin.cli import main
from mldm_plugin.project.photos import WEIGHTS
from mldm_plugin.project.run_file import NAME

unseen = pytest.importorskip("mldm_plugin.people_mini.unseen")


@pytest.fixture
def photos(tmp_path):
    """Three photographs of somebody whom people-mini has never seen, one of them twice."""
    pytest.importorskip("openpeople")
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in unseen.photos_of("P009", unseen.LEARNT[:3]):
        photo.picture.save(folder / f"{photo.name}.png")
    photo.picture.save(folder / "again.jpg")
    return folder


def mldm(*words):
    done = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@needs_weights(*WEIGHTS, "mediapipe_selfie", "alexnet", "dlib_resnet", "vgg16")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' scheduler
def test_photographs_become_a_page_and_pictures(photos, trainer_here, commands_here, quick_evaluation, tmp_path, capfd):
    out = tmp_path / "anna"
    told = mldm("start", photos, "--who", "imara", "--out", out)
    assert told.startswith(f"reading 4 photographs in {photos} …")
    assert "again.jpg" in told
    assert f"mldm train {out / NAME}" in told
    text = (out / NAME).read_text(encoding="utf-8")
    few = text
    smaller = {"steps: 60": "steps: 2", "pictures: 2": "pictures: 1", "  train_batch_size: 4": "  train_batch_size: 1"}
    for old, new in {**smaller, "masks: auto": "masks: selfie"}.items():
        assert few.count(f"\n{old}") == 1
        few = few.replace(f"\n{old}", f"\n{new}")
    (out / NAME).write_text(few, encoding="utf-8")
    (out / "prompts.txt").write_text("photo of imara, calm, bust, in a studio\n")

    capfd.readouterr()
    told = mldm("train", out, "--jobs", 1)
    assert f"more pictures: mldm sample {out}" in told
    said = capfd.readouterr()
    assert said.out.count("Look at") == 1
    assert "mldm against plain. " in said.out
    steps = [line.partition(":")[0] for line in told.splitlines() if line.startswith("step ")]
    assert steps == ["step 1 of 3", "step 2 of 3", "step 3 of 3"]
    rows = [json.loads(line) for line in (out / "people" / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 3, "the copy is left out"
    assert all(row["text"] == "photo of imara, bust" and len(row["face_boxes"]) == 1 for row in rows)
    assert all(0.4 < row["person_area"] < 0.9 for row in rows)
    assert (out / "people-check" / "index.html").is_file()
    assert ["losses={}" in words for words in trainer_here] == [True, False]
    plain, ours = ((out / "runs" / f"{name}-s0" / "metrics.jsonl").read_text() for name in ("plain", "mldm"))
    assert "face" not in plain
    assert json.loads(ours.splitlines()[0])["face/gated"] == 1, "all that the first batch has"
    results = json.loads((out / "report" / "metrics.json").read_text())
    assert [model["name"] for model in results["models"]] == ["plain", "mldm"]
    assert {metric["name"] for metric in results["metrics"]} >= {"identity", "face_found"}
    assert (out / "report" / "report.html").stat().st_size > 50_000

    del trainer_here[:]
    assert f"done: {out / 'report' / 'report.html'}" in mldm("train", out)
    assert not trainer_here, "what is trained is not trained again"
    (out / NAME).write_text(few.replace("\nsteps: 2", "\nsteps: 3"))
    refused = CliRunner().invoke(main, ["train", str(out)])
    assert "steps 2, now 3" in refused.output

    (out / NAME).write_text(few)
    told = mldm("sample", out, "--steps", 1)
    assert {path.name for path in (out / "samples").iterdir() if path.is_dir()} == {"without", "plain", "with"}
    assert (out / "samples" / "README.md").is_file()


def test_nothing_is_written_over_without_being_asked(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / NAME).write_text("mine")
    done = CliRunner().invoke(main, ["start", str(photos), "--who", "imara", "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "is there already" in done.output
    assert (tmp_path / "out" / NAME).read_text() == "mine"


def test_who_it_is_must_be_said_and_mean_nothing_else(photos):
    done = CliRunner().invoke(main, ["start", str(photos)])
    assert "who is it? Give --who" in done.output
    done = CliRunner().invoke(main, ["start", str(photos), "--who", "red"])
    assert "--who red" in done.output
    assert done.exit_code == 1
