"""What docs/faces.md says of the tables of faces is what docs/faces.json holds, and claims are judged as was said."""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from mldm_plugin.evaluation.notes import Notes

DOCS = Path(__file__).parent.parent / "docs"
sys.path.append(str(DOCS))
faces_claims = importlib.import_module("faces_claims")
FOUND = json.loads((DOCS / "faces.json").read_text(encoding="utf-8"))
TEXT = re.sub(r"\s+", " ", (DOCS / "faces.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("low", "high", "side", "verdict"),
    [
        (0.71, 0.8, "above", "shown"),
        (0.6, 0.8, "above", "not shown"),
        (0.5, 0.69, "above", "refuted"),
        (0.5, 0.69, "below", "shown"),
        (0.6, 0.8, "below", "not shown"),
        (0.71, 0.8, "below", "refuted"),
    ],
)
def test_a_claim_is_shown_by_the_whole_interval(low, high, side, verdict):
    found = faces_claims.claim("F", "it", {"value": 0.7, "low": low, "high": high}, side, 0.7)
    assert found["verdict"] == verdict


def counts(same, either):
    """(1, 38) of a picture whose mask has labels 0 and 1."""
    row = np.zeros((1, 38), dtype=np.float32)
    row[0, [0, 1, 19, 20]] = *same, *either
    return row


def test_masks_are_compared_over_all_pictures_of_both(tmp_path):
    """mIoU (5/5 + 3/8)/2 against (3/5 + 1/8)/2: of the pixels of all cases together, not a mean over pictures."""
    keys = [f"{k:05d}" for k in range(8)]
    for arm, same in (("mask", (4, 3)), ("mask_pooled", (2, 1))):
        notes = Notes(tmp_path / "measured" / arm / "0")
        for number, key in enumerate(keys):
            row = counts(same, (4, 4)) if number % 2 else counts((1, 0), (1, 4))
            for repetition in range(2):
                notes.add((key, repetition), {"mask_miou@12345678": row})
    gap = faces_claims.difference_of_masks(tmp_path, {"cases": [{"key": key} for key in keys]})
    assert gap["value"] == pytest.approx(0.325)
    assert gap["low"] < 0.325 < gap["high"]


def test_what_is_said_of_the_claims_holds():
    """Each sentence of "What came out"."""
    said = {(one["claim"], one["what"]): one for one in FOUND["table5"]["claims"]}
    verdicts = {number: [one["verdict"] for (n, _), one in said.items() if n == number] for number, _ in said}
    assert verdicts == {
        "F2": ["not shown", "not shown"],
        "F3": ["shown", "shown"],
        "F4": ["shown"],
        "F5": ["shown", "shown", "shown"],
        "F6": ["not shown"],
    }
    [last, *earlier] = FOUND["table1"]["claims"]
    assert (last["claim"], last["verdict"]) == ("F1", "shown")
    assert f"leaves out zero (p = {last['p']:.3f})".replace("0.", ".") in TEXT
    assert [one["what"].partition(",")[0] for one in earlier] == [
        "the same after 666 steps",
        "the same after 1332 steps",
    ]
    falling = [one["value"] for one in (*earlier, last)]
    assert falling == sorted(falling)
    assert all(one["high"] < 0 for one in (*earlier, last))
    assert set(FOUND["table1"]["runs"].values()) == {5}
    of = FOUND["table5"]
    accuracy, real = of["values"]["attribute_accuracy"], of["photographs"]["attribute_accuracy"]
    assert f"own {100 * real:.1f} %" in TEXT
    assert accuracy["multi"]["value"] > real - 0.05 > accuracy["multi"]["low"]
    assert f"misses them by {100 * (real - 0.05 - accuracy['attributes']['value']):.1f} points" in TEXT
    assert (of["cases"], of["sampling"]["repetitions"], of["sampling"]["eta"]) == (30, 10, 1.0)
    assert set(of["runs"].values()) == {1}
