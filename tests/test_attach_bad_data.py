"""What a user's data or flags get wrong, in runs through the launcher: what it says, and whether it goes on."""

import json
import re

import pytest
import torch
from attached_scripts import COLUMNS, DREAMBOOTH, ZERO
from tiny_people import write_imagefolder


@pytest.mark.parametrize(
    ("habit", "said"),
    [
        ("--tensor_roll", r"mldm: \S+\.png: roll on a tensor cannot be followed"),
        ("--array_roll", r"mldm: \S+\.png: numpy\.roll cannot be followed"),
        (
            "--through_bytes",
            r"mldm: picture \d of a batch \(beside \S+\.png\): how this picture was cropped is not known",
        ),
    ],
    ids=["roll", "numpy", "bytes"],
)
def test_what_loses_a_picture_is_refused_by_its_file(run_attached, habit, said):
    done, weights, *_ = run_attached(COLUMNS, habit, "--dataloader_num_workers", "2")
    assert done.returncode == 1
    assert not weights
    assert re.match(said, done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr


def edit_people(tmp_path, change):
    """The data set of the other runs with its rows changed; returns the flags that name it."""
    people = tmp_path / "people"
    write_imagefolder(people)
    rows = [json.loads(line) for line in (people / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps(change(i, row)) + "\n" for i, row in enumerate(rows)]
    (people / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return ["--train_data_dir", people]


def test_weights_of_zero_train_on_data_that_no_loss_needs(run_attached, tmp_path):
    """A mask of the wrong size in each row, and pictures lost: the trained weights are those of the script alone."""
    flags = edit_people(tmp_path, lambda i, row: {**row, "mask_file_name": "anna_mask.png"})
    flags += ["--through_bytes"]
    zero = run_attached(COLUMNS, *flags, *ZERO)
    assert zero.process.returncode == 0, zero.process.stderr
    plain = run_attached(COLUMNS, *flags, plain=True).weights
    assert plain
    assert all(torch.equal(plain[k], zero.weights[k]) for k in plain)


def test_a_mask_of_the_wrong_size_is_named(run_attached, tmp_path):
    flags = edit_people(tmp_path, lambda i, row: {**row, "mask_file_name": "anna_mask.png"})
    done, *_ = run_attached(COLUMNS, *flags)
    assert done.returncode == 1
    assert re.search(r"mldm: mask .* is 112x88, its picture .*\.png is \d+x\d+", done.stderr)


def test_pictures_without_a_mask_are_counted_and_named(run_attached, tmp_path):
    flags = edit_people(tmp_path, lambda i, row: {**row, "mask_file_name": None} if i in (0, 5) else row)
    done, *_ = run_attached(COLUMNS, *flags, "--max_train_steps", "5")
    assert done.returncode == 0, done.stderr
    (line,) = re.findall(r"warning: (\d of \d pictures have no mask.*)", done.stderr)
    assert line.startswith("2 of 8")
    assert "anna.png" in line
    assert "hugo.png" in line


def test_no_mask_at_all_stops_the_run(run_attached, tmp_path):
    flags = edit_people(tmp_path, lambda i, row: {**row, "mask_file_name": None})
    done, weights, *_ = run_attached(COLUMNS, *flags, "--max_train_steps", "60")
    assert done.returncode == 1
    assert not weights
    assert "none of the 8 pictures that came by has a mask" in done.stderr


def test_a_data_set_without_the_columns_stops_in_the_first_step(run_attached, tmp_path):
    def bare(i, row):
        return {"file_name": row["file_name"]}

    done, weights, *_ = run_attached(COLUMNS, *edit_people(tmp_path, bare))
    assert done.returncode == 1
    assert not weights
    assert "needs person_mask" in done.stderr
    assert "--mldm-mask-dir" in done.stderr


def test_a_side_folder_without_masks_stops_before_the_script_runs(run_attached, tmp_path):
    (tmp_path / "empty").mkdir()
    done, *_ = run_attached(DREAMBOOTH, "--mldm-mask-dir", tmp_path / "empty")
    assert done.returncode == 0  # the later flag wins: that of the fixture
    done, *_ = run_attached(DREAMBOOTH, plugin=False)
    assert done.returncode == 1
    assert "give --loss-plugin mldm" in done.stderr


def test_no_panels_where_they_would_be_published(run_attached):
    run = run_attached(COLUMNS, "--push_to_hub")
    assert run.process.returncode == 0, run.process.stderr
    assert "no panels are drawn" in run.process.stderr
    assert (run.folder / "mldm" / "metrics.jsonl").exists()
    assert not (run.folder / "mldm" / "panels").exists()
