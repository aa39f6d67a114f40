"""The timestep of each image: drawn at random one by one, or spread over a global batch."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from mldm_plugin.records.files import write_text
from mldm_plugin.training.flags import TrainerFlags

STRATIFIED = "stratified"
SEED_FILE = "timesteps.json"


class Timesteps:
    """Draws t of each image, as `--timestep_sampling` says.

    `uniform` is diffusers' `torch.randint` from the global generator. `stratified` draws from `stratified` below, by
    the seed of the run and the number of the optimizer step: every process knows the timesteps of all, and a resumed
    run draws them again. It touches no other generator.

    The strata span all images between two optimizer steps: under gradient accumulation processes wait for each other
    only then, so the work of a whole accumulation is what must be even.

    Args:
        accelerator: of the run. Without `--seed` the first process draws one for all, and checkpoints keep it.
        flags: of the run.
        levels: the scheduler's number of timesteps.
    """

    def __init__(self, accelerator: Accelerator, flags: TrainerFlags, levels: int) -> None:
        self._rank, self._ranks = accelerator.process_index, accelerator.num_processes
        self._images, self._accumulated = flags.train_batch_size, flags.gradient_accumulation_steps
        self._levels = levels
        self._seed = flags.seed if flags.timestep_sampling == STRATIFIED else None
        if flags.timestep_sampling == STRATIFIED and self._seed is None:
            self._seed = gather_object([secrets.randbits(64)])[0]
            self._keep_seed(accelerator)

    def draw(self, images: int, device: torch.device, *, step: int, micro_batch: int) -> Tensor:
        """t of the `images` of this process, (images,) int64 in 0 … levels - 1.

        `step` counts the optimizer steps that are done, `micro_batch` the batches of this pass before this one. A
        batch at the end of a pass, with fewer images than others, leaves strata out, each with the same probability.
        """
        if self._seed is None:
            return torch.randint(0, self._levels, (images,), device=device)
        table = stratified(self._ranks, self._images * self._accumulated, self._levels, (self._seed, step))
        first = micro_batch % self._accumulated * self._images
        return torch.from_numpy(table[self._rank, first : first + images]).to(device, non_blocking=True)

    def _keep_seed(self, accelerator: Accelerator) -> None:
        def save(models: list[Any], weights: list[Any], folder: str) -> None:
            if accelerator.is_main_process:
                write_text(Path(folder) / SEED_FILE, json.dumps({"seed": self._seed}) + "\n")

        def load(models: list[Any], folder: str) -> None:
            path = Path(folder) / SEED_FILE
            if path.exists():  # not in a checkpoint of diffusers' script
                self._seed = json.loads(path.read_text(encoding="utf-8"))["seed"]

        accelerator.register_save_state_pre_hook(save)
        accelerator.register_load_state_pre_hook(load)


def stratified(ranks: int, slots: int, levels: int, key: tuple[int, ...]) -> NDArray[np.int64]:
    """One timestep from each of B = ranks · slots equal parts of the schedule, dealt out to all, (ranks, slots).

    What is random is drawn by `key` alone, numbers of at least 0; the parts are dealt out by `deal`.
    """
    random = np.random.default_rng(key)
    orders = random.permuted(np.tile(np.arange(slots), (ranks, 1)), axis=1)
    within = random.integers(levels, size=(ranks, slots))
    return deal(int(random.integers(ranks)), orders, within, levels)


def deal(rotation: int, orders: NDArray[np.int64], within: NDArray[np.int64], levels: int) -> NDArray[np.int64]:
    """t = ⌊(s · levels + u) / B⌋ of each slot, where s is its stratum, 0 … B - 1.

    Strata go round the ranks one by one, so that the lowest ones, where gates are open, are spread as evenly as can
    be: their numbers on two ranks differ by at most 1. Where `rotation`, the rows of `orders` and `within` are
    uniform, so is s for every slot, and s · levels + u is uniform on 0 … B · levels - 1, of which each t takes B
    values: t is uniform whether or not B divides `levels`.

    Args:
        rotation: of the ranks, in 0 … ranks - 1.
        orders: (ranks, slots), each row a permutation of 0 … slots - 1.
        within: u, (ranks, slots), in 0 … levels - 1.
        levels: number of timesteps.

    >>> deal(0, np.array([[0, 1], [0, 1]]), np.zeros((2, 2), int), 1000)
    array([[  0, 500],
           [250, 750]])
    """
    ranks, slots = orders.shape
    strata = orders * ranks + (np.arange(ranks)[:, None] - rotation) % ranks
    return (strata * levels + within) // (ranks * slots)
