"""The order of batches over a run, which a checkpoint can pick up at any place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from mldm_plugin.data.batch import checked, collate
from mldm_plugin.data.training_set import GeneratorState, TrainingSet
from mldm_plugin.training import generators
from mldm_plugin.training.stop import leave_to_parent


def make_dataloader(training_set: TrainingSet, batch_size: int, workers: int) -> DataLoader[Any]:
    """A shuffling loader, as diffusers' script makes it."""
    return DataLoader(
        training_set,
        shuffle=True,
        collate_fn=collate,
        batch_size=batch_size,
        num_workers=workers,
        worker_init_fn=leave_to_parent,
    )


class Batches:
    """Passes over the prepared loader.

    A pass is fixed by the state of the generators when it starts: the shuffle, the seeds of the workers, and the
    crops and captions in the order in which they are loaded. So a checkpoint holds that state and the number of
    batches used. To resume, the state is put back, the pass started anew, the used batches let by without loading
    them, and then the generators set to their state at the checkpoint. accelerate loads one batch ahead; when
    the used ones have gone by it has loaded the next, as it had when the checkpoint was written. Where pictures are
    loaded in this process, the training steps drew from the same generators in between, so a checkpoint also holds
    the state that this next batch was drawn from.
    """

    def __init__(self, loader: Any, training_set: TrainingSet) -> None:
        self._loader = loader
        self._training_set = training_set
        self._start: generators.State | None = None
        self._sampler_start: torch.Tensor | None = None
        self._resume_at: generators.State | None = None
        self._drawn_from: GeneratorState | None = None
        self.epoch = 0
        self.used = 0

    def __len__(self) -> int:
        return len(self._loader)

    def one_pass(self) -> Iterator[dict[str, Any]]:
        """The batches of this epoch that are still to come."""
        iterator = self._resumed_pass() if self.used else self._new_pass()
        for batch in iterator:
            self.used += 1
            yield checked(batch)
        self.epoch, self.used = self.epoch + 1, 0

    def state(self) -> dict[str, Any]:
        """Where this process stands: to be saved with a checkpoint."""
        over = self.used == len(self)
        sampler = self._sampler_generator
        return {
            "epoch": self.epoch + over,
            "used": 0 if over else self.used,
            "start": self._start,
            "sampler": sampler.get_state() if over and sampler is not None else self._sampler_start,
            "drawn_from": self._training_set.before_last_batch,
            "now": generators.capture(),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a state that was saved."""
        self.epoch, self.used = state["epoch"], state["used"]
        self._start, self._sampler_start = state["start"], state["sampler"]
        self._resume_at = state["now"]
        self._drawn_from = state.get("drawn_from")  # checkpoints of before this was kept drew captions only

    def _new_pass(self) -> Iterator[dict[str, Any]]:
        if self._resume_at is not None:
            generators.restore(self._resume_at)
            self._restore_sampler()
            self._resume_at = None
        self._start = generators.capture()
        sampler = self._sampler_generator
        self._sampler_start = None if sampler is None else sampler.get_state()
        self._training_set.skip_batches(0)
        return iter(self._loader)

    def _resumed_pass(self) -> Iterator[dict[str, Any]]:
        if self._start is None or self._resume_at is None:
            raise RuntimeError("a pass can be taken up only from a saved state")
        generators.restore(self._start)
        self._restore_sampler()
        self._training_set.skip_batches(self.used, self._drawn_from)
        iterator = iter(self._loader)
        for _ in range(self.used):
            next(iterator)
        generators.restore(self._resume_at)
        self._resume_at = None
        return iterator

    @property
    def _sampler_generator(self) -> torch.Generator | None:
        """What shuffles, where processes share the data; a single process shuffles by the global generator."""
        return getattr(self._loader, "synchronized_generator", None)

    def _restore_sampler(self) -> None:
        if self._sampler_generator is not None and self._sampler_start is not None:
            self._sampler_generator.set_state(self._sampler_start)
