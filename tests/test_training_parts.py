"""Small parts of the trainer on their own."""

from __future__ import annotations

import logging
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
from mldm_plugin.training import agreement, generators, hub, validation
from mldm_plugin.training.controlnet import prompts
from mldm_plugin.training.controlnet_flags import FLAGS
from mldm_plugin.training.optimisation import Length, make_lr_scheduler, make_optimizer
from mldm_plugin.training.stop import StopRequest, leave_to_parent
from mldm_plugin.training.validation import Sampled


def arguments(**changes):
    return FLAGS.resolve({"pretrained_model_name_or_path": "sd", "train_data_dir": "data", **changes})


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


def test_the_first_signal_is_remembered_and_the_second_acts():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_loading_processes_leave_signals_to_their_parent():
    with StopRequest() as stop:
        leave_to_parent(0)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.received is None
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("flags", "batches", "steps", "epochs"),
    [
        ({}, 7, 7, 1),
        ({"gradient_accumulation_steps": 2, "num_train_epochs": 3}, 7, 12, 3),
        ({"max_train_steps": 10, "gradient_accumulation_steps": 2}, 7, 10, 3),
        ({"max_train_steps": 8, "gradient_accumulation_steps": 2}, 7, 8, 2),
    ],
)
def test_length(flags, batches, steps, epochs):
    assert Length.of(arguments(**flags), batches) == Length(steps, epochs)


def test_the_learning_rate_is_scaled_by_what_is_trained_at_once():
    flags = {"scale_lr": True, "gradient_accumulation_steps": 2, "train_batch_size": 3, "learning_rate": 0.5}
    optimizer = make_optimizer(arguments(**flags), [torch.nn.Parameter(torch.zeros(1))], processes=4)
    assert optimizer.param_groups[0]["lr"] == 12
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_warm_up_counts_every_process():
    optimizer = make_optimizer(arguments(learning_rate=1.0), [torch.nn.Parameter(torch.zeros(1))], processes=2)
    scheduler = make_lr_scheduler(
        arguments(lr_scheduler="constant_with_warmup", lr_warmup_steps=2), optimizer, batches=8, processes=2
    )
    rates = []
    for _ in range(5):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_8_bit_adam_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MldmError, match="pip install bitsandbytes"):
        make_optimizer(arguments(use_8bit_adam=True), [torch.nn.Parameter(torch.zeros(1))], processes=1)


@pytest.mark.parametrize(("texts", "hints", "number"), [(2, 2, 2), (1, 3, 3), (3, 1, 3)])
def test_prompts_and_hints_are_paired(tmp_path, texts, hints, number):
    paths = []
    for i in range(hints):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.new("RGB", (8, 8), (i, 0, 0)).save(paths[-1])
    flags = {"validation_prompt": [f"p{i}" for i in range(texts)], "validation_image": paths}
    got = [(p.text, p.hint.getpixel((0, 0))[0]) for p in prompts(arguments(**flags))]
    assert got == [(f"p{i % texts}", i % hints) for i in range(number)]


def no_such_repository(*_, **__):
    raise EntryNotFoundError("no card yet")


@pytest.mark.parametrize(("what", "hint", "width"), [("ControlNet", Image.new("RGB", (8, 8)), 48), ("LoRA", None, 32)])
def test_the_model_card_shows_what_was_sampled(tmp_path, monkeypatch, what, hint, width):
    uploads = []
    monkeypatch.setattr(hub, "create_repo", lambda **options: type("Repository", (), {"repo_id": "me/run"}))
    monkeypatch.setattr(hub, "upload_folder", lambda **options: uploads.append(options))
    monkeypatch.setattr("diffusers.utils.hub_utils.ModelCard.load", no_such_repository)
    flags = arguments(output_dir=str(tmp_path), preset="mldm", push_to_hub=True)
    picture = Image.new("RGB", (16, 16), (200, 0, 0))
    name = hub.make_repository(flags)
    hub.upload(what, flags, name, [Sampled("a person", hint, [picture, picture])])
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
    monkeypatch.setattr(validation, "log", logging.getLogger("validation"))
    trackers = [
        SimpleNamespace(name="wandb", log=lambda values, step: logged.append((values, step))),
        SimpleNamespace(name="paper"),
    ]
    picture = Image.new("RGB", (8, 8))
    sampled = [Sampled("a person", picture, [picture, picture]), Sampled("a face", None, [picture])]
    validation._hand_to_trackers(sampled, SimpleNamespace(trackers=trackers), 7, "validation")
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
