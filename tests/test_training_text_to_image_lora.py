"""The LoRA trainer as a whole, run in this process on the tiny pipeline; what it shares is tested with ControlNet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from run_trainer import records, same_weights
from safetensors.torch import load_file, save_file

from mldm_plugin.errors import MldmError, RunFolderError
from mldm_plugin.training.flags import LoraFlags
from mldm_plugin.training.text_to_image_lora import LoraTrainer, draw_noise, min_snr_weights

WEIGHTS = LoraTrainer.weights_file


def load(pipeline: Path, **changes) -> LoraTrainer:
    given = {"pretrained_model_name_or_path": str(pipeline), "train_data_dir": "data", **changes}
    return LoraTrainer(LoraFlags(**given), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def plain_run(train_lora, tmp_path_factory):
    """The finished run without a plugin, that others are compared with."""
    run = tmp_path_factory.mktemp("plain") / "run"
    assert train_lora(run, "--checkpointing_steps", 2, "--learning_rate", 0.01) == 0
    return run


@torch.no_grad()
def predict(pipeline: StableDiffusionPipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents, text = (torch.randn(shape, generator=generator) for shape in ((1, 4, 8, 8), (1, 77, 16)))
    return pipeline.unet(latents, 10, text).sample


def test_the_saved_lora_and_its_checkpoint_load_into_a_pipeline_and_change_its_output(plain_run, tiny_pipeline):
    log = records(plain_run)
    assert [sorted(r) for r in log] == [["ldm", "loss", "lr", "step"]] * 2
    assert all(r["loss"] == r["ldm"] > 0 and r["lr"] == 0.01 for r in log)
    assert json.loads((plain_run / "arguments.json").read_text())["rank"] == 4
    outputs = []
    for folder in (None, plain_run, plain_run / "checkpoint-2"):
        pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
        if folder is not None:
            pipeline.load_lora_weights(folder)
        outputs.append(predict(pipeline))
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4
    assert outputs[1].equal(outputs[2])
    assert same_weights(plain_run, plain_run / "checkpoint-2")
    assert not list(plain_run.glob(".*"))


def test_the_frozen_networks_are_neither_trained_nor_saved(tiny_pipeline):
    trainer = load(tiny_pipeline, rank=2)
    names = {name for name, p in trainer.unet.named_parameters() if p.requires_grad}
    assert names
    assert all(".lora_" in name for name in names)
    assert {min(p.shape) for p in trainer.trainable()} == {2}
    assert not any(p.requires_grad for n in (trainer.vae, trainer.text_encoder) for p in n.parameters())
    assert trainer.unet.training


def test_with_the_plugin_the_weights_differ_and_each_term_is_logged(train_lora, plain_run, tmp_path, random_preset):
    run = tmp_path / "run"
    flags = ["--learning_rate", 0.01, "--loss-plugin", "mldm", "--preset", random_preset, "--panel_steps", 2]
    assert train_lora(run, *flags) == 0
    assert not same_weights(run, plain_run)
    log = records(run)
    assert log[0]["ldm"] == records(plain_run)[0]["ldm"]
    assert sum(r["masked_lpips/gated"] for r in log) > 0
    assert "masked_lpips" in (run / "preset.yaml").read_text()
    assert (run / "panels" / "step-000002.png").exists()


def test_weight_zero_is_the_plain_run_to_the_bit(train_lora, plain_run, tmp_path, random_preset):
    flags = ["--preset", random_preset, "--set", "losses.masked_lpips.weight=0", "--panel_steps", 1]
    assert train_lora(tmp_path / "run", "--learning_rate", 0.01, *flags) == 0
    assert same_weights(tmp_path / "run", plain_run)
    assert (tmp_path / "run" / "panels" / "step-000001.png").exists()


def test_a_detached_term_changes_nothing_whatever_else_is_on(train_lora, tmp_path, random_preset):
    """Crops, flips and noise are drawn as without the plugin, and the mix knows the weighting by SNR."""
    text = random_preset.read_text().replace("weights: random", "weights: random, detach: true")
    preset = tmp_path / "detached.yaml"
    preset.write_text("combine: additive\n" + text)
    flags = ["--random_flip", "--snr_gamma", 5, "--noise_offset", 0.1, "--prediction_type", "v_prediction"]
    flags += ["--mixed_precision", "bf16", "--gradient_accumulation_steps", 2, "--train_batch_size", 1]
    assert train_lora(tmp_path / "plain", *flags) == 0
    assert train_lora(tmp_path / "run", *flags, "--preset", preset, "--panel_steps", 1) == 0
    assert same_weights(tmp_path / "plain", tmp_path / "run")
    ldm, loss = ([r[name] for r in records(tmp_path / "run")] for name in ("ldm", "loss"))
    assert ldm == [r["loss"] for r in records(tmp_path / "plain")]
    assert loss != ldm


def test_flags_that_must_not_change_the_numbers(train_lora, plain_run, tmp_path):
    flags = ["--gradient_checkpointing", "--max_grad_norm", 1e-9, "--cache_dir", tmp_path / "cache"]
    assert train_lora(tmp_path / "run", "--learning_rate", 0.01, *flags) == 0
    assert same_weights(tmp_path / "run", plain_run)


def test_gradients_are_clipped_when_asked_for(train_lora, plain_run, tmp_path):
    """So far that AdamW's epsilon is larger than what is left, and the weights hardly move."""
    assert train_lora(tmp_path / "run", "--learning_rate", 0.01, "--clip_gradients", "--max_grad_norm", 1e-12) == 0

    def moved(folder: Path) -> float:
        up = [w.abs().max().item() for name, w in load_file(folder / WEIGHTS).items() if ".lora.up." in name]
        return max(up)

    assert moved(tmp_path / "run") < 1e-3 * moved(plain_run)


