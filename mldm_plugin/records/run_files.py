"""The files that a run adds to in each optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mldm_plugin.records.files import write_text
from mldm_plugin.records.machine import MachineFile
from mldm_plugin.records.metrics import MetricsFile

PROOF = "proof.txt"


class RunFiles:
    """`metrics.jsonl`, `machine.json`, and `proof.txt`, which holds the start-up tables as they were told.

    Args:
        folder: of the run, which is there.
        step: optimizer steps that are done, None where nobody knows it.
        processes: that train together.
    """

    def __init__(self, folder: Path, step: int | None, processes: int = 1) -> None:
        self._proof = folder / PROOF
        self._told: str | None = None  # what an earlier run left is not known
        self._metrics = MetricsFile(folder)
        self._machine = MachineFile(folder, step, processes)

    def add(self, record: Mapping[str, float | None], proof: str) -> None:
        """An optimizer step that is done, and all tables so far: a loss that waited for a picture adds its own."""
        self._metrics.write(record)
        self._machine.add_step()
        self.keep(proof)

    def keep(self, proof: str) -> None:
        """Have the file hold these tables; a run without losses has none, and no file."""
        if proof != self._told:
            if proof:
                write_text(self._proof, proof)
            else:
                self._proof.unlink(missing_ok=True)
            self._told = proof

    def close(self) -> None:
        """The run has ended: how fast it was."""
        self._machine.write()
