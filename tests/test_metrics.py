from __future__ import annotations

import json
from types import SimpleNamespace

import torch

from mldm_plugin.records.metrics import MetricsFile, StepMeter

ALONE = SimpleNamespace(num_processes=1)


class Pair:
    """Stands in for an accelerator of two processes that hold the same numbers, but for the flags."""

    num_processes = 2
    device = torch.device("cpu")

    def reduce(self, tensor, reduction):
        assert reduction == "sum"
        return tensor * 2


def test_terms_count_as_often_as_they_had_images():
    meter = StepMeter()
    meter.add({"loss": 1.0, "ldm": 2.0, "face": 4.0, "face_gated": 3.0})
    meter.add({"loss": 3.0, "ldm": 2.0, "face": 8.0, "face_gated": 1.0})
    meter.add({"loss": 5.0, "ldm": 2.0, "face": None, "face_gated": 0.0})
    numbers, flags = meter.mean(ALONE, [False, True])
    assert numbers == {"face": 5.0, "face_gated": 4, "ldm": 2.0, "loss": 3.0}
    assert flags == [False, True]
    assert meter.mean(ALONE, [])[0] == {}


def test_a_term_that_saw_nothing_is_null_and_one_that_was_not_finite_is_counted():
    meter = StepMeter()
    meter.add({"loss": 1.0, "face": None, "face_gated": 0.0, "lpips": None, "lpips_gated": 2.0, "lpips_nonfinite": 1.0})
    numbers, _ = meter.mean(ALONE, [])
    assert numbers == {
        "face": None,
        "face_gated": 0,
        "loss": 1.0,
        "lpips": None,
        "lpips_gated": 2,
        "lpips_nonfinite": 1,
    }


def test_processes_are_summed_and_every_process_has_the_same_numbers_to_send():
    finite, broken = StepMeter(), StepMeter()
    finite.add({"loss": 1.0, "face": 2.0, "face_gated": 1.0})
    broken.add({"loss": 1.0, "face": None, "face_gated": 1.0, "face_nonfinite": 1.0})
    assert sorted(finite._sums) == sorted(broken._sums)
    numbers, flags = finite.mean(Pair(), [True])
    assert numbers == {"face": 2.0, "face_gated": 2, "loss": 1.0}
    assert flags == [True]


def test_the_file_is_cut_at_the_checkpoint_and_a_torn_line_goes(tmp_path):
    file = MetricsFile(tmp_path)
    file.truncate(3)
    for step in range(1, 6):
        file.write({"step": step, "loss": float("nan") if step == 2 else 0.5})
    with file.path.open("a") as handle:
        handle.write('{"step": 6, "lo')
    file.truncate(3)
    lines = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}, {"step": 3, "loss": 0.5}]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
