"""How trained weights are stored: in a run folder for those who use them, in a checkpoint to go on from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn


@dataclass(frozen=True)
class WeightsFormat:
    """The files that diffusers' script leaves, and how to write and read them.

    Args:
        file: the weight file in the run folder.
        in_checkpoint: the folder inside a checkpoint that holds the same; empty for the checkpoint itself.
        save: writes a trained network into a folder.
        load: puts what `save` wrote back into the network; raises RunFolderError if it does not fit.
        start_flag: the flag that starts a new run from such a folder, if there is one.
    """

    file: str
    in_checkpoint: str
    save: Callable[[nn.Module, Path], None]
    load: Callable[[nn.Module, Path], None]
    start_flag: str | None = None

    def save_whole(self, network: nn.Module, folder: Path) -> None:
        """Save into a run folder, each file whole or not there, the configuration last."""
        partial = folder / ".weights.partial"
        self.save(network, partial)
        for file in sorted(partial.iterdir(), key=lambda p: p.name == "config.json"):
            file.replace(folder / file.name)
        partial.rmdir()
