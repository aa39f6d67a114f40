"""The trainer as a whole, run in this process on the tiny pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import ControlNetModel
from PIL import Image
from run_trainer import CONTROLNET, WEIGHTS, forget_accelerate, records, same_weights

from mldm_plugin import LossStack
from mldm_plugin.training import generators
from mldm_plugin.training.controlnet import ControlNetTrainer
from mldm_plugin.training.flags import ControlNetFlags
from mldm_plugin.training.validation import sample

# diffusers' UniPC scheduler under NumPy 2.
old_numpy = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


LOSS = """
import torch
from mldm_plugin import hookimpl
class Own:
    needs = frozenset()
    calls = 0
    def __call__(self, step):
        Own.calls += 1
        value = step.model_pred.square().flatten(1).mean(dim=1)
        return {body}
@hookimpl
def register_losses(register):
    register("own", Own)
"""


def make_loss(folder: Path, body: str) -> list:
    plugin, preset = folder / "own.py", folder / "own.yaml"
    plugin.write_text(LOSS.format(body=body))
    preset.write_text("losses:\n  own: {weight: 0.1, max_timestep: null}\n")
    return ["--loss-plugin", plugin, "--preset", preset]


@pytest.fixture(scope="module")
def plain_run(train, tmp_path_factory):
    """The finished run without a plugin, that others are compared with."""
    run = tmp_path_factory.mktemp("plain") / "run"
    assert train(run) == 0
    return run


def test_trains_and_saves_what_diffusers_loads(plain_run):
    log = records(plain_run)
    assert [sorted(r) for r in log] == [["ldm", "loss", "lr", "step"]] * 2
    assert [r["step"] for r in log] == [1, 2]
    assert all(r["loss"] == r["ldm"] > 0 and r["lr"] == 5e-6 for r in log)
    trained = ControlNetModel.from_pretrained(plain_run)
    assert trained.controlnet_mid_block.weight.abs().sum() > 0
    assert not list(plain_run.glob(".*"))
    assert json.loads((plain_run / "arguments.json").read_text())["resolution"] == 64


def test_the_loop_waits_for_nothing_between_forward_and_backward(train, tmp_path, monkeypatch):
    """Each of these would wait for a GPU. What is logged is read after the optimizer's step."""
    waits, inside = [], []

    def count(name):
        original = getattr(torch.Tensor, name)

        def counting(tensor, *args, **kwargs):
            waits.extend(name for _ in inside)
            return original(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counting)

    for name in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__"):
        count(name)
    make_step, backward, steps = ControlNetTrainer.diffusion_step, Accelerator.backward, []

    def begin(*args):
        inside.append(True)
        return make_step(*args)

    def end(*args):
        backward(*args)
        inside.clear()
        steps.append(True)

    monkeypatch.setattr(ControlNetTrainer, "diffusion_step", begin)
    monkeypatch.setattr(Accelerator, "backward", end)
    assert train(tmp_path / "run") == 0
    assert len(steps) == 2
    assert waits == []


def test_with_the_plugin_the_weights_differ_and_each_term_is_logged(train, plain_run, tmp_path, random_preset):
    run = tmp_path / "run"
    assert train(run, "--loss-plugin", "mldm", "--preset", random_preset, "--panel_steps", 2) == 0
    assert not same_weights(run, plain_run)
    log = records(run)
    assert [r["ldm"] for r in log[:1]] == [r["ldm"] for r in records(plain_run)[:1]]
    assert sum(r["masked_lpips/gated"] for r in log) > 0
    for r in log:
        assert (r["masked_lpips"] is None) == (r["masked_lpips/gated"] == 0)
        assert isinstance(r["masked_lpips/gated"], int)
    assert "masked_lpips" in (run / "preset.yaml").read_text()
    with Image.open(run / "panels" / "step-000002.png") as panel:
        assert panel.size[0] > 64


def test_weight_zero_is_the_plain_run_to_the_bit(train, plain_run, tmp_path, random_preset):
    flags = ["--loss-plugin", "mldm", "--preset", random_preset, "--set", "losses.masked_lpips.weight=0"]
    assert train(tmp_path / "run", *flags, "--panel_steps", 1) == 0
    assert same_weights(tmp_path / "run", plain_run)
    assert (tmp_path / "run" / "panels" / "step-000001.png").exists()


