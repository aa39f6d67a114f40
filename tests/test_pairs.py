"""The estimates that show what a loss sees: they differ in that alone, and the loss says what its card tells."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from weights_entries import needs_weights

from mldm_plugin import load_plugins

DOCS = Path(__file__).parent.parent / "docs"
FOUND = json.loads((DOCS / "losses" / "pairs.json").read_text(encoding="utf-8"))
WEIGHTS = {
    "masked_lpips": ["vgg16"],
    "face": ["dlib_resnet"],
    "identity": ["dlib_resnet"],
    "keypoints": ["mediapipe_hand"],
}


@pytest.fixture(scope="module")
def pairs():
    spec = importlib.util.spec_from_file_location("pairs", DOCS / "pairs.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pairs"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_weights(*WEIGHTS.get(n, []))) for n in FOUND])
@torch.no_grad()
def test_the_card_tells_what_the_loss_says(pairs, name):
    if name == "identity":
        pytest.importorskip("openpeople")
    seen, values = pairs.told(name)
    assert list(seen.words) == FOUND[name]["words"]
    assert values.keys() == FOUND[name]["values"].keys()
    for label, of in values.items():
        assert of == pytest.approx(FOUND[name]["values"][label], rel=0.03, abs=1e-4), label
    for words in seen.words:
        assert words in (DOCS / "losses" / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FOUND)
def test_the_loss_tells_estimates_apart_that_the_plain_error_does_not(name):
    """The later one costs much more. By the squared error they are alike, where their words say so, or less apart."""
    own = FOUND[name]["values"][name]
    [beside] = [of for label, of in FOUND[name]["values"].items() if label != name]
    mine, its = ([of[k + 1] / of[k] for k in range(len(of) - 1)] for of in (own, beside))
    assert all(a > max(2, 1.5 * b) for a, b in zip(mine, its, strict=True))
    if re.search("same squared error|off as much", " ".join(FOUND[name]["words"])):
        assert its == pytest.approx([1] * len(its), rel=0.02)


def test_every_loss_whose_weights_were_here_is_shown():
    assert load_plugins().losses.entries.keys() - FOUND.keys() == {"dino"}
    for name in FOUND:
        with Image.open(DOCS / "images" / f"seen_{name}.jpg") as picture:
            assert picture.size[0] > 500
        assert (DOCS / "images" / f"seen_{name}.jpg").stat().st_size < 120_000
