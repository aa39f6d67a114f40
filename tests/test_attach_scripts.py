"""Scripts in the manner of diffusers', run unedited through the launcher: weights, masks, gradients.

The scripts are in tests/scripts/. Each runs in a process of its own; what a user would start runs once for real.
"""

import re

import forked
import pytest
import torch
from attached_scripts import COLUMNS, DREAMBOOTH, IMPORTED, LAUNCHER, ZERO, check_annotation
from safetensors.torch import load_file

from mldm_plugin.records.machine import read_machine

COLUMN_VARIANTS = {
    "plain": ["--center_crop"],
    "crop_and_flip": ["--random_flip", "--dataloader_num_workers", "2"],
    "as_arrays": ["--through_numpy", "--dataloader_num_workers", "2"],
    "as_tensors": ["--tensor_crop", "--dataloader_num_workers", "2"],
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
def test_trains_with_masks_in_place(run_attached, attach_ground, script, flags):
    flags = [str(attach_ground / "class") if f == "CLASS" else f for f in flags]
    run = run_attached(script, *flags)
    told = run.process.stderr
    assert run.process.returncode == 0, told
    verdicts = re.findall(r"^  (?:masked_lpips|face) .*", told.partition("Was each loss heard?")[0], re.M)
    assert len(verdicts) == 2
    assert all("reaches the network" in line for line in verdicts)
    assert len(run.steps) == 2
    for step in run.steps:
        check_annotation(step)
    assert [r["step"] for r in run.records] == [1, 2]
    assert all(r["masked_lpips"] > 0 for r in run.records)
    assert (run.folder / "mldm" / "panels" / "step-1.png").exists()
    assert "face" in (run.folder / "mldm" / "preset.yaml").read_text(encoding="utf-8")
    assert len(read_machine(run.folder / "mldm")) == 1
    page = (run.folder / "mldm" / "report.html").read_text(encoding="utf-8")
    assert told.endswith(f"the run's page: {run.folder}/mldm/report.html\n")
    assert all(line.split()[0] in page for line in verdicts)
    assert (run.folder / "mldm" / "proof.txt").read_text(encoding="utf-8") in told


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        (COLUMNS, COLUMN_VARIANTS["crop_and_flip"]),
        (COLUMNS, COLUMN_VARIANTS["as_tensors"]),
        (DREAMBOOTH, DREAMBOOTH_VARIANTS["cached_prior"]),
    ],
    ids=["crop_and_flip", "as_tensors", "cached_prior"],
)
def test_weights_of_zero_leave_the_run_as_it_was(run_attached, attach_ground, script, flags):
    flags = [str(attach_ground / "class") if f == "CLASS" else f for f in flags]
    plain = run_attached(script, *flags, plain=True).weights
    zero = run_attached(script, *flags, *ZERO).weights
    on = run_attached(script, *flags).weights
    assert plain
    assert plain.keys() == zero.keys() == on.keys()
    generators = {"torch", "python"}  # their state at the end
    assert all(torch.equal(plain[k], zero[k]) for k in plain)
    assert all(torch.equal(plain[k], on[k]) for k in generators)
    assert all(not torch.equal(plain[k], on[k]) for k in plain.keys() - generators)


def test_as_a_user_starts_it_with_accumulation(run_attached):
    """By `accelerate launch`. That the other tests fork their runs changes nothing."""
    flags = ("--center_crop", "--gradient_accumulation_steps", "2")
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", *LAUNCHER)
    real, run = run_attached(COLUMNS, *flags, launcher=launcher, real=True), run_attached(COLUMNS, *flags)
    assert real.process.returncode == 0, real.process.stderr
    told, page = run.process.stderr[:-1].rsplit("\n", 1)
    assert page == f"the run's page: {run.folder}/mldm/report.html"
    assert f"{told}\n" in real.process.stderr
    assert real.weights
    assert all(torch.equal(real.weights[k], run.weights[k]) for k in real.weights.keys() | run.weights.keys())
    assert len(real.steps) == 4
    assert [r["step"] for r in real.records] == [1, 2]
    means = [sum(s["loss"].item() for s in real.steps[i : i + 2]) / 2 for i in (0, 2)]
    assert [r["loss"] for r in real.records] == pytest.approx(means, rel=1e-5)