LOOKING_PLUGIN = """
from mldm_plugin import hookimpl
@hookimpl
def after_loss(step, report):
    assert step.person_mask.any() and any(map(len, step.face_boxes))
    print("looked", flush=True)
"""


def test_annotation_is_read_where_somebody_looks_at_it(train, make_data, tmp_path, capfd, the_error):
    """Without losses and panels a plugin may still look at finished steps."""
    (tmp_path / "own.yaml").write_text("losses: {}\n")
    (tmp_path / "looking.py").write_text(LOOKING_PLUGIN)
    flags = ["--preset", tmp_path / "own.yaml", "--panel_steps", 0, "--max_train_steps", 1]
    assert train(tmp_path / "seen", "--loss-plugin", tmp_path / "looking.py", *flags) == 0
    assert "looked" in capfd.readouterr().out
    flags += ["--train_data_dir", make_data(tmp_path / "data", 3, rows={1: {"face_boxes": [[9, 9, 3, 3]]}})]
    assert train(tmp_path / "unread", "--loss-plugin", "mldm", *flags) == 0
    assert train(tmp_path / "read", "--loss-plugin", tmp_path / "looking.py", *flags) == 1
    assert "reversed" in the_error()


def test_a_detached_term_is_logged_and_changes_nothing(train, plain_run, tmp_path, random_preset):
    """All of the plugin runs here, decoder and network and panels, and draws no number from the host's generators."""
    preset = tmp_path / "detached.yaml"
    text = random_preset.read_text().replace("weights: random", "weights: random, detach: true")
    preset.write_text("combine: additive\n" + text)
    assert train(tmp_path / "run", "--preset", preset, "--panel_steps", 1) == 0
    assert same_weights(tmp_path / "run", plain_run)
    assert any(r["loss"] != r["ldm"] for r in records(tmp_path / "run"))


def test_flags_that_must_not_change_the_numbers(train, plain_run, tmp_path):
    flags = ["--gradient_checkpointing", "--set_grads_to_none", "--dataloader_num_workers", 1]
    assert train(tmp_path / "run", *flags, "--checkpointing_steps", 1) == 0
    assert same_weights(tmp_path / "run", plain_run)


def test_bf16_and_accumulation_with_a_decoder_that_was_never_rounded(train, tmp_path, random_preset, monkeypatch):
    """Losses are built from the VAE in float32, and proved on what the trainer's own then makes of pictures."""
    seen = []
    build, prove = LossStack.from_preset, LossStack.prove
    monkeypatch.setattr(
        LossStack, "from_preset", lambda *a, vae, **o: seen.append(vae.dtype) or build(*a, vae=vae, **o)
    )
    monkeypatch.setattr(LossStack, "prove", lambda self, step: seen.append(step.latents.dtype) or prove(self, step))
    flags = ["--mixed_precision", "bf16", "--gradient_accumulation_steps", 2, "--train_batch_size", 1]
    assert train(tmp_path / "run", "--preset", random_preset, *flags) == 0
    assert seen == [torch.float32, torch.bfloat16]
    assert len(records(tmp_path / "run")) == 2
    assert ControlNetModel.from_pretrained(tmp_path / "run").dtype == torch.float32


@old_numpy
def test_no_hint(train, tmp_path, tiny_pipeline, make_data):
    """Masked LDM, section 3: no hints on disk, none in the network, and it stays so."""
    hintless = {i: {"conditioning_image_file_name": None} for i in range(4)}
    data = make_data(tmp_path / "data", 4, rows=hintless)
    for hint in data.glob("*_hint.png"):
        hint.unlink()
    flags = ["--train_data_dir", data, "--conditioning", "none", "--validation_prompt", "a person"]
    flags += ["--num_validation_images", 1, "--validation_steps", 5, "--adam_weight_decay", 0.5]
    assert train(tmp_path / "run", *flags) == 0
    trained = ControlNetModel.from_pretrained(tmp_path / "run")
    assert all(not p.any() for p in trained.controlnet_cond_embedding.parameters())
    assert trained.controlnet_mid_block.weight.any()
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 16)
    with torch.no_grad():
        outputs = [
            trained(latents, 10, encoder_hidden_states=text, controlnet_cond=hint, return_dict=False)[1]
            for hint in (torch.zeros(1, 3, 64, 64), torch.rand(1, 3, 64, 64) * 100)
        ]
    assert outputs[0].equal(outputs[1])
    assert len(list((tmp_path / "run" / "validation").glob("*.png"))) == 1


