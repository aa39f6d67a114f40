"""Losses by range of timesteps: each image in its range, each range its own mean."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from make_step import ddpm, flow, make_step
from waits import Waits

from mldm_plugin.engine.mix import PlainLoss
from mldm_plugin.engine.report import LossReport, TermReport
from mldm_plugin.engine.schedule import NoiseSchedule, stable_diffusion_snr
from mldm_plugin.records.curves import RANGES, Curves

PLAIN = PlainLoss(NoiseSchedule.from_scheduler(ddpm()))
EDGES = (0, 99, 100, 199, 200, 399, 400, 699, 700, 999)


def errors_of(step) -> list[float]:
    return (step.model_pred - step.target).square().mean((1, 2, 3)).tolist()


def face(images: int, rows: list[int], values: list[float]) -> TermReport:
    finite = [value == value for value in values]
    return TermReport(images, 0.5, rows, torch.tensor(values), finite, [True] * len(rows))


def report_of(**terms: TermReport) -> LossReport:
    return LossReport(torch.zeros(()), torch.zeros(()), terms)


def test_every_image_counts_in_its_range_once():
    step, curves = make_step(EDGES), Curves(["face"], PLAIN)
    curves.add(step, report_of(face=face(10, [0, 1, 2], [1.0, 2.0, 5.0])))
    curves.add(step, report_of(face=face(10, [1], [6.0])))
    found, error = curves.mean(), errors_of(step)
    assert list(found) == [*(f"ldm/{r}" for r in RANGES), "face/t0-99", "face/t100-199"]
    assert [found[f"ldm/{r}"] for r in RANGES] == pytest.approx(
        [(error[i] + error[i + 1]) / 2 for i in range(0, 10, 2)]
    )
    assert (found["face/t0-99"], found["face/t100-199"]) == (3.0, 5.0)
    assert curves.mean() == {}  # begun anew


def test_what_is_not_finite_is_left_out_and_the_hosts_weights_count():
    step, curves = replace(make_step((10, 20)), base_weights=torch.tensor([2.0, 0.0])), Curves(["face"], PLAIN)
    curves.add(step, report_of(face=face(2, [0, 1], [float("nan"), 4.0])))
    assert curves.mean() == {"ldm/t0-99": pytest.approx(errors_of(step)[0]), "face/t0-99": 4.0}


def test_on_another_schedule_the_ranges_are_those_of_the_same_snr():
    schedule = NoiseSchedule.from_scheduler(flow())
    timesteps = tuple(schedule.timestep_at(float(stable_diffusion_snr()[t])) for t in EDGES)
    curves = Curves([], PlainLoss(schedule))
    curves.add(make_step(timesteps, scheduler=flow()), report_of())
    assert list(curves.mean()) == [f"ldm/{r}" for r in RANGES]


def test_adding_waits_for_nothing():
    step, curves = make_step((50, 20)), Curves(["face"], PLAIN)
    report = report_of(face=face(2, [0], [1.0]))
    with Waits() as waits:
        curves.add(step, report)
    assert waits.seen == []
