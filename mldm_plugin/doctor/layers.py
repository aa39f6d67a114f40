"""What a training did to the layers of a network, in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Layer:
    """One layer.

    Args:
        name: as in the file.
        moved: ‖ΔW‖, the Frobenius norm of what training added to its weights.
        base: ‖W₀‖ before; None where it is not known, 0 where it began at zero.
    """

    name: str
    moved: float
    base: float | None = None

    @property
    def share(self) -> float | None:
        """‖ΔW‖ / ‖W₀‖, None where it is not known."""
        return self.moved / self.base if self.base else None


@dataclass
class Changes:
    """All that was found in a file of weights.

    Args:
        what: LoRA or ControlNet.
        layers: what can be compared with what they began as; those of a LoRA begin at no change.
        zero: a ControlNet's zero convolutions, by which alone it reaches the U-Net.
        broken: tensors that hold NaN or infinity.
        unscaled: layers of a LoRA whose α the file does not tell.
        misfits: layers whose shape is not that of the base.
        unmeasured: tensors of other kinds.
        tensors: how many there are in all.
        base: what was compared with, as the user knows it; None where there was nothing.
    """

    what: str
    layers: list[Layer] = field(default_factory=list)
    zero: list[Layer] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    unscaled: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)
    unmeasured: list[str] = field(default_factory=list)
    tensors: int = 0
    base: str | None = None

    @property
    def share(self) -> float | None:
        """‖ΔW‖ / ‖W₀‖ of all layers together that are known in both."""
        return total_share(self.layers)


def total(norms: Iterable[float]) -> float:
    """The norm of layers together.

    >>> total([3.0, 4.0])
    5.0
    """
    return math.hypot(*norms)


def total_share(layers: Sequence[Layer]) -> float | None:
    known = [layer for layer in layers if layer.base]
    base = total(layer.base or 0.0 for layer in known)
    return total(layer.moved for layer in known) / base if base else None


def printable(text: str) -> str:
    """Names of a stranger's file, so that they cannot steer a terminal.

    >>> printable("to_q" + chr(27) + "[2J")
    'to_q?[2J'
    """
    return "".join(character if character.isprintable() else "?" for character in text)
