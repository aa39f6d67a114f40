"""What `mldm start` says a run will cost on this machine, and whom it asks about."""

import pytest
import torch

from mldm_plugin.cli import start
from mldm_plugin.errors import MldmError
from mldm_plugin.project import cost
from mldm_plugin.project.models import known_model
from mldm_plugin.project.photos import Photo
from mldm_plugin.project.plan import decide


def decided(tmp_path, model, **options):
    photos = [Photo(f"{number}.jpg", (800, 800), faces=[300.0], people=[0]) for number in range(10)]
    known = known_model(model)
    pipeline = model if model == "people-mini" else known.pipeline
    return decide(tmp_path, photos, "anna woman", known, pipeline, **options).run


def test_minutes_are_those_of_forward_passes_worked_out_by_hand(tmp_path, monkeypatch):
    """120 steps of half a second's pass; every t is compared; 24 pictures of 72 passes of one latent by each of two."""
    monkeypatch.setattr(cost, "_forward_seconds", lambda pipeline, batch: 0.5)
    run = decided(tmp_path, "people-mini")
    found = cost.minutes_here(run, prompts=12, processes=2)
    assert found.trainings == pytest.approx({"plain": 120 * 0.5 * 2.6 / 60, "mldm": 120 * 0.5 * 2.6 * 3.9 / 60})
    latent = 0.5 / 60 / 4
    assert found.pictures == pytest.approx(24 * 72 * latent)
    assert found.judging == pytest.approx((24 * 8 + 2 * 150) * latent)
    assert cost.cost_here(run, "people-mini", 12, 2) == [
        "training   about 3 minutes with the plain loss, about 10 minutes with preset demo",
        "pictures   about 4 minutes: 12 prompts, 2 pictures of each by each model",
        "judging    about a minute",
    ]
    gated = run.model_copy(update={"set": ["losses.masked_lpips.max_timestep=99", "losses.face.max_timestep=99"]})
    assert cost.minutes_here(gated, 12, 2).trainings["mldm"] == pytest.approx(120 * 0.5 * 2.6 * 1.29 / 60)
    alone = decided(tmp_path, "people-mini", compare=False)
    assert cost.minutes_here(alone, 12, 2).pictures == pytest.approx(found.pictures / 2)


@pytest.mark.parametrize(
    ("model", "asks"),
    [
        ("sd15", "how much memory: mldm plan --vram 24 --train lora"),
        ("sdxl", "how much memory: mldm plan --vram 24 --train lora --family sdxl"),
        ("flux", "mldm plan does not know this kind's memory"),
    ],
)
def test_of_other_models_it_says_what_is_here_and_what_to_ask(tmp_path, monkeypatch, model, asks):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    training, pictures = cost.cost_here(decided(tmp_path, model), model, 12, 1)
    assert training == f"training   there is no GPU here, which {model} needs; {asks}"
    assert pictures.startswith("pictures   12 prompts, 2 pictures of each by each model")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20e9, 24e9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    training, _ = cost.cost_here(decided(tmp_path, model), model, 12, 1)
    assert training == f"training   a card, 20 of 24 GB free; the bar says how long; {asks}"


def test_who_it_is_is_asked_where_somebody_can_answer(tmp_path, monkeypatch):
    answers = iter([" ana woman ", "ana\x07"])
    monkeypatch.setattr(start.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(start.click, "prompt", lambda *_, **__: next(answers))
    assert start._photos_and_who(tmp_path, None) == (tmp_path, "ana woman")
    with pytest.raises(MldmError, match="expected a rare word and what it is"):
        start._photos_and_who(tmp_path, None)
