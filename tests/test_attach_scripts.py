"""Scripts in the manner of diffusers', run unedited through the launcher: weights, masks, gradients, bad input.

The scripts are in tests/scripts/. Each runs in a process of its own, as it would for a user.
"""

import json
import re
import subprocess
import sys

import pytest
import torch
from attached_scripts import COLUMNS, DREAMBOOTH, IMPORTED, ZERO, check_annotation
from safetensors.torch import load_file
from tiny_people import (
    write_imagefolder,
)

COLUMN_VARIANTS = {
    "plain": ["--center_crop"],
    "crop_and_flip": ["--random_flip", "--dataloader_num_workers", "2"],
    "v_snr_gamma": ["--random_flip", "--prediction_type", "v_prediction", "--snr_gamma", "5"],
}
DREAMBOOTH_VARIANTS = {
    "flow": [],
    "prior": ["--with_prior_preservation", "--class_data_dir", "CLASS", "--weighting_scheme", "sigma_sqrt"],
    "cached": ["--cache_latents", "--precondition_outputs"],
    "cached_prior": ["--cache_latents", "--with_prior_preservation", "--class_data_dir", "CLASS"],
}
ALL = [(COLUMNS, flags) for flags in COLUMN_VARIANTS.values()]
ALL += [(DREAMBOOTH, flags) for flags in DREAMBOOTH_VARIANTS.values()]


