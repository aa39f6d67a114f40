"""Timesteps: uniform as diffusers draws them, or stratified over all images of an optimizer step."""

from __future__ import annotations

import itertools
import json
import random
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from run_trainer import command, forget_accelerate, launch

from mldm_plugin.training import generators
from mldm_plugin.training.flags import ControlNetFlags
from mldm_plugin.training.timesteps import Timesteps, deal, stratified

CPU = torch.device("cpu")
SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**32))
# With probability 1e-6 a chi-square of 9 degrees of freedom is larger (scipy.stats.chi2.isf).
CHI_SQUARE_9 = 44.81

WATCHER = """
import json, os
from pathlib import Path
from mldm_plugin import hookimpl

class Size:
    needs = frozenset()
    def __call__(self, step):
        return step.pred_latents.square().flatten(1).mean(dim=1)

@hookimpl
def register_losses(register):
    register("size", Size)

@hookimpl
def after_loss(step, report):
    with (Path(__file__).parent / f"drawn-{os.environ.get('RANK', '0')}.jsonl").open("a") as file:
        file.write(json.dumps(step.timesteps.tolist()) + "\\n")
"""


def flags_of(**changes):
    needed = {"pretrained_model_name_or_path": "sd", "train_data_dir": "data", "seed": 3}
    return ControlNetFlags(**needed | {"timestep_sampling": "stratified"} | changes)


def timesteps_of(rank, ranks, **flags):
    return Timesteps(SimpleNamespace(process_index=rank, num_processes=ranks), flags_of(**flags), 1000)


def assert_one_of_each_part(drawn, levels):
    """The k-th smallest of B timesteps lies in the k-th of B equal parts; a level that two parts share is in both."""
    total = len(drawn)
    for s, t in enumerate(sorted(drawn)):
        assert s * levels // total <= t <= ((s + 1) * levels - 1) // total


@pytest.mark.parametrize(("ranks", "slots", "levels"), [(3, 2, 10), (2, 3, 7), (1, 4, 6), (4, 1, 3)])
def test_every_slot_is_exactly_uniform(ranks, slots, levels):
    """All rotations, orders and offsets, each as often as the others: every slot gets each timestep equally often."""
    counts = np.zeros((ranks, slots, levels), int)
    rank, slot = np.indices((ranks, slots))
    for rotation in range(ranks):
        for order in itertools.permutations(range(slots)):
            for u in range(levels):
                table = deal(rotation, np.tile(order, (ranks, 1)), np.full((ranks, slots), u), levels)
                np.add.at(counts, (rank, slot, table), 1)
    assert (counts == counts[0, 0, 0]).all()
    assert counts[0, 0, 0] > 0


def test_many_draws_are_uniform_in_every_slot():
    """Chi-square of 4000 draws for each slot; ten levels over six images, so parts cut through levels."""
    draws = np.stack([stratified(2, 3, 10, (0, step)) for step in range(4000)])
    for rank, slot in np.ndindex(2, 3):
        counts = np.bincount(draws[:, rank, slot], minlength=10)
        assert ((counts - 400) ** 2 / 400).sum() < CHI_SQUARE_9


def test_what_a_slot_gets_says_nothing_of_its_next_step():
    draws = np.stack([stratified(2, 2, 1000, (5, step)) for step in range(4000)]).reshape(4000, 4).astype(float)
    for slot in range(4):
        assert abs(np.corrcoef(draws[:-1, slot], draws[1:, slot])[0, 1]) < 5 / 4000**0.5


@given(SHAPES)
def test_one_timestep_of_each_part_of_the_schedule(shape):
    ranks, slots, levels, seed = shape
    assert_one_of_each_part(stratified(ranks, slots, levels, (seed, 0)).ravel().tolist(), levels)


@given(SHAPES, st.floats(0, 1))
def test_gated_images_are_as_many_as_expected_and_spread_evenly(shape, share):
    ranks, slots, levels, seed = shape
    gate = int(share * (levels - 1))
    gated = stratified(ranks, slots, levels, (seed, 0)) <= gate
    expected = Fraction((gate + 1) * ranks * slots, levels)
    assert abs(int(gated.sum()) - expected) < 1
    assert np.ptp(gated.sum(axis=1)) <= 1


