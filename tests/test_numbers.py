"""What is logged: numbers that wait for nothing, gathered over micro-batches and processes."""

from __future__ import annotations

import json

import torch

from mldm_plugin.engine.numbers import Numbers, StepMeter, TermNumbers
from mldm_plugin.records.metrics import MetricsFile


def numbers(loss, ldm=2.0, **terms):
    """`face=(total, counted, gated, nonfinite, nonfinite_gradient)`."""
    made = {name: TermNumbers(torch.tensor(total), *counts) for name, (total, *counts) in terms.items()}
    return Numbers(torch.tensor(loss), torch.tensor(ldm), made)


def test_terms_count_as_often_as_they_had_images():
    meter = StepMeter(["face"])
    meter.add(numbers(1.0, face=(12.0, 3, 3, 0, 0)))
    meter.add(numbers(3.0, face=(8.0, 1, 1, 0, 0)))
    meter.add(numbers(5.0))
    record, flags = meter.mean(flags=[False, True])
    assert record == {"loss": 3.0, "ldm": 2.0, "face": 5.0, "face/gated": 4}
    assert flags == [False, True]


def test_the_meter_is_empty_afterwards():
    meter = StepMeter(["face"])
    meter.add(numbers(1.0, face=(12.0, 3, 3, 0, 0)))
    meter.mean()
    meter.add(numbers(7.0))
    assert meter.mean()[0] == {"loss": 7.0, "ldm": 2.0, "face": None, "face/gated": 0}


def test_what_was_left_out_is_counted_and_not_part_of_the_mean():
    meter = StepMeter(["face", "lpips"])
    meter.add(numbers(1.0, lpips=(6.0, 2, 5, 3, 1)))
    record, _ = meter.mean()
    assert record["lpips"] == 3.0
    assert (record["lpips/gated"], record["lpips/nonfinite"], record["lpips/nonfinite_gradient"]) == (5, 3, 1)
    assert "face/nonfinite" not in record


def test_a_loss_may_be_called_what_a_count_was_once_called():
    meter = StepMeter(["mouth", "mouth_gated", "mouth_nonfinite"])
    meter.add(numbers(1.0, mouth=(1.0, 1, 1, 0, 0), mouth_gated=(4.0, 2, 2, 0, 0), mouth_nonfinite=(9.0, 3, 3, 0, 0)))
    record, _ = meter.mean()
    assert [record[name] for name in ("mouth", "mouth_gated", "mouth_nonfinite")] == [1.0, 2.0, 3.0]
    assert [record[f"{name}/gated"] for name in ("mouth", "mouth_gated", "mouth_nonfinite")] == [1, 2, 3]


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
