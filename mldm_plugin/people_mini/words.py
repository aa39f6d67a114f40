"""people-mini's tokenizer: a small CLIP tokenizer in which every word of its captions is one token."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mldm_plugin.people_mini.attributes import TABLE
from mldm_plugin.people_mini.tokenizer import MODEL_MAX_LENGTH, TEXT, vocabulary, write_tokenizer
from mldm_plugin.people_mini.who import FEELINGS, PEOPLE, TURNED, says
from mldm_plugin.prepare.synthetic.caption import BOTH, GESTURES
from mldm_plugin.prepare.synthetic.scene import PHRASES

MERGES = 4000  # enough for every word to be merged whole
EXPRESSIONS = """
angry sad surprised disgusted scared confused smug flirty thoughtful pensive exhausted shocked playful determined
"""
OTHER = "drawing photo of selfie wearing seen behind looking close portrait picture half body bust full her him is"


def words() -> str:
    """The words that captions are made of, once each, in alphabetical order."""
    texts = [TEXT, EXPRESSIONS, OTHER, *TABLE, *FEELINGS.values(), *TURNED.values()]
    for name, who in PEOPLE.items():
        texts += [who.name, who.kind, *who.looks, who.outside, *who.selfie]
        texts += [word for picture in ("studio_portrait", "amateur_selfie") for word in says(name, picture, "")[1]]
    texts += [phrase for phrases in PHRASES.values() for phrase in phrases]
    texts += [phrase for both in (GESTURES, BOTH) for pair in both.values() for phrase in pair]
    return " ".join(sorted(set(re.findall(r"[a-z]+", " ".join(texts).lower()))))


def vocabulary_size() -> int:
    return len(vocabulary(words(), MERGES)[0])


def write_words(folder: Path) -> None:
    """Write the tokenizer's four files into `folder`."""
    write_tokenizer(folder, words(), MERGES)


def read_tokenizer(folder: Path) -> Any:
    """people-mini's tokenizer, written into `folder` first."""
    from transformers import CLIPTokenizer

    write_words(folder)
    return CLIPTokenizer.from_pretrained(folder)


def tokens_of(tokenizer: Any, texts: list[str]) -> Tensor:
    """Tokens (n, 77), padded with the last token, as CLIP's tokenizers are."""
    ids = tokenizer(texts, truncation=True, max_length=MODEL_MAX_LENGTH)["input_ids"]
    made = torch.full((len(ids), MODEL_MAX_LENGTH), tokenizer.pad_token_id)
    for i, row in enumerate(ids):
        made[i, : len(row)] = torch.tensor(row)
    return made