def test_validation_at_the_end_of_passes_changes_nothing(train_lora, tmp_path):
    flags = ["--max_train_steps", 4, "--train_batch_size", 4]
    assert train_lora(tmp_path / "plain", *flags) == 0
    sampling = ["--validation_prompt", "a person", "--num_validation_images", 1, "--validation_epochs", 2]
    assert train_lora(tmp_path / "run", *flags, *sampling, "--report_to", "tensorboard") == 0
    assert same_weights(tmp_path / "plain", tmp_path / "run")
    pictures = sorted(p.name for p in (tmp_path / "run" / "validation").iterdir())
    # After pass 0 of two steps, not after pass 1, and at the end.
    assert pictures == ["step-000002-prompt-0-0.png", "step-000004-prompt-0-0.png"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers, with NumPy 2
@pytest.mark.parametrize(("sampler", "kind", "steps"), [("dpm++", "DPMSolverMultistep", 20), ("ddim", "DDIM", 30)])
def test_validation_pictures_by_another_sampler(train_lora, tmp_path, monkeypatch, sampler, kind, steps):
    """Which is told what the network predicts, and changes nothing of the training."""
    seen, called = [], StableDiffusionPipeline.__call__

    def drawn(pipeline, *args, **options):
        scheduler = pipeline.scheduler
        seen.append((type(scheduler).__name__, scheduler.config.prediction_type, options["num_inference_steps"]))
        return called(pipeline, *args, **options)

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", drawn)
    flags = ["--prediction_type", "v_prediction"]
    sampling = ["--validation_prompt", "a person", "--num_validation_images", 1, "--validation_scheduler", sampler]
    assert train_lora(tmp_path / "run", *flags, *sampling) == 0
    assert set(seen) == {(f"{kind}Scheduler", "v_prediction", steps)}
    assert train_lora(tmp_path / "plain", *flags) == 0
    assert same_weights(tmp_path / "run", tmp_path / "plain")


def test_a_presets_settings_for_this_trainer_are_told_and_those_for_another_left_out(train_lora, tmp_path, capfd):
    preset = tmp_path / "own.yaml"
    sections = "{train_controlnet: {conditioning: none}, train_text_to_image_lora: {learning_rate: 0.5}}"
    preset.write_text(f"losses: {{}}\ntraining: {sections}\n")
    assert train_lora(tmp_path / "run", "--preset", preset, "--max_train_steps", 1) == 0
    assert f"preset {preset}: learning_rate 0.0001 → 0.5" in capfd.readouterr().err.splitlines()
    arguments = json.loads((tmp_path / "run" / "arguments.json").read_text())
    assert arguments["learning_rate"] == 0.5
    assert "conditioning" not in arguments


BAD_INPUT = {
    "no such data": (["--train_data_dir", "{tmp}/nowhere"], "cannot be opened"),
    "no mask column": (["--preset", "{preset}", "--mask_column", "masks"], "needs person_mask"),
    "unknown flag in a preset": (
        ["--preset", "p2", "--set", "training.train_text_to_image_lora.rnak=2"],
        "did you mean 'rank'",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_nothing_is_written(train_lora, tmp_path, random_preset, capfd, case):
    flags, words = BAD_INPUT[case]
    assert train_lora(tmp_path / "run", *(str(f).format(tmp=tmp_path, preset=random_preset) for f in flags)) == 1
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert words in err[err.index("mldm: ") :]
    assert not (tmp_path / "run").exists()


def test_weights_of_somebody_else_are_not_overwritten(train_lora, tmp_path, capfd):
    (tmp_path / WEIGHTS).write_bytes(b"theirs")
    assert train_lora(tmp_path) == 1
    assert f"holds another run ({WEIGHTS}); choose another --output_dir." in capfd.readouterr().err


def test_a_lora_goes_back_into_its_network_and_into_no_other(tiny_pipeline, tmp_path):
    first, second, other = load(tiny_pipeline), load(tiny_pipeline), load(tiny_pipeline, rank=2)
    first.save(tmp_path)
    assert not all(a.equal(b) for a, b in zip(first.trainable(), second.trainable(), strict=True))
    second.load(tmp_path)
    assert all(a.equal(b) for a, b in zip(first.trainable(), second.trainable(), strict=True))
    stored = load_file(tmp_path / WEIGHTS)
    with pytest.raises(RunFolderError, match="other layers or another rank"):
        other.load(tmp_path)
    stored.popitem()
    save_file(stored, tmp_path / WEIGHTS)
    with pytest.raises(RunFolderError, match="other layers or another rank"):
        second.load(tmp_path)


def test_xformers_must_be_there(tiny_pipeline, monkeypatch):
    monkeypatch.setattr("mldm_plugin.training.trainer.is_xformers_available", lambda: False)
    with pytest.raises(MldmError, match="pip install xformers"):
        load(tiny_pipeline, enable_xformers_memory_efficient_attention=True)


@pytest.mark.parametrize(("prediction_type", "expected"), [("epsilon", [0.5, 1.0]), ("v_prediction", [5 / 11, 0.5])])
def test_min_snr_weights_by_hand(tiny_pipeline, prediction_type, expected):
    """At SNR 10 and 1 with γ = 5: min(SNR, 5) / SNR for ε, / (SNR + 1) for v."""
    scheduler = load(tiny_pipeline, prediction_type=prediction_type).noise_scheduler
    scheduler.alphas_cumprod = torch.tensor([10 / 11, 1 / 2])
    assert torch.allclose(min_snr_weights(scheduler, torch.tensor([0, 1]), 5.0), torch.tensor(expected))
    assert min_snr_weights(scheduler, torch.tensor([0, 1]), None) is None


def test_offset_noise_is_one_number_a_channel():
    latents = torch.zeros(2, 4, 8, 8)
    torch.manual_seed(0)
    plain = draw_noise(latents, 0)
    torch.manual_seed(0)
    shift = draw_noise(latents, 0.5) - plain
    assert torch.allclose(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-6)
    assert shift[:, :, 0, 0].unique().numel() == 8
