"""A small CLIP tokenizer made by code: byte-level BPE with the files of Stable Diffusion 1.x.

The vocabulary follows CLIP's order (openai/CLIP, simple_tokenizer.py, described in "Learning Transferable
Visual Models From Natural Language Supervision", section 2.4): 256 byte symbols, the same 256 with the end-of-word
mark, one entry per merge, then the two special tokens. Any text can be encoded; the words the merges were
learned from take few tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

END = "</w>"
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MODEL_MAX_LENGTH = 77

# Words of captions. Tokens are numbered by them, and people-mini was trained with those numbers: they stay as they are.
TEXT = """
a an and at background black blonde blue camera cap card cards chips face flag front glass glasses grey hair hand
helmet holding in is jacket lamp looking man men of on orange people person photo picture playing poker portrait
red room shirt sitting six smiling space standing suit table the three to top two uniform white with woman women
astronaut naval officer officer's shuttle
"""


def byte_symbols() -> list[str]:
    """The printable character that stands for each byte, in CLIP's vocabulary order (printable bytes first)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def learn_merges(words: Iterable[str], limit: int = 512) -> list[tuple[str, str]]:
    """Byte-pair merges of ASCII `words`, most frequent pair first, ties in alphabetical order."""
    spelt = sorted({(*w[:-1], w[-1] + END) for w in words})
    merges: list[tuple[str, str]] = []
    while len(merges) < limit:
        pairs = Counter(pair for word in spelt for pair in pairwise(word))
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelt = [_merge(word, best) for word in spelt]
    return merges


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for symbol in word:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return tuple(out)


def vocabulary(text: str = TEXT, limit: int = 512) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The token table and the merges learned from the words of `text`, in CLIP's order."""
    merges = learn_merges(text.split(), limit)
    symbols = byte_symbols()
    tokens = [*symbols, *(s + END for s in symbols), *dict.fromkeys(a + b for a, b in merges), BOS, EOS]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges


def write_tokenizer(folder: Path, text: str = TEXT, limit: int = 512) -> None:
    """Write `vocab.json`, `merges.txt` and the two configuration files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = vocabulary(text, limit)
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "unk_token": EOS}
    config = {
        **special,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": MODEL_MAX_LENGTH,
        "tokenizer_class": "CLIPTokenizer",
    }
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")
