"""Small parts of the trainer on their own."""

from __future__ import annotations

import os
import random
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image

from mldm_plugin.errors import DataError, MldmError
from mldm_plugin.training import agreement, generators, hub
from mldm_plugin.training.controlnet import ControlNetTrainer
from mldm_plugin.training.flags import ControlNetFlags
from mldm_plugin.training.start import make_lr_scheduler, make_optimizer, optimizer_steps
from mldm_plugin.training.stop import StopRequest, leave_to_parent
from mldm_plugin.training.validation import Sampled, hand_to_trackers


def flags(**changes):
    return ControlNetFlags(pretrained_model_name_or_path="sd", train_data_dir="data", **changes)


@pytest.fixture
def make_trainer(monkeypatch):
    """`make_trainer(flag=value, …)`: a trainer of one number, without its networks."""

    def load_nothing(self, flags):
        self.flags, self.trained = flags, torch.nn.Linear(1, 1, bias=False)

    monkeypatch.setattr(ControlNetTrainer, "__init__", load_nothing)
    return lambda **changes: ControlNetTrainer(flags(**changes))


def draw() -> tuple:
    return random.random(), float(np.random.normal()), torch.rand(2).tolist()


def test_generators_are_put_back():
    np.random.normal()  # leaves half of a pair behind, which is part of the state
    state = generators.capture()
    first = draw()
    with generators.untouched():
        draw()
    second = draw()
    generators.restore(state)
    assert (draw(), draw()) == (first, second)


def test_a_captured_state_is_loaded_without_trust(tmp_path):
    torch.save(generators.capture(), tmp_path / "state.pt")
    generators.restore(torch.load(tmp_path / "state.pt", weights_only=True))


@pytest.fixture
def signals():
    """Python's own handlers, whatever this process was started with, as nohup ignores SIGINT; then those again."""
    inherited = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for which, handler in inherited.items():
        signal.signal(which, handler)


def test_the_first_signal_is_remembered_and_the_second_acts(signals):
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_loading_processes_leave_signals_to_their_parent(signals):
    with StopRequest() as stop:
        leave_to_parent(0)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.received is None
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("changes", "batches", "steps"),
    [
        ({}, 7, 7),
        ({"gradient_accumulation_steps": 2, "num_train_epochs": 3}, 7, 12),
        ({"max_train_steps": 10, "gradient_accumulation_steps": 2}, 7, 10),
    ],
)
def test_length(changes, batches, steps):
    assert optimizer_steps(flags(**changes), batches) == steps


def test_the_learning_rate_is_scaled_by_what_is_trained_at_once(make_trainer):
    changes = {"scale_lr": True, "gradient_accumulation_steps": 2, "train_batch_size": 3, "learning_rate": 0.5}
    optimizer = make_optimizer(make_trainer(**changes), processes=4)
    assert optimizer.param_groups[0]["lr"] == 12
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_warm_up_counts_every_process(make_trainer):
    trainer = make_trainer(learning_rate=1.0, lr_scheduler="constant_with_warmup", lr_warmup_steps=2)
    optimizer = make_optimizer(trainer, processes=2)
    scheduler = make_lr_scheduler(trainer, optimizer, batches=8, processes=2)
    rates = []
    for _ in range(5):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_8_bit_adam_says_what_to_install(make_trainer, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MldmError, match="pip install bitsandbytes"):
        make_optimizer(make_trainer(use_8bit_adam=True), processes=1)


@pytest.mark.parametrize(("texts", "hints", "number"), [(2, 2, 2), (1, 3, 3), (3, 1, 3)])
def test_prompts_and_hints_are_paired(make_trainer, tmp_path, texts, hints, number):
    paths = []
    for i in range(hints):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.new("RGB", (8, 8), (i, 0, 0)).save(paths[-1])
    trainer = make_trainer(validation_prompt=[f"p{i}" for i in range(texts)], validation_image=paths)
    got = [(prompt.title, prompt.hint.getpixel((0, 0))[0]) for prompt in trainer.prompts()]
    assert got == [(f"p{i % texts}", i % hints) for i in range(number)]
    assert all(p.arguments == {"prompt": p.title, "image": p.hint} for p in trainer.prompts())


def no_such_repository(*_, **__):
    raise EntryNotFoundError("no card yet")


@pytest.mark.parametrize(("what", "hint", "width"), [("ControlNet", Image.new("RGB", (8, 8)), 48), ("LoRA", None, 32)])
def test_the_model_card_shows_what_was_sampled(tmp_path, monkeypatch, what, hint, width):
    uploads = []
    monkeypatch.setattr(hub, "create_repo", lambda **options: type("Repository", (), {"repo_id": "me/run"}))
    monkeypatch.setattr(hub, "upload_folder", lambda **options: uploads.append(options))
    monkeypatch.setattr("diffusers.utils.hub_utils.ModelCard.load", no_such_repository)
    own = flags(output_dir=str(tmp_path), preset="mldm", push_to_hub=True)
    picture = Image.new("RGB", (16, 16), (200, 0, 0))
    name = hub.make_repository(own)
    hub.upload(what, own, name, [Sampled("a person", hint, [picture, picture])])
    card = (tmp_path / "README.md").read_text()
    assert "me/run" in card
    assert f"A {what} for sd" in card
    assert f"- {what.lower()}\n" in card
    assert "preset mldm" in card
    assert "a person" in card
    with Image.open(tmp_path / "images_0.png") as row:
        assert row.size == (width, 16)
    assert uploads[0]["repo_id"] == "me/run"


def test_trackers_get_the_sampled_pictures(monkeypatch, caplog):
    logged = []
    wandb = SimpleNamespace(Image=lambda picture, caption: caption)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    trackers = [
        SimpleNamespace(name="wandb", log=lambda values, step: logged.append((values, step))),
        SimpleNamespace(name="paper"),
    ]
    picture = Image.new("RGB", (8, 8))
    sampled = [Sampled("a person", picture, [picture, picture]), Sampled("a face", None, [picture])]
    hand_to_trackers(sampled, trackers, 7, "validation")
    assert logged == [({"validation": ["hint", "a person", "a person", "a face"]}, 7)]
    assert "not sent to paper" in caplog.text


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_any_process_is_raised_by_all(monkeypatch, rank):
    """This process succeeds, the other one fails."""
    monkeypatch.setattr(agreement, "gather_object", lambda own: [*own, "no such picture"])
    accelerator = SimpleNamespace(num_processes=2, is_main_process=rank == 0)
    kind = MldmError if rank == 0 else agreement.ReportedElsewhereError
    with pytest.raises(kind, match="no such picture") as error, agreement.together(accelerator):
        pass
    assert type(error.value) is kind


def test_the_first_process_raises_its_own_error_and_success_is_silent(monkeypatch):
    accelerator = SimpleNamespace(num_processes=2, is_main_process=True)
    monkeypatch.setattr(agreement, "gather_object", lambda own: [*own, None])
    with agreement.together(accelerator):
        pass
    own = DataError("broken")
    with pytest.raises(DataError) as error, agreement.together(accelerator):
        raise own
    assert error.value is own
