"""What a run adds to its folder in each step: its proof, and what it ran on."""

import json

import pytest

from mldm_plugin.records.machine import LAST, MachineFile, memory, read_machine
from mldm_plugin.records.run_files import PROOF, RunFiles


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def entries(folder):
    return json.loads((folder / "machine.json").read_text())


def run_steps(file, clock, *seconds):
    for duration in seconds:
        clock.now += duration
        file.add_step()


def test_how_fast_a_run_was(tmp_path):
    clock = Clock()
    file = MachineFile(tmp_path, 0, 2, clock)
    run_steps(file, clock, 3.0, 0.5, 0.5, 1.0)
    assert not (tmp_path / "machine.json").exists(), "it is not written in every step"
    file.write()
    [one] = entries(tmp_path)
    assert (one["steps"], one["seconds"], one["median"], one["processes"], one["from_step"]) == (4, 5.0, 0.75, 2, 0)
    assert one["memory"]["ram"] > 50e6
    assert one["memory"]["gpu"] is None
    assert one["versions"]["torch"]
    assert one["machine"]["cores"] >= 1


def test_it_is_written_while_the_run_goes_on(tmp_path):
    clock = Clock()
    file = MachineFile(tmp_path, 0, 1, clock)
    run_steps(file, clock, 9.0)
    assert not read_machine(tmp_path)
    run_steps(file, clock, 1.0)
    assert read_machine(tmp_path)[0]["steps"] == 2
    run_steps(file, clock, 9.0)
    assert read_machine(tmp_path)[0]["steps"] == 2


def test_the_median_is_of_the_last_steps(tmp_path):
    clock = Clock()
    file = MachineFile(tmp_path, 0, 1, clock)
    run_steps(file, clock, *[5.0] * 600, *[1.0] * LAST)
    file.write()
    assert entries(tmp_path)[0]["median"] == 1.0


def test_a_run_that_is_taken_up_adds_to_what_is_there(tmp_path):
    clock = Clock()
    for step, steps in ((0, 4), (4, 2), (4, 3), (0, 1)):
        file = MachineFile(tmp_path, step, 1, clock)
        run_steps(file, clock, *[1.0] * steps)
        file.write()
        found = [(one["from_step"], one["steps"]) for one in entries(tmp_path)]
        assert found[-1] == (step, steps)
        assert all(before < step for before, _ in found[:-1]), "what a start from an earlier step did again is gone"
    assert found == [(0, 1)]


def test_a_run_that_does_not_know_its_step_forgets_no_earlier_start(tmp_path):
    clock = Clock()
    for step, steps in ((None, 4), (None, 2), (3, 1)):
        file = MachineFile(tmp_path, step, 1, clock)
        run_steps(file, clock, *[1.0] * steps)
        file.write()
    assert [(one["from_step"], one["steps"]) for one in entries(tmp_path)] == [(0, 4), (0, 2), (3, 1)]


@pytest.mark.parametrize("text", ["", "{", "3", "[1, null]", '[{"steps": 3}]', "[" * 3000, '{"from_step": 0}'])
def test_a_file_that_is_no_such_list_is_none(tmp_path, text):
    (tmp_path / "machine.json").write_text(text)
    assert read_machine(tmp_path) == []
    file = MachineFile(tmp_path, 5)
    file.add_step()
    file.write()
    assert len(read_machine(tmp_path)) == 1


def test_memory_is_of_this_process():
    kept = bytearray(200_000_000)
    assert memory()["ram"] > len(kept)


def test_the_proof_is_what_was_told(tmp_path):
    files = RunFiles(tmp_path, 0)
    files.keep("one\n")
    files.add({"step": 1, "loss": 0.5}, "one\n")
    assert (tmp_path / PROOF).read_text() == "one\n"
    files.add({"step": 2, "loss": 0.5}, "one\ntwo\n")
    assert (tmp_path / PROOF).read_text() == "one\ntwo\n"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    RunFiles(tmp_path, 0).keep("")
    assert not (tmp_path / PROOF).exists(), "another run's proof would be a lie"