def test_no_rank_is_always_the_one_with_more():
    """One gated image among four ranks: each has it in about a quarter of the steps."""
    counts = np.sum([(stratified(4, 2, 8, (1, step)) == 0).sum(axis=1) for step in range(2000)], axis=0)
    assert counts.sum() == 2000
    assert (abs(counts - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5).all()


def test_ranks_and_micro_batches_are_parts_of_one_table():
    """Two processes, an accumulation of three batches of two: all twelve images together are stratified."""
    own = [timesteps_of(rank, 2, train_batch_size=2, gradient_accumulation_steps=3) for rank in (0, 1)]
    for step, first in ((0, 0), (1, 3), (7, 0)):
        batches = [t.draw(2, CPU, step=step, micro_batch=first + m) for t in own for m in range(3)]
        assert all(b.dtype == torch.int64 for b in batches)
        assert_one_of_each_part(torch.cat(batches).tolist(), 1000)


def test_steps_and_seeds_differ():
    drawn = {
        tuple(timesteps_of(0, 1, train_batch_size=8, seed=seed).draw(8, CPU, step=step, micro_batch=0).tolist())
        for seed in (3, 4)
        for step in (0, 1)
    }
    assert len(drawn) == 4


def test_a_smaller_batch_leaves_parts_out_at_random():
    """The one image of a batch that could hold four is uniform: 4000 of them, ten bins."""
    timesteps = timesteps_of(0, 1, train_batch_size=4)
    single = torch.cat([timesteps.draw(1, CPU, step=step, micro_batch=0) for step in range(4000)])
    counts = torch.bincount(single // 100, minlength=10)
    assert ((counts - 400) ** 2 / 400).sum() < CHI_SQUARE_9


def test_uniform_is_torch_randint():
    timesteps = timesteps_of(0, 1, timestep_sampling="uniform")
    torch.manual_seed(0)
    drawn = timesteps.draw(5, CPU, step=2, micro_batch=1)
    torch.manual_seed(0)
    assert drawn.equal(torch.randint(0, 1000, (5,)))
    assert ControlNetFlags.model_fields["timestep_sampling"].default == "uniform"


def test_no_generator_of_the_host_is_touched():
    """Without --seed, too, where one is drawn."""
    forget_accelerate()
    before = generators.capture()
    stratified_timesteps = Timesteps(Accelerator(cpu=True), flags_of(seed=None), 1000)
    stratified_timesteps.draw(4, CPU, step=0, micro_batch=0)
    after = (random.random(), np.random.normal(), torch.rand(2).tolist())
    generators.restore(before)
    assert after == (random.random(), np.random.normal(), torch.rand(2).tolist())
    forget_accelerate()


@pytest.fixture
def watched(tmp_path):
    """The folder of a plugin that writes down each micro-batch's timesteps, and the flags to train with it."""
    (tmp_path / "watcher.py").write_text(WATCHER)
    (tmp_path / "own.yaml").write_text("losses:\n  size: {weight: 0.5, max_timestep: 500}\n")
    plugin = ["--loss-plugin", tmp_path / "watcher.py", "--preset", tmp_path / "own.yaml", "--panel_steps", 0]
    return tmp_path, [*plugin, "--timestep_sampling", "stratified"]


def drawn_by(folder, rank):
    """The timesteps of each micro-batch since the last call."""
    path = folder / f"drawn-{rank}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    return lines


@pytest.mark.parametrize("trainer", ["train", "train_lora"])
def test_a_resumed_run_draws_the_same(trainer, watched, request, tmp_path):
    folder, flags = watched
    flags += ["--max_train_steps", 5, "--checkpointing_steps", 2]
    run = request.getfixturevalue(trainer)
    assert run(tmp_path / "run", *flags) == 0
    whole, log = drawn_by(folder, 0), (tmp_path / "run" / "metrics.jsonl").read_text()
    assert [len(batch) for batch in whole] == [2, 2, 2, 1, 2]
    assert run(tmp_path / "run", *flags, "--resume_from_checkpoint", "checkpoint-2") == 0
    assert drawn_by(folder, 0) == whole[2:]
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == log


def test_two_processes_without_a_seed(watched, tiny_pipeline, make_data, tmp_path):
    """They agree on one, all their images together are stratified, and a resumed run takes the seed up again."""
    folder, flags = watched
    data = make_data(tmp_path / "data", 16, annotated=False)
    flags += ["--max_train_steps", 4, "--checkpointing_steps", 2, "--gradient_accumulation_steps", 2]
    argv = command(tmp_path / "run", tiny_pipeline, data, *flags)
    seed = argv.index("--seed")
    del argv[seed : seed + 2]
    statuses, outputs = launch(argv, tmp_path)
    assert statuses == [0, 0], outputs
    whole = [drawn_by(folder, rank) for rank in (0, 1)]
    for step in range(4):
        batches = [batch for own in whole for batch in own[2 * step : 2 * step + 2]]
        assert [len(batch) for batch in batches] == [2, 2, 2, 2]
        assert_one_of_each_part([t for batch in batches for t in batch], 1000)

    statuses, outputs = launch([*argv, "--resume_from_checkpoint", "checkpoint-2"], tmp_path)
    assert statuses == [0, 0], outputs
    assert [drawn_by(folder, rank) for rank in (0, 1)] == [own[4:] for own in whole]