@old_numpy
def test_validation_pictures_are_saved_and_change_nothing(train, plain_run, tmp_path, tiny_data):
    flags = ["--validation_prompt", "a person", "a face", "--validation_image", tiny_data / "2_hint.png"]
    flags += ["--num_validation_images", 1, "--validation_steps", 2, "--report_to", "tensorboard"]
    assert train(tmp_path / "run", *flags) == 0
    assert same_weights(tmp_path / "run", plain_run)
    assert sorted(p.name for p in (tmp_path / "run" / "validation").iterdir()) == [
        f"step-000002-prompt-{prompt}-0.png" for prompt in (0, 1)
    ]
    assert list((tmp_path / "run" / "logs").rglob("events.out.*"))


@old_numpy
@pytest.mark.parametrize("final", [False, True])
def test_unseeded_validation_leaves_the_generators_alone(tiny_pipeline, tiny_data, tmp_path, final):
    hint = str(tiny_data / "2_hint.png")
    flags = ControlNetFlags(
        pretrained_model_name_or_path=str(tiny_pipeline),
        train_data_dir="data",
        validation_prompt=["a"],
        validation_image=[hint],
        num_validation_images=1,
    )
    forget_accelerate()
    trainer = ControlNetTrainer(flags, torch.device("cpu"), torch.float32)
    trainer.save(tmp_path)
    before = generators.capture()
    (sampled,) = sample(trainer, Accelerator(cpu=True), tmp_path, 1, final=final)
    after = generators.capture()
    assert len(sampled.pictures) == 1
    assert before["python"] == after["python"]
    assert before["torch"].equal(after["torch"])


