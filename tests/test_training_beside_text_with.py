"""Conditions beside text with what else the trainers do: several processes, bf16, cached latents, evaluation."""

import json
from importlib import import_module

import pytest
import torch
from run_trainer import command, launch, records, run_here, same_weights
from safetensors.torch import load_file
from tiny_conditional import BOTH
from tiny_data import add_conditions, write_data

# Each process of a pair writes down what it ends with.
WATCHER = """
import os
from pathlib import Path
import torch
from mldm_plugin import hookimpl
from mldm_plugin.training.run import Run

@hookimpl
def after_loss(step, report):
    pass

finish = Run.finish

def noted(self, stopped):
    torch.save(dict(self.trainer.trained.named_parameters()), Path(__file__).parent / f"{os.environ['RANK']}.pt")
    finish(self, stopped)

Run.finish = noted
"""


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces") / "data"
    return write_data(folder, rows=add_conditions(folder))


@pytest.fixture(scope="module")
def argv(tiny_pipeline, faces):
    def argv(output, *flags):
        more = ("--learning_rate", 0.01, *BOTH, "--condition_dropout", 0.3, "--max_train_steps", 3, *flags)
        more = ("--train_batch_size", 1, *more)  # where cached latents are the same to the bit
        return command(output, tiny_pipeline, faces, *more)

    return argv


@pytest.fixture(scope="module", params=["text_to_image_lora", "controlnet"])
def train(request, argv):
    main = import_module(f"mldm_plugin.training.{request.param}").main
    still = () if request.param == "controlnet" else ("--center_crop",)
    return lambda output, *flags: run_here(main, argv(output, *still, *flags))


@pytest.fixture(scope="module")
def run(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "plain"
    assert train(folder) == 0
    return folder


def encoders(folder):
    return load_file(folder / "conditions" / "diffusion_pytorch_model.safetensors")


def same_encoders(one, other):
    one, other = encoders(one), encoders(other)
    return all(torch.equal(one[name], other[name]) for name in one)


def test_cached_latents_change_nothing(train, run, tmp_path):
    assert train(tmp_path / "run", "--cache_latents") == 0
    assert same_weights(run, tmp_path / "run")
    assert same_encoders(run, tmp_path / "run")


def test_half_precision_trains_whole_encoders_near_those_of_single(train, run, tmp_path):
    assert train(tmp_path / "run", "--mixed_precision", "bf16") == 0
    whole, half = encoders(run), encoders(tmp_path / "run")
    assert {value.dtype for name, value in half.items() if "num_batches" not in name} == {torch.float32}
    losses = [[record["loss"] for record in records(folder)] for folder in (run, tmp_path / "run")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]
    assert all(torch.isfinite(value).all() for value in half.values())
    assert any(not torch.equal(whole[name], half[name]) for name in whole)


def test_two_processes_end_with_the_same_encoders(argv, tmp_path):
    (tmp_path / "watcher.py").write_text(WATCHER)
    (tmp_path / "own.yaml").write_text("losses: {}\n")
    plugin = ("--loss-plugin", tmp_path / "watcher.py", "--preset", tmp_path / "own.yaml")
    statuses, outputs = launch(argv(tmp_path / "run", *plugin), tmp_path)
    assert statuses == [0, 0], outputs
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    named = [name for name in one if "conditions." in name]
    assert {name.split("conditions.")[1].split(".")[0] for name in named} == {"encoders", "absent"}
    assert all(torch.equal(one[name], other[name]) for name in one)
    last = encoders(tmp_path / "run")
    assert all(torch.equal(one[name], last[name.split("conditions.")[1]]) for name in named)


def test_evaluation_asks_with_the_conditions_of_the_photographs_and_changes_nothing(train, run, tmp_path):
    """The same photographs with each attribute turned over give other values, from the same weights."""
    values = []
    for turned in (False, True):
        held_out, out = tmp_path / f"photographs-{turned}", tmp_path / f"run-{turned}"
        rows = add_conditions(held_out)
        for row in rows.values():
            row["attributes"] = {name: value != turned for name, value in row["attributes"].items()}
        write_data(held_out, rows=rows)
        flags = ("--evaluate_steps", 2, "--evaluate_data_dir", held_out, "--evaluate_photographs", 2)
        assert train(out, *flags) == 0
        assert same_weights(run, out)
        assert same_encoders(run, out)
        values.append(json.loads((out / "evaluation.json").read_text())["steps"]["0"]["values"])
    assert values[0]["one_step_error"] != values[1]["one_step_error"]
