"""diffusers' own scripts, unmodified, through the launcher: `MLDM_DIFFUSERS_EXAMPLES` names their folder.

Every script and variant of `diffusers_scripts` trains for four steps with the start-up checks on; masks and boxes are
compared with the pixels that the script made.
"""

import json
import os
import re

import pytest
import torch
from attached_scripts import PRESET, RECORDER, ZERO, check_annotation, iou
from diffusers_more import HUBER, MASKED, MORE, RANDOM_VAE, REFUSED
from diffusers_scripts import SCRIPTS, masks_folder, needs_examples, run
from safetensors.torch import load_file
from tiny_people import person_pixels

pytestmark = [needs_examples, pytest.mark.timeout(900)]
KNOWN = (
    SCRIPTS
    | MORE
    | RANDOM_VAE
    | MASKED
    | {name: script for scripts in REFUSED.values() for name, script in scripts.items()}
)
ALL = [(name, variant) for name, script in (SCRIPTS | MORE).items() for variant in script.variants]
ONE_BY_ONE = [f"dreambooth/train_dreambooth_lora_{name}" for name in ("flux2", "flux2_klein", "qwen_image", "krea2")]
WITHOUT_COLUMNS = ("concept", "captions", "realfill")
TOLD = [(name, words) for words, scripts in REFUSED.items() for name in scripts]
# One of each family and kind; SD3 and Flux with latents cached and read in another order.
UNCHANGED = [
    ("train_controlnet", "plain"),
    ("train_text_to_image_lora", "flip"),
    ("train_text_to_image_lora_sdxl", "flip"),
    ("train_dreambooth_lora", "prior"),
    ("train_dreambooth_lora_sdxl", "edm"),
    ("train_dreambooth_lora_sd3", "prior_cache_latents"),
    ("train_dreambooth_lora_flux", "cache_latents"),
    ("train_controlnet_sd3", "plain"),
    ("train_controlnet_flux", "plain"),
    ("dreambooth/train_dreambooth_lora_flux2_klein", "plain"),
    ("dreambooth/train_dreambooth_lora_lumina2", "plain"),
    ("dreambooth/train_dreambooth_lora_qwen_image", "plain"),
    ("dreambooth/train_dreambooth_lora_z_image", "plain"),
    ("dreambooth/train_dreambooth_lora_sana", "plain"),
    ("dreambooth/train_dreambooth_lora_krea2", "plain"),
    ("dreambooth/train_dreambooth_lora_flux2", "plain"),
    ("dreambooth/train_dreambooth_lora_hidream", "plain"),
    ("instruct_pix2pix/train_instruct_pix2pix", "plain"),
    ("textual_inversion/textual_inversion", "plain"),
    ("custom_diffusion/train_custom_diffusion", "plain"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    (folder / "preset.yaml").write_text(PRESET.replace("checks: {picture: warn}\n", ""), encoding="utf-8")
    return folder


def attached(folder, name, variant, *flags, suffix=""):
    """Run through the launcher; the process, its weights and its folder."""
    out = folder / f"{name.replace('/', '-')}-{variant}{suffix}"
    script = KNOWN[name]
    own = ["--loss-plugin", "mldm", "--loss-plugin", RECORDER, "--preset", folder / "preset.yaml", *flags]
    if script.data == "dreambooth" or (script.variants[variant].data or script.data) in (
        "concept",
        "captions",
        "realfill",
    ):
        own += ["--mldm-mask-dir", masks_folder(out)]
    os.environ["STEP_FOLDER"] = str(out / "steps")
    done, weights = run(script, variant, out, "mldm_plugin", own)
    return done, weights, out


@pytest.mark.parametrize(("name", "variant"), ALL, ids=[f"{n}-{v}" for n, v in ALL])
def test_trains_with_the_checks_passing(folder, name, variant, record_property):
    done, weights, out = attached(folder, name, variant)
    assert done.returncode == 0, done.stderr[-3000:]
    assert weights
    assert all(torch.isfinite(w).all() for w in weights.values())
    proofs = re.findall(r"^  (?:masked_lpips|face) .*", done.stderr.partition("Was each loss heard?")[0], re.M)
    assert len(proofs) == 2
    assert all("reaches the network" in line for line in proofs)
    assert "decode(clean latents) resembles the picture" in done.stderr
    steps = [load_file(f) for f in sorted((out / "steps").iterdir())]
    for step in steps:
        check_annotation(step)
    shares = [iou(s["person_mask"] > 0, person_pixels(s["pixel_values"])) for s in steps]
    record_property("mask_iou", min(shares))
    (error,) = re.findall(r"gives the clean latents back: relative error ([\d.e-]+)", done.stderr)
    exact = {"bf16": 0.05, "input_perturbation": 0.11}  # rounded to bfloat16; perturbed on purpose
    assert float(error) <= exact.get(variant, 1e-5)
    (difference,) = re.findall(r"masks follow the pictures: .* mean difference ([\d.]+)", done.stderr)
    assert float(difference) < 0.1
    record_property("estimate_error", error)
    record_property("placement", difference)
    records = [json.loads(line) for line in (out / "mldm" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == list(range(1, len(records) + 1))
    assert any(r["masked_lpips"] for r in records)
    assert (out / "mldm" / "panels" / "step-1.png").exists()


@pytest.mark.parametrize(("name", "words"), TOLD, ids=[name for name, _ in TOLD])
def test_other_scripts_are_refused_in_their_first_step(folder, name, words):
    done, weights, out = attached(folder, name, "plain")
    assert done.returncode == 1
    assert not weights
    (line,) = re.findall(r"^mldm: (.*)", done.stderr, re.M)
    assert words in line
    assert "mldm_plugin/attach" not in done.stderr  # no traceback of ours
    assert not (out / "steps").exists()


@pytest.mark.parametrize("name", RANDOM_VAE)
def test_trains_with_a_random_autoencoder(folder, name):
    done, weights, out = attached(folder, name, "plain", "--set", "checks.picture=warn")
    assert done.returncode == 0, done.stderr[-3000:]
    assert weights
    assert len(re.findall(r"^  (?:masked_lpips|face) .*reaches the network", done.stderr, re.M)) == 2
    assert "the latents are not encode(picture)" not in done.stderr
    for step in (load_file(f) for f in sorted((out / "steps").iterdir())):
        check_annotation(step)
    (error,) = re.findall(r"gives the clean latents back: relative error ([\d.e-]+)", done.stderr)
    assert float(error) < 1e-5


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_latents_that_are_kept_one_by_one_are_refused(folder, name):
    done, weights, _ = attached(folder, name, "plain", "--cache_latents", suffix="-cached")
    assert done.returncode == 1
    assert not weights
    assert "mldm: the script keeps latents in a way that cannot be followed" in done.stderr
    assert "leave --cache_latents out" in done.stderr


@pytest.mark.parametrize("name", MASKED)
def test_a_loss_of_a_part_of_each_picture_is_added_to(folder, name):
    mixed, weights, _ = attached(folder, name, "plain")
    assert mixed.returncode == 1
    assert not weights
    assert "combine: convex takes a share of each image's plain loss away" in mixed.stderr
    done, weights, out = attached(folder, name, "plain", "--set", "combine=additive", suffix="-additive")
    assert done.returncode == 0, done.stderr[-3000:]
    assert weights
    assert len(re.findall(r"^  (?:masked_lpips|face) .*reaches the network", done.stderr, re.M)) == 2
    for step in (load_file(f) for f in sorted((out / "steps").iterdir())):
        check_annotation(step)
    (difference,) = re.findall(r"masks follow the pictures: .* mean difference ([\d.]+)", done.stderr)
    assert float(difference) < 0.1


def test_a_huber_loss_is_added_to_and_not_mixed_with(folder):
    name, flags = f"{HUBER}/text_to_image/train_text_to_image_lora", ("--loss_type", "huber")
    mixed, weights, _ = attached(folder, name, "plain", *flags, suffix="-convex")
    assert mixed.returncode == 1
    assert not weights
    assert "because of --loss_type huber; combine: convex takes a share" in mixed.stderr
    assert "--set combine=additive takes any loss" in mixed.stderr
    added, weights, _ = attached(folder, name, "plain", *flags, "--set", "combine=additive", suffix="-additive")
    assert added.returncode == 0, added.stderr[-3000:]
    assert weights
    assert len(re.findall(r"^  (?:masked_lpips|face) .*reaches the network", added.stderr, re.M)) == 2
    assert "combine: additive adds to it as it is" in added.stderr


@pytest.mark.parametrize(("name", "variant"), UNCHANGED, ids=[f"{n}-{v}" for n, v in UNCHANGED])
def test_weights_of_zero_leave_every_tensor_as_it_was(folder, name, variant):
    plain, expected = run(KNOWN[name], variant, folder / f"{name.replace('/', '-')}-{variant}-plain")
    assert plain.returncode == 0, plain.stderr[-3000:]
    done, weights, _ = attached(folder, name, variant, *ZERO, suffix="-zero")
    assert done.returncode == 0, done.stderr[-3000:]
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[k], expected[k]) for k in expected)