@pytest.mark.parametrize(("script", "flags"), ALL, ids=[*COLUMN_VARIANTS, *DREAMBOOTH_VARIANTS])
def test_trains_with_masks_in_place(run_attached, attach_ground, tmp_path, script, flags):
    flags = [str(attach_ground / "class") if f == "CLASS" else f for f in flags]
    done, _, steps = run_attached(script, *flags)
    assert done.returncode == 0, done.stderr
    assert all("reaches the network" in line for line in re.findall(r"^  (?:masked_lpips|face) .*", done.stderr, re.M))
    assert len(steps) == 2
    for step in steps:
        check_annotation(step)
    records = [json.loads(line) for line in (tmp_path / "out" / "mldm" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [1, 2]
    assert all(r["masked_lpips"] > 0 for r in records)
    assert (tmp_path / "out" / "mldm" / "panels" / "step-1.png").exists()
    assert "face" in (tmp_path / "out" / "mldm" / "preset.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("script", "flags"),
    [(COLUMNS, COLUMN_VARIANTS["crop_and_flip"]), (DREAMBOOTH, DREAMBOOTH_VARIANTS["cached_prior"])],
    ids=["crop_and_flip", "cached_prior"],
)
def test_weights_of_zero_leave_the_run_as_it_was(run_attached, attach_ground, script, flags):
    flags = [str(attach_ground / "class") if f == "CLASS" else f for f in flags]
    _, plain, _ = run_attached(script, *flags, plain=True, name="plain")
    _, zero, _ = run_attached(script, *flags, *ZERO, name="zero")
    _, on, _ = run_attached(script, *flags, name="on")
    assert plain
    assert plain.keys() == zero.keys() == on.keys()
    generators = {"torch", "python"}  # their state at the end
    assert all(torch.equal(plain[k], zero[k]) for k in plain)
    assert all(torch.equal(plain[k], on[k]) for k in generators)
    assert all(not torch.equal(plain[k], on[k]) for k in plain.keys() - generators)


def test_by_accelerate_launch_with_accumulation(run_attached, tmp_path):
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "mldm_plugin")
    done, _, steps = run_attached(COLUMNS, "--center_crop", "--gradient_accumulation_steps", "2", launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert len(steps) == 4
    records = [json.loads(line) for line in (tmp_path / "out" / "mldm" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [1, 2]
    means = [sum(s["loss"].item() for s in steps[i : i + 2]) / 2 for i in (0, 2)]
    assert [r["loss"] for r in records] == pytest.approx(means, rel=1e-5)


def test_two_processes_agree_although_their_gates_differ(run_attached, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d")
    launcher += ("--rdzv-endpoint", "localhost:0", "-m", "mldm_plugin")
    gates = ["--set", "losses.masked_lpips.max_timestep=500", "--set", "losses.face.max_timestep=500"]
    done, _, _ = run_attached(COLUMNS, "--center_crop", "--max_train_steps", "4", *gates, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Start-up proof") == 1
    one, other = (load_file(tmp_path / "out" / f"weights-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(one[k], other[k]) for k in one if k.startswith("unet"))
    records = [json.loads(line) for line in (tmp_path / "out" / "mldm" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    assert sorted({r["masked_lpips/gated"] for r in records}) != [4]  # of two images in each process


def test_the_patched_copy_runs_by_itself(run_attached, attach_ground, tmp_path):
    copy = tmp_path / "columns.py"
    copy.write_text(COLUMNS.read_text(encoding="utf-8"), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "mldm_plugin.cli", "patch", copy, "--write"], check=True, capture_output=True)
    own, weights, _ = run_attached(tmp_path / "columns_mldm.py", "--center_crop", launcher=(), name="own")
    assert own.returncode == 0, own.stderr
    assert "Start-up proof" in own.stderr
    _, launched, _ = run_attached(COLUMNS, "--center_crop", name="launched")
    assert all(torch.equal(weights[k], launched[k]) for k in weights)


def test_a_loop_in_an_imported_module_is_found_by_its_frame(run_attached):
    refused, _, _ = run_attached(IMPORTED, "--center_crop", name="refused")
    assert refused.returncode == 1
    assert "there is none" in refused.stderr
    assert "--mldm-by-frame" in refused.stderr
    done, weights, steps = run_attached(IMPORTED, "--center_crop", "--mldm-by-frame", name="by_frame")
    assert done.returncode == 0, done.stderr
    for step in steps:
        check_annotation(step)
    _, spliced, _ = run_attached(COLUMNS, "--center_crop", name="spliced")
    assert all(torch.equal(weights[k], spliced[k]) for k in spliced)


def test_a_script_without_a_step_ends_with_an_error(tmp_path):
    script = tmp_path / "idle.py"
    script.write_text("print('nothing to train')\n", encoding="utf-8")
    command = [sys.executable, "-m", "mldm_plugin", str(script), "--loss-plugin", "mldm", "--mldm-by-frame"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "not one training step came by" in done.stderr


def test_a_script_that_fails_shows_its_own_traceback(run_attached):
    done, _, _ = run_attached(COLUMNS, "--fail_in_step")
    plain, _, _ = run_attached(COLUMNS, "--fail_in_step", plain=True)
    assert done.returncode == 1
    trace = plain.stderr[plain.stderr.index("Traceback") :]
    assert trace in done.stderr
    assert "mldm_plugin" not in trace


def test_cropping_tensors_is_refused(run_attached):
    done, weights, _ = run_attached(COLUMNS, "--tensor_crop", "--dataloader_num_workers", "2")
    assert done.returncode == 1
    assert not weights
    assert "error: " in done.stderr.splitlines()[-1]
    assert "how this picture was cropped is not known" in done.stderr
    assert "Traceback" not in done.stderr


def edit_people(attach_ground, tmp_path, change):
    """The data set of `attach_ground` with its rows changed; returns the flags that name it."""
    people = tmp_path / "people"
    write_imagefolder(people)
    rows = [json.loads(line) for line in (people / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps(change(i, row)) + "\n" for i, row in enumerate(rows)]
    (people / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return ["--train_data_dir", people]


def test_a_mask_of_the_wrong_size_is_named(run_attached, attach_ground, tmp_path):
    flags = edit_people(attach_ground, tmp_path, lambda i, row: {**row, "mask_file_name": "anna_mask.png"})
    done, _, _ = run_attached(COLUMNS, *flags)
    assert done.returncode == 1
    assert re.search(r"error: mask .* is 112x88, its picture .*\.png is \d+x\d+", done.stderr)


def test_pictures_without_a_mask_are_counted_and_named(run_attached, attach_ground, tmp_path):
    flags = edit_people(attach_ground, tmp_path, lambda i, row: {**row, "mask_file_name": None} if i in (0, 5) else row)
    done, _, _ = run_attached(COLUMNS, *flags, "--max_train_steps", "5")
    assert done.returncode == 0, done.stderr
    (line,) = re.findall(r"warning: (\d of \d pictures have no mask.*)", done.stderr)
    assert line.startswith("2 of 8")
    assert "anna.png" in line
    assert "hugo.png" in line


def test_no_mask_at_all_stops_the_run(run_attached, attach_ground, tmp_path):
    flags = edit_people(attach_ground, tmp_path, lambda i, row: {**row, "mask_file_name": None})
    done, weights, _ = run_attached(COLUMNS, *flags, "--max_train_steps", "70")
    assert done.returncode == 1
    assert not weights
    assert "none of the 8 pictures that came by has a mask" in done.stderr


def test_a_data_set_without_the_columns_stops_in_the_first_step(run_attached, attach_ground, tmp_path):
    def bare(i, row):
        return {"file_name": row["file_name"]}

    done, weights, _ = run_attached(COLUMNS, *edit_people(attach_ground, tmp_path, bare))
    assert done.returncode == 1
    assert not weights
    assert "needs person_mask" in done.stderr
    assert "--mldm-mask-dir" in done.stderr


def test_a_side_folder_without_masks_stops_before_the_script_runs(run_attached, tmp_path):
    (tmp_path / "empty").mkdir()
    done, _, _ = run_attached(DREAMBOOTH, "--mldm-mask-dir", tmp_path / "empty")
    assert done.returncode == 0  # the later flag wins: that of the fixture
    done, _, _ = run_attached(DREAMBOOTH, plugin=False, name="again")
    assert done.returncode == 1
    assert "give --loss-plugin mldm" in done.stderr


def test_no_panels_where_they_would_be_published(run_attached, tmp_path):
    done, _, _ = run_attached(COLUMNS, "--push_to_hub")
    assert done.returncode == 0, done.stderr
    assert "no panels are drawn" in done.stderr
    assert not (tmp_path / "out" / "mldm" / "panels").exists()
