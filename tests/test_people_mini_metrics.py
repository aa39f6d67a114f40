"""Drawn people are asked for what their captions say: real drawings show it, others do not."""

import numpy as np
import pytest
import torch

from mldm_plugin.evaluation.cases import Case
from mldm_plugin.evaluation.picture import Picture
from mldm_plugin.people_mini.attributes import caption
from mldm_plugin.people_mini.drawn import draw_sample
from mldm_plugin.plugins import load_plugins


@pytest.fixture(scope="module")
def drawings():
    """Held-out drawings, of numbers that end in 9, as pictures with their own captions."""
    samples = [sample for index in range(9, 200, 10) if (sample := draw_sample(index)) is not None][:8]
    made = []
    for sample in samples:
        pixels = torch.from_numpy(np.array(sample.picture)).permute(2, 0, 1) / 127.5 - 1
        made.append((pixels, caption(sample.record.attributes)))
    return made


def test_a_drawing_shows_its_caption_and_not_anothers(drawings):
    metric = load_plugins(["mldm_plugin.people_mini.metrics"]).metrics["attributes"]()
    own = [metric(Picture(pixels, Case("0", text))) for pixels, text in drawings]
    others = [
        metric(Picture(pixels, Case("0", text)))
        for (pixels, _), (_, text) in zip(drawings, [*drawings[1:], drawings[0]], strict=True)
    ]
    assert np.mean(own) > 0.8
    assert np.mean(others) < 0.6


def test_nothing_is_asked_of_photographs(drawings):
    metric = load_plugins(["mldm_plugin.people_mini.metrics"]).metrics["attributes"]()
    assert metric(Picture(drawings[0][0], Case("0", "photo of cerwen, smiling"))) is None
