"""The measurement of attributes: the right drawings, the right answers, numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mldm_plugin.errors import DataError
from mldm_plugin.people_mini.__main__ import main
from mldm_plugin.people_mini.archive import write_archive
from mldm_plugin.people_mini.autoencoder import psnr
from mldm_plugin.people_mini.classifier import QUESTIONS, UNKNOWN, accuracy, labels_of, train_classifier
from mldm_plugin.people_mini.measure import drawings_of
from mldm_plugin.people_mini.networks import THIN, build_networks, write_pipeline
from mldm_plugin.people_mini.record import Record, Sample

ROW = {q: answers[0] for q, answers in QUESTIONS.items()} | {"gaze": "camera", "eye_colour": "blue", "pose": "portrait"}
ROW |= {"bottom": "unseen", "bottom_colour": "unseen"}


def plain(index: int, colour: tuple[int, int, int], **said: str) -> Sample:
    return Sample(Record(f"drawn/{index:07d}", index, attributes=ROW | said), Image.new("RGB", (128, 128), colour))


def test_labels_are_numbers_of_answers() -> None:
    [labels] = labels_of([ROW | {"glasses": "sunglasses", "expression": "unseen"}]).tolist()
    found = dict(zip(QUESTIONS, labels, strict=True))
    assert found["glasses"] == QUESTIONS["glasses"].index("sunglasses")
    assert found["expression"] == UNKNOWN
    assert found["kind"] == 0


def test_accuracy_counts_known_answers_alone() -> None:
    labels = torch.zeros(4, len(QUESTIONS), dtype=torch.long)
    labels[0, 0] = UNKNOWN
    answers = labels.clone()
    answers[1, 0] = 1
    found = accuracy(answers, labels)
    assert found["kind"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["skin"] == 1
    assert found["mean"] == pytest.approx((2 / 3 + len(QUESTIONS) - 1) / len(QUESTIONS), abs=1e-3)


def test_psnr_of_an_even_error() -> None:
    # An error of 0.2 in a range of 2 is a tenth: 20 dB.
    assert psnr(torch.full((2, 3, 4, 4), 0.2), torch.zeros(2, 3, 4, 4)) == pytest.approx(20, abs=1e-4)


def test_a_classifier_learns_what_can_be_seen() -> None:
    colours = torch.tensor([[200, 30, 30], [30, 30, 200]], dtype=torch.uint8)
    pixels = colours[torch.arange(16) % 2][..., None, None].expand(-1, -1, 64, 64).contiguous()
    labels = labels_of([ROW | {"top_colour": QUESTIONS["top_colour"][i % 2]} for i in range(16)])
    before = torch.random.get_rng_state()
    network = train_classifier(pixels, labels, 25, 8)
    assert torch.equal(torch.random.get_rng_state(), before)
    from mldm_plugin.people_mini.classifier import answered

    found = answered(network, pixels.float() / 127.5 - 1)
    assert accuracy(found, labels)["top_colour"] == 1


def test_drawings_are_held_out_or_not(tmp_path: Path) -> None:
    write_archive(tmp_path / "seen.zip", [plain(1, (9, 9, 9))])
    write_archive(tmp_path / "held.zip", [plain(9, (9, 9, 9))])
    assert len(drawings_of([tmp_path / "seen.zip"], held_out=False)) == 1
    assert len(drawings_of([tmp_path / "held.zip"], held_out=True)) == 1
    with pytest.raises(DataError, match="held out"):
        drawings_of([tmp_path / "held.zip"], held_out=False)
    with pytest.raises(DataError, match="may have been trained on"):
        drawings_of([tmp_path / "seen.zip"], held_out=True)


def test_the_command_measures(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    write_archive(tmp_path / "seen.zip", [plain(i, tuple(random.integers(0, 255, 3).tolist())) for i in range(4)])
    write_archive(tmp_path / "held.zip", [plain(i, (200, 30, 30)) for i in (9, 19, 29)])
    write_pipeline(tmp_path / "pipeline", build_networks(THIN))
    arguments = ["measure", str(tmp_path / "pipeline"), "--train", str(tmp_path / "seen.zip"), "--count", "2"]
    arguments += ["--held-out", str(tmp_path / "held.zip"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*arguments, "--classifier-steps", "2", "--steps", "2"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "attributes.json").read_text())
    assert found["count"] == 2
    assert set(found["samples"]) == {*QUESTIONS, "mean"}
    assert "samples: kind" in result.output
    with Image.open(tmp_path / "out" / "attributes.png") as shown:
        assert shown.size == (8 * 128, 2 * 128)

    # the classifier that is there is taken again
    again = CliRunner().invoke(main, [*arguments[:2], *arguments[4:], "--steps", "2"], catch_exceptions=False)
    assert again.output.splitlines()[-3:] == result.output.splitlines()[-3:]