def test_two_processes_agree_although_their_gates_differ(run_attached):
    gates = ["--set", "losses.masked_lpips.max_timestep=500", "--set", "losses.face.max_timestep=500"]
    flags = ["--center_crop", "--max_train_steps", "4", "--mldm-curve-steps", "1", *gates]
    run = run_attached(COLUMNS, *flags, ranks=2)
    assert run.process.returncode == 0, run.process.stderr
    assert run.process.stderr.count("Start-up proof") == 1
    one, other = (load_file(run.folder / f"weights-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(one[k], other[k]) for k in one if k.startswith("unet"))
    assert [r["step"] for r in run.records] == [1, 2, 3, 4]
    assert sorted({r["masked_lpips/gated"] for r in run.records}) != [4]  # of two images in each process
    curves = [[v for name, v in r.items() if name.startswith("masked_lpips/t")] for r in run.records]
    alone = [(seen[0], r["masked_lpips"]) for seen, r in zip(curves, run.records, strict=True) if len(seen) == 1]
    assert alone  # all gated images of both processes in one range: its mean is theirs
    assert all(curve == pytest.approx(mean) for curve, mean in alone)


def test_the_patched_copy_runs_by_itself(run_attached, tmp_path):
    copy = tmp_path / "columns.py"
    copy.write_text(COLUMNS.read_text(encoding="utf-8"), encoding="utf-8")
    assert forked.run("-m", "mldm_plugin.cli", "patch", copy, "--write").returncode == 0
    own = run_attached(tmp_path / "columns_mldm.py", "--center_crop", launcher=())
    assert own.process.returncode == 0, own.process.stderr
    assert "Start-up proof" in own.process.stderr
    launched = run_attached(COLUMNS, "--center_crop").weights
    assert own.weights
    assert all(torch.equal(own.weights[k], launched[k]) for k in own.weights)


def test_a_loop_in_an_imported_module_is_found_by_its_frame(run_attached):
    refused = run_attached(IMPORTED, "--center_crop").process
    assert refused.returncode == 1
    assert "there is none" in refused.stderr
    assert "--mldm-by-frame" in refused.stderr
    run = run_attached(IMPORTED, "--center_crop", "--mldm-by-frame")
    assert run.process.returncode == 0, run.process.stderr
    assert len(run.steps) == 2
    for step in run.steps:
        check_annotation(step)
    spliced = run_attached(COLUMNS, "--center_crop").weights
    assert spliced
    assert all(torch.equal(run.weights[k], spliced[k]) for k in spliced)


def test_a_presets_settings_reach_the_script(run_attached, attach_ground, tmp_path):
    preset = tmp_path / "own.yaml"
    preset.write_text("losses: {}\ntraining: {columns: {max_train_steps: 1, resolution: 32}}\n", encoding="utf-8")
    run = run_attached(COLUMNS, "--resolution", "64", "--preset", str(preset), plugin=False)
    assert run.process.returncode == 0, run.process.stderr
    assert f"preset {preset}: max_train_steps 2 → 1\n" in run.process.stderr
    assert "resolution" not in run.process.stderr
    assert [r["step"] for r in run.records] == [1]


def test_a_script_without_a_step_ends_with_an_error(tmp_path):
    script = tmp_path / "idle.py"
    script.write_text("print('nothing to train')\n", encoding="utf-8")
    done = forked.run("-m", "mldm_plugin", script, "--preset", "baseline", "--mldm-by-frame")
    assert done.returncode == 1
    assert "not one training step came by" in done.stderr


def test_a_loop_without_accelerate_is_stopped_at_its_first_optimizer_step(tmp_path):
    script = tmp_path / "own_loop.py"
    script.write_text(
        "import torch\n"
        "weight = torch.nn.Parameter(torch.ones(2))\n"
        "optimizer = torch.optim.AdamW([weight])\n"
        "for step in range(3):\n"
        "    weight.square().sum().backward()\n"
        "    optimizer.step()\n"
        "    print('step', step)\n"
        "print('saved')\n",
        encoding="utf-8",
    )
    spliced = forked.run("-m", "mldm_plugin", script, "--preset", "baseline")
    assert spliced.returncode == 1
    assert "For a loop without accelerate use the library form (docs/attach.md); if" in spliced.stderr
    watched = forked.run("-m", "mldm_plugin", script, "--preset", "baseline", "--mldm-by-frame")
    assert watched.returncode == 1
    assert "mldm: the script's AdamW takes its first step, and no loss has come through" in watched.stderr
    assert watched.stdout == ""
    assert "Traceback" not in watched.stderr


def test_a_script_that_fails_shows_its_own_traceback(run_attached):
    done = run_attached(COLUMNS, "--fail_in_step").process
    plain = run_attached(COLUMNS, "--fail_in_step", plain=True).process
    assert done.returncode == 1
    trace = plain.stderr[plain.stderr.index("Traceback") :]
    assert trace in done.stderr
    assert "mldm_plugin" not in trace
