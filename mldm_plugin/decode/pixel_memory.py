"""How many pictures go through decoder and losses at a time, from what the start-up proof saw one of them take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mldm_plugin.engine.step import DiffusionStep

GB = 1e9
# Without a budget, pictures that take less than this in all share a decode. One picture of 512² takes more by itself
# (7 GB in float32), so it goes alone. Chosen.
_TOGETHER_GB = 2.0


@dataclass
class PixelMemory:
    """What one picture's activations take, and how many pictures that lets through at a time.

    Attributes:
        budget_gb: what the pixel path may take at most, in GB of 10⁹ bytes; None sets no limit to a single picture.
        decoder: bytes that the decoder keeps for the backward pass of one picture.
        losses: by loss, the bytes that it keeps beyond that; for each face where it looks at faces.
        passing: bytes that come and go on top, in the forward or backward pass.
        pixels, share: of the picture that this was measured on, and how much of it was decoded.
        overfull: whether a picture came that takes more than the budget by itself.
    """

    budget_gb: float | None = None
    decoder: int = 0
    losses: dict[str, int] = field(default_factory=dict)
    passing: int = 0
    of_faces: set[str] = field(default_factory=set)
    pixels: int = 1
    share: float = 1.0
    overfull: bool = False

    def learn(
        self, loss: str, *, decoder: int, kept: int, peak: int, faces: int | None, pixels: int, share: float = 1.0
    ) -> None:
        """Note what one picture took: kept by the decoder, then by decoder and loss, and at most.

        `faces` is their number in it, None for a loss that does not look at them.
        """
        self.decoder, self.pixels, self.share = decoder, pixels, share
        self.losses[loss] = max(0, kept - decoder) // (faces or 1)
        self.passing = max(self.passing, peak - kept)
        if faces:
            self.of_faces.add(loss)

    def of_picture(self, pixels: int, faces: int, share: float | None = None) -> float:
        """Bytes for a picture of so many pixels with so many faces, all losses at once; `share` of it is decoded."""
        scale = pixels / self.pixels
        decoded = scale if share is None else scale * share / self.share
        losses = sum(b * faces if name in self.of_faces else b * scale for name, b in self.losses.items())
        return self.decoder * decoded + self.passing * scale + losses

    def exceeded(self, pixels: int) -> bool:
        """Whether a single picture with one face takes more than the budget, if all of it is decoded."""
        return self.budget_gb is not None and self.of_picture(pixels, 1, share=1.0) > self._limit

    def groups(
        self, step: DiffusionStep, rows: Sequence[int], pixels: int, shares: Sequence[float] | None = None
    ) -> Iterator[list[int]]:
        """`rows` of a step, in order, in groups that fit; a group has one row at least.

        `shares` say for each row how much of the picture is decoded.
        """
        group: list[int] = []
        taken = 0.0
        for i, row in enumerate(rows):
            faces = 0 if step.face_boxes is None else len(step.face_boxes[row])
            needed = self.of_picture(pixels, faces, None if shares is None else shares[i])
            self.overfull |= self.budget_gb is not None and needed > self._limit
            if group and taken + needed > self._limit:
                yield group
                group, taken = [], 0.0
            group.append(row)
            taken += needed
        if group:
            yield group

    def describe(self, pixels: int, checkpointing: bool, in_windows: bool = False) -> str:
        """One line for the start-up table."""
        scale = pixels / self.pixels
        decoder = (self.decoder + self.passing) * scale
        parts = [f"decoder {_in_words(decoder)}{' (checkpointed)' if checkpointing else ''}"]
        for name, taken in self.losses.items():
            by_face = name in self.of_faces
            parts.append(f"{name} {_in_words(taken if by_face else taken * scale)}{' a face' if by_face else ''}")
        one = self.of_picture(pixels, 1)
        text = f"memory: {_in_words(one)} a picture ({', '.join(parts)}), {max(1, int(self._limit / one))} at a time"
        if in_windows:
            text += f"; {_in_words(self.of_picture(pixels, 1, share=1.0))} where a window is the whole picture"
        if self.exceeded(pixels):
            text = f"warning: {text}; pixel_memory_gb is {self.budget_gb:g}: lower the resolution, or decode: region"
        return text

    @property
    def _limit(self) -> float:
        return (self.budget_gb or _TOGETHER_GB) * GB


def _in_words(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= 0.1 * GB else f"{size / 1e6:.1f} MB"