def test_old_checkpoints_go_when_the_new_one_is_there(train, tmp_path):
    run = tmp_path / "run"
    flags = ["--checkpointing_steps", 1, "--checkpoints_total_limit", 2, "--max_train_steps", 4]
    assert train(run, *flags) == 0
    assert sorted(p.name for p in run.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    assert ControlNetModel.from_pretrained(run / "checkpoint-4" / "controlnet").dtype == torch.float32
    assert same_weights(run / "checkpoint-4" / "controlnet", run)


def test_resume_by_name_goes_on_from_there_and_may_go_further(train, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(whole, "--max_train_steps", 6) == 0
    assert train(run, "--max_train_steps", 4, "--checkpointing_steps", 1) == 0
    flags = ["--resume_from_checkpoint", "checkpoint-2", "--checkpoints_total_limit", 1, "--checkpointing_steps", 5]
    assert train(run, "--max_train_steps", 6, *flags) == 0
    assert records(run) == records(whole)
    assert same_weights(run, whole)
    assert [p.name for p in run.glob("checkpoint-*")] == ["checkpoint-5"]
    assert train(run, "--max_train_steps", 6, "--resume_from_checkpoint", "checkpoint-5") == 0
    assert records(run) == records(whole)


def test_a_checkpoint_of_diffusers_script_is_taken_up_at_the_start_of_its_epoch(train, tmp_path, caplog):
    run = tmp_path / "run"
    assert train(run, "--max_train_steps", 5, "--checkpointing_steps", 5) == 0
    for ours in ("checkpoint-5/position_0.pt", "metrics.jsonl", "arguments.json"):
        (run / ours).unlink()
    assert train(run, "--max_train_steps", 6, "--resume_from_checkpoint", "latest") == 0
    assert [r["step"] for r in records(run)] == [6]
    assert "start of epoch 1" in caplog.text


SIGNAL_PLUGIN = """
import os, signal
from mldm_plugin import hookimpl
to_send = [signal.{name}]
@hookimpl
def after_loss(step, report):
    while to_send:
        os.kill(os.getpid(), to_send.pop())
"""


def test_a_signal_saves_and_ends_in_good_order(train, tmp_path):
    """The signal comes in the first of two micro-batches: the step is finished, then saved."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    flags = [*make_loss(tmp_path, "value"), "--max_train_steps", 2, "--gradient_accumulation_steps", 2]
    assert train(whole, *flags) == 0
    flags += ["--resume_from_checkpoint", "latest"]
    for step, name in ((1, "SIGTERM"), (2, "SIGINT")):
        stopper = tmp_path / f"{name}.py"
        stopper.write_text(SIGNAL_PLUGIN.format(name=name))
        assert train(run, "--loss-plugin", stopper, *flags) == 0
        assert [r["step"] for r in records(run)] == list(range(1, step + 1))
        assert (run / f"checkpoint-{step}").is_dir()
        assert not (run / WEIGHTS[CONTROLNET]).exists()
    assert train(run, *flags) == 0
    assert records(run) == records(whole)
    assert same_weights(run, whole)


def test_a_loss_that_stays_nan_ends_the_run_with_a_checkpoint(train, tmp_path, the_error):
    flags = make_loss(tmp_path, "value * (1 if Own.calls < 8 else float('nan'))")
    run = tmp_path / "run"
    assert train(run, *flags, "--max_train_steps", 20) == 1
    assert "'own'" in the_error()
    log = records(run)
    assert [r["step"] for r in log] == list(range(1, 13))
    assert [r["own"] is None for r in log] == [False, False] + [True] * 10
    assert [r.get("own/nonfinite") for r in log] == [None, None] + [r["own/gated"] for r in log[2:]]
    assert (run / "checkpoint-12").is_dir()


BREAKING_PLUGIN = """
from mldm_plugin import hookimpl
steps = []
@hookimpl
def after_loss(step, report):
    steps.append(step)
    if len(steps) == 3:
        step.model_pred.register_hook(lambda gradient: gradient * float("nan"))
"""


@pytest.mark.parametrize(("every", "last"), [(1, 2), (9, None)])
def test_weights_that_are_not_finite_are_never_saved(train, tmp_path, the_error, every, last):
    """The gradient of the third step is NaN, and so are the weights after it."""
    breaker, run = tmp_path / "breaker.py", tmp_path / "run"
    breaker.write_text(BREAKING_PLUGIN)
    flags = ["--loss-plugin", breaker, *make_loss(tmp_path, "value"), "--checkpoints_total_limit", 1]
    assert train(run, *flags, "--max_train_steps", 3, "--checkpointing_steps", every) == 1
    error = the_error()
    assert "NaN or infinite at step 3, so nothing was saved" in error
    assert (f"checkpoint-{last}" if last else "there is no earlier checkpoint") in error
    assert [p.name for p in run.glob("checkpoint-*")] == ([f"checkpoint-{last}"] if last else [])
    assert not (run / WEIGHTS[CONTROLNET]).exists()
    assert not list(run.glob(".*"))


def test_a_face_that_the_crop_cuts_off_is_told_once(train, tmp_path, random_preset, make_data, caplog):
    wide = {i: {"face_boxes": [[0, 26, 14, 44]]} for i in (3, 4)}  # of 100x75 and 128x90, whose sides are cut
    data = make_data(tmp_path / "data", 5, rows=wide)
    assert train(tmp_path / "run", "--train_data_dir", data, "--preset", random_preset) == 0
    (told,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert "2 of 5 pictures have a face box" in told
    assert told.endswith("3.png.")
    assert json.loads((tmp_path / "run" / "crops.json").read_text()) == {"pictures": 5, "losing_a_face": 2}
    assert train(tmp_path / "plain", "--train_data_dir", data) == 0
    assert not (tmp_path / "plain" / "crops.json").exists()  # nobody looked at the boxes


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("value.mean()", "expected a float tensor of shape"),
        ("value.detach()", "'own' would train nothing"),
        ("value * float('nan')", "'own' is [nan]"),
    ],
)
def test_a_loss_that_cannot_train_stops_before_anything_is_written(train, tmp_path, the_error, body, words):
    assert train(tmp_path / "run", *make_loss(tmp_path, body)) == 1
    assert words in the_error()
    assert not (tmp_path / "run").exists()


def test_a_loss_that_breaks_later_is_named(train, tmp_path, the_error):
    flags = make_loss(tmp_path, "value if Own.calls < 8 else value.mean()")
    assert train(tmp_path / "run", *flags, "--max_train_steps", 5) == 1
    assert "expected a float tensor of shape" in the_error()
    assert len(records(tmp_path / "run")) == 2
