"""All pictures and captions in memory: what training draws its batches from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mldm_plugin.errors import DataError
from mldm_plugin.people_mini.archive import read_archive
from mldm_plugin.people_mini.attributes import mirrored, partial_captions
from mldm_plugin.people_mini.photos import view_of
from mldm_plugin.people_mini.record import SIDE, Sample
from mldm_plugin.people_mini.split import is_drawing_held_out, is_person_held_out

VIEWS = 24  # squares out of each panel of a sheet
SINGLE_VIEWS = 96  # and out of each picture of its own, of which a person has four


@dataclass
class Pictures:
    """Pictures in memory, drawings first.

    Attributes:
        pixels: uint8 (N, 3, 128, 128).
        texts: captions of each picture, any of which fits.
        drawings: how many of them are drawings.
    """

    pixels: Tensor
    texts: list[list[str]]
    drawings: int

    def __len__(self) -> int:
        return len(self.texts)

    def to(self, device: torch.device) -> Pictures:
        return Pictures(self.pixels.to(device), self.texts, self.drawings)

    def draw(self, count: int, photo_share: float, generator: torch.Generator) -> Tensor:
        """Numbers of `count` pictures at random, this share of them photographs, where there are both."""
        device = self.pixels.device
        chance = torch.rand(count, generator=generator, device=device)
        photos = len(self) - self.drawings
        share = photo_share if photos and self.drawings else float(photos > 0)
        number = torch.rand(count, generator=generator, device=device)
        photo = self.drawings + (number * photos).long().clamp(max=photos - 1)
        return torch.where(chance < share, photo, (number * self.drawings).long())

    def floats(self, numbers: Tensor) -> Tensor:
        """These pictures as float32 in [-1, 1]."""
        return self.pixels[numbers].float() / 127.5 - 1


def load_pictures(archives: Iterable[Path], seed: int = 0, scale: float = 1.0) -> Pictures:
    """Read archives of drawings and photographs; photographs are cut into squares.

    Args:
        archives: files of `write_archive`.
        seed: of the squares and of what captions leave out.
        scale: of the numbers of squares, for quick trials.

    Raises:
        DataError: an archive is none, or holds what must not be seen.
    """
    samples = [sample for path in archives for sample in read_archive(path)]
    for sample in samples:
        refuse_held_out(sample)
    drawings = [s for s in samples if not s.record.person]
    photos = [s for s in samples if s.record.person]
    rng = np.random.default_rng(seed)
    texts = [_drawing_texts(s, rng) for s in drawings]
    pixels = [np.asarray(s.picture) for s in drawings]
    for view in _views(photos, seed, scale):
        pixels.append(np.asarray(view.picture))
        texts.append(view.record.texts)
    if not pixels:
        raise DataError("expected archives with pictures, but they hold none; draw some or read openpeople first.")
    return Pictures(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), texts, len(drawings))


def refuse_held_out(sample: Sample) -> None:
    """Raise DataError for a sample that training must not see."""
    record = sample.record
    held = is_person_held_out(record.person) if record.person else is_drawing_held_out(record.index)
    if held:
        raise DataError(
            f"{record.name} is held out (mldm_plugin.people_mini.split) and must not be trained on; "
            "write the archive anew without it."
        )


def _drawing_texts(sample: Sample, rng: np.random.Generator) -> list[str]:
    """The full caption twice, two that leave words out, and one of the data set's own."""
    full, *partial = partial_captions(sample.record.attributes, rng.random, 2)
    own = [f"drawing, {text.lower()}" for text in sample.record.texts]
    return [full, full, *partial, own[int(rng.integers(len(own)))] if own else full]


def _views(photos: list[Sample], seed: int, scale: float) -> Iterable[Sample]:
    def views(numbered: tuple[int, Sample]) -> list[Sample]:
        number, sample = numbered
        count = VIEWS if sample.record.texts[1] else SINGLE_VIEWS
        made = []
        for i in range(max(1, round(count * scale))):
            made.append(view_of(sample, np.random.default_rng(np.random.SeedSequence([seed, number, i]))))
        return made

    with ThreadPoolExecutor(8) as pool:
        for some in tqdm(pool.map(views, enumerate(photos)), total=len(photos), desc="photographs", mininterval=5):
            yield from some


def with_mirrored_drawings(pictures: Pictures) -> Pictures:
    """The drawings mirrored before them all; their captions' left and right change places."""
    drawn, texts = pictures.pixels[: pictures.drawings], pictures.texts[: pictures.drawings]
    turned = [[mirrored(text) for text in some] for some in texts]
    return Pictures(torch.cat([drawn.flip(-1), pictures.pixels]), [*turned, *pictures.texts], 2 * pictures.drawings)


@dataclass(frozen=True)
class Captions:
    """Tokens of every picture's captions.

    Attributes:
        tokens: int64 (texts, 77); the last row is the empty caption.
        rows: int64 (pictures, most captions); a picture with fewer repeats them.
    """

    tokens: Tensor
    rows: Tensor

    @property
    def empty(self) -> int:
        return len(self.tokens) - 1


def tokenized(texts: list[list[str]], tokens_of: Callable[[list[str]], Tensor], device: Any = "cpu") -> Captions:
    """Tokens of the captions; each text is read once."""
    numbers: dict[str, int] = {}
    for some in texts:
        for text in some:
            numbers.setdefault(text, len(numbers))
    most = max(len(some) for some in texts)
    rows = torch.tensor([[numbers[some[i % len(some)]] for i in range(most)] for some in texts])
    return Captions(tokens_of([*numbers, ""]).to(device), rows.to(device))


def shown(pixels: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] as a picture."""
    array = ((pixels.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)


def sheet(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Pictures of 128 pixels side by side."""
    made = Image.new("RGB", (columns * SIDE, -(-len(pictures) // columns) * SIDE))
    for i, picture in enumerate(pictures):
        made.paste(picture, (i % columns * SIDE, i // columns * SIDE))
    return made
