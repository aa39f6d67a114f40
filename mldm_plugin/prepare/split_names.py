"""Pictures whose names `datasets` would take for those of splits, and the file that tells it that they are none."""

from __future__ import annotations

import re
from pathlib import Path

from mldm_plugin.records.files import write_text

README = "README.md"
# Source: `datasets`, data_files.py: its words for splits, as a part of any name of a file or folder.
_WORDS = "train|training|validation|valid|dev|val|test|testing|eval|evaluation"
_SPLIT = re.compile(rf"(?:^|[-._ 0-9/])(?:{_WORDS})(?:[-._ 0-9/]|$)")
_TOLD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: "**"
---

All pictures of this folder are one split, whatever they are called.
"""


def looks_like_split(name: str) -> bool:
    """Whether `datasets` finds the name of a split in that of a file.

    >>> [looks_like_split(name) for name in ("images/test_001.jpg", "COCO_val2014_1.jpg", "test/a.png", "latest.png")]
    [True, True, True, False]
    """
    return _SPLIT.search(name) is not None


def tell_one_split(folder: Path) -> None:
    """Say in the folder's README.md that all of it is one split.

    `datasets` reads it there; without it, scripts that open the folder would see the pictures of one name only.
    """
    write_text(folder / README, _TOLD)
