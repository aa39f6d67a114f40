"""Checkpoints: written whole or not at all, the old ones kept until the new one is there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger

from mldm_plugin.errors import MldmError, RunFolderError
from mldm_plugin.training.agreement import together
from mldm_plugin.training.run_folder import checkpoints_in, step_of
from mldm_plugin.training.trainer import Trainer

log = get_logger(__name__)


class Checkpoints:
    """The `checkpoint-N` folders of a run.

    Each holds what diffusers' script writes (trained weights, optimizer, learning rate, generators) and
    `position_R.pt`, where process R stands in its pass over the data.

    Args:
        accelerator: with the model, optimizer, scheduler and loader prepared.
        trainer: for what is trained, its format, and `--checkpoints_total_limit`.
        folder: the run folder.
    """

    def __init__(self, accelerator: Accelerator, trainer: Trainer, folder: Path) -> None:
        self._accelerator = accelerator
        self._trainer = trainer
        self._folder = folder
        accelerator.register_save_state_pre_hook(self._save_trained)
        accelerator.register_load_state_pre_hook(self._load_trained)

    def save(self, step: int, position: dict[str, Any]) -> Path:
        """Write `checkpoint-<step>`; every process calls this at the same step.

        Raises:
            MldmError: as `require_finite`; then the checkpoints are as they were.
        """
        self.require_finite(step)
        accelerator = self._accelerator
        final = self._folder / f"checkpoint-{step}"
        partial = self._folder / f".{final.name}.partial"
        if accelerator.is_main_process:
            for left_over in self._folder.glob(".checkpoint-*"):
                shutil.rmtree(left_over)
            partial.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(partial))
        torch.save(position, partial / self._position_file)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _flush(partial)
            self._put_in_place(partial, final)
            self._remove_oldest(keep=final)
        accelerator.wait_for_everyone()
        log.info(f"saved {final}")
        return final

    def require_finite(self, step: int) -> None:
        """Refuse to go on to saving weights that are NaN or infinite. Every process calls this at the same step.

        Raises:
            MldmError: on every process alike, for all have the same weights.
        """
        with together(self._accelerator):
            if torch.stack([torch.isfinite(p.detach()).all() for p in self._trainer.trainable()]).all():
                return
            good = [c for c in checkpoints_in(self._folder) if (step_of(c) or 0) < step]
            last = f"the last good checkpoint is {good[-1]}" if good else "there is no earlier checkpoint"
            if good and (flag := self._trainer.start_flag):
                last += f", to start from with {flag} {good[-1] / self._trainer.in_checkpoint}"
            raise MldmError(
                f"the trained weights are NaN or infinite at step {step}, so nothing was saved there; {last}. Lower "
                "--learning_rate, or train in float32 (--mixed_precision no), in another --output_dir."
            )

    def find(self, name: str) -> Path | None:
        """The checkpoint that `--resume_from_checkpoint` names; None if `latest` finds none.

        Raises:
            RunFolderError: a checkpoint that the run folder does not have, or a path into another folder.
        """
        existing = checkpoints_in(self._folder)
        if name == "latest":
            return existing[-1] if existing else None
        wanted, parent = Path(name).name, Path(name).parent
        if parent != Path() and parent.resolve() != self._folder.resolve():
            raise RunFolderError(
                f"--resume_from_checkpoint {name} does not lie in the run folder {self._folder}: a run is resumed in "
                f"the folder of its checkpoints, with --output_dir {parent}."
            )
        for checkpoint in existing:
            if checkpoint.name == wanted:
                return checkpoint
        raise RunFolderError(
            f"{self._folder} has no checkpoint {wanted!r}; it has "
            f"{', '.join(c.name for c in existing) or 'none'}. Resume from one of them, or from latest."
        )

    def load(self, checkpoint: Path) -> dict[str, Any] | None:
        """Load a checkpoint; its position, or None if diffusers' script wrote it and there is none."""
        self._accelerator.load_state(str(checkpoint))
        position = checkpoint / self._position_file
        return torch.load(position, weights_only=True) if position.exists() else None

    @property
    def _position_file(self) -> str:
        return f"position_{self._accelerator.process_index}.pt"

    def save_weights(self) -> None:
        """Save what is trained into the run folder, each file whole or not there, the configuration last."""
        partial = self._folder / ".weights.partial"
        self._trainer.publish(partial)
        for file in sorted(partial.iterdir(), key=lambda p: p.name in ("config.json", "model_index.json")):
            if file.is_dir():  # of a pipeline, which a resumed run writes again
                shutil.rmtree(self._folder / file.name, ignore_errors=True)
            file.replace(self._folder / file.name)
        partial.rmdir()

    def _save_trained(self, models: list[Any], weights: list[Any], folder: str) -> None:
        """Store what is trained as diffusers does, in the place of accelerate's own file."""
        weights.clear()  # tells accelerate that the models are taken care of
        if self._accelerator.is_main_process:
            self._trainer.save(Path(folder) / self._trainer.in_checkpoint)

    def _load_trained(self, models: list[Any], folder: str) -> None:
        models.clear()
        self._trainer.load(Path(folder) / self._trainer.in_checkpoint)

    def _put_in_place(self, partial: Path, final: Path) -> None:
        replaced = self._folder / f".{final.name}.replaced"
        if final.exists():  # a run that was resumed from before this step
            final.replace(replaced)
        partial.replace(final)
        shutil.rmtree(replaced, ignore_errors=True)

    def _remove_oldest(self, keep: Path) -> None:
        limit = self._trainer.flags.checkpoints_total_limit
        if limit is None:
            return
        others = [c for c in checkpoints_in(self._folder) if c != keep]
        for checkpoint in others[: max(0, len(others) - (limit - 1))]:
            going = checkpoint.with_name(f".{checkpoint.name}.removed")
            checkpoint.replace(going)
            shutil.rmtree(going)
            log.info(f"removed {checkpoint}")


def _flush(folder: Path) -> None:
    """Have the files of a folder on the disk before its name says that they are."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
