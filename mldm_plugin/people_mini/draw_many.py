"""Draws many people with several processes, shard by shard; an interrupted run goes on where it was."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from mldm_plugin.people_mini.archive import write_archive
from mldm_plugin.people_mini.drawn import draw_sample
from mldm_plugin.people_mini.split import is_drawing_held_out

SHARD = 100  # numbers in a shard, of which about half are wanted


def draw_many(folder: Path, start: int, stop: int, *, held_out: bool, quality: int | None, workers: int) -> list[Path]:
    """Draw the wanted ones of drawings `start` to `stop` and return the shards' paths, in order.

    Args:
        folder: of the shards; those that are there are kept.
        start, stop: drawing numbers; multiples of SHARD.
        held_out: whether the held-out tenth is drawn, or the others.
        quality: of WebP; None keeps every pixel.
        workers: processes; 1 draws in this one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(start, stop, SHARD)
    paths = [folder / f"{first:07d}.zip" for first in starts]
    wanted = [(first, path) for first, path in zip(starts, paths, strict=True) if not path.is_file()]
    job = partial(draw_shard, held_out=held_out, quality=quality)
    with tqdm(total=len(starts), initial=len(starts) - len(wanted), desc="shards", mininterval=5) as bar:
        if workers == 1:
            for one in wanted:
                job(one)
                bar.update()
        else:
            with ProcessPoolExecutor(workers, get_context("spawn"), one_thread) as pool:
                for _ in pool.map(job, wanted):
                    bar.update()
    return paths


def one_thread() -> None:
    """For a process among several."""
    os.environ["OMP_NUM_THREADS"] = "1"


def draw_shard(shard: tuple[int, Path], *, held_out: bool, quality: int | None) -> int:
    """Draw one shard into its file."""
    first, path = shard
    numbers = (i for i in range(first, first + SHARD) if is_drawing_held_out(i) == held_out)
    return write_archive(path, (made for i in numbers if (made := draw_sample(i))), quality)
