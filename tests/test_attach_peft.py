"""PEFT's examples that train diffusion models: all places are found in each that docs/recipes/peft.md lists.

MLDM_PEFT names the folder of a checkout of huggingface/peft, at 5d602fdb when the page was written.
"""

import os
import re
from pathlib import Path

import pytest

from mldm_plugin.attach import launcher

CHECKOUT = Path(os.environ.get("MLDM_PEFT", "checkout-of-peft"))
PAGE = Path(__file__).parents[1] / "docs" / "recipes" / "peft.md"
LISTED = re.findall(r"^\| `(examples/\S+\.py)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_page_lists_them():
    assert len(LISTED) == len(set(LISTED)) > 3


@pytest.mark.skipif(not CHECKOUT.is_dir(), reason="MLDM_PEFT names no folder")
@pytest.mark.parametrize("example", LISTED)
def test_all_places_are_found(example):
    text = (CHECKOUT / example).read_text(encoding="utf-8")
    assert text not in launcher.splice_all(text, CHECKOUT / example).values()
