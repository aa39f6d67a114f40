"""Two processes (gloo, CPU) train as one; what splits the network among processes is refused."""

from __future__ import annotations

import json
import os
import re
from bisect import bisect
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import set_seed
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from run_trainer import command, launch, records

from mldm_plugin import LossStack, load_plugins
from mldm_plugin.attach.ranks import refuse_unshown
from mldm_plugin.engine.ranges import BEGINNINGS, RANGES
from mldm_plugin.errors import MldmError
from mldm_plugin.training.command_line import parse, resolve
from mldm_plugin.training.controlnet import ControlNetTrainer
from mldm_plugin.training.flags import ControlNetFlags
from mldm_plugin.training.start import make_optimizer

PAGE = Path(__file__).parent.parent / "docs" / "training_loop.md"

# Each process writes down which of its images were gated in which step, by what the loss was multiplied, how wrong each
# image was, every micro-batch with the state of the generator before it, and the weights it ends with.
WATCHER = """
import json, os
from pathlib import Path
import torch
from mldm_plugin import hookimpl
from mldm_plugin.training.run import Run
from mldm_plugin.training.controlnet import ControlNetTrainer
folder, gates, scales, errors, batches = Path(__file__).parent, [], [], [], []
rank = os.environ.get("RANK")

class Brightness:
    needs = frozenset({"person_mask"})
    def __call__(self, step):
        return step.pred_latents.square().flatten(1).mean(dim=1)

@hookimpl
def register_losses(register):
    register("brightness", Brightness)

@hookimpl
def after_loss(step, report):
    gates.append(report.terms["brightness"].gated)
    scales.append(report.terms["brightness"].scale)
    of_each = (step.model_pred - step.target).square().flatten(1).mean(dim=1)
    errors.append(list(zip(step.timesteps.tolist(), of_each.tolist())))

if rank is not None:
    make_step, finish = ControlNetTrainer.diffusion_step, Run.finish

    def noted_step(self, model, batch, draw_timesteps):
        batches.append((torch.get_rng_state(), batch))
        return make_step(self, model, batch, draw_timesteps)

    def noted_finish(self, stopped):
        torch.save(torch.cat([p.detach().flatten() for p in self.trainer.trainable()]), folder / f"weights-{rank}.pt")
        torch.save(batches, folder / f"batches-{rank}.pt")
        (folder / f"gates-{rank}.json").write_text(json.dumps(gates))
        (folder / f"scales-{rank}.json").write_text(json.dumps(scales))
        (folder / f"errors-{rank}.json").write_text(json.dumps(errors))
        finish(self, stopped)

    ControlNetTrainer.diffusion_step, Run.finish = noted_step, noted_finish
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The folder of the watching plugin, and the flags to train with it."""
    folder = tmp_path_factory.mktemp("watcher")
    (folder / "watcher.py").write_text(WATCHER)
    (folder / "own.yaml").write_text("losses:\n  brightness: {weight: 0.5, max_timestep: 500}\n")
    plugin = ["--loss-plugin", folder / "watcher.py", "--preset", folder / "own.yaml", "--panel_steps", 0]
    return folder, [*plugin, "--train_batch_size", 1]


@pytest.fixture(scope="module", params=["one_step", "ddim-2"])
def pair(request, watched, tiny_pipeline, make_data, tmp_path_factory):
    """A finished run of two processes: its command line, its folder, and what each process wrote down.

    Half of the pictures show nobody, so one process often has a gated image and the other none.
    """
    notes, flags = watched
    folder = tmp_path_factory.mktemp("pair")
    rows = {i: {"mask_file_name": None, "face_boxes": []} for i in (1, 2, 4, 6)}
    data = make_data(folder / "data", 7, rows=rows, captions=["a person", "somebody"])
    flags = [*flags, "--set", f"estimate={request.param}"]
    flags = [*flags, "--max_train_steps", 6, "--checkpointing_steps", 3, "--gradient_accumulation_steps", 2]
    flags += ["--curve_steps", 2]  # what each process saw in the third step is in its checkpoint
    argv = command(folder / "run", tiny_pipeline, data, *flags, "--learning_rate", 1e-3)
    statuses, outputs = launch(argv, folder)
    assert statuses == [0, 0], outputs
    weights = [torch.load(notes / f"weights-{rank}.pt", weights_only=True) for rank in (0, 1)]
    batches = [torch.load(notes / f"batches-{rank}.pt", weights_only=False) for rank in (0, 1)]
    gates = [json.loads((notes / f"gates-{rank}.json").read_text()) for rank in (0, 1)]
    errors = [json.loads((notes / f"errors-{rank}.json").read_text()) for rank in (0, 1)]
    return argv, folder / "run", weights, batches, gates, errors, request.param


def test_unequal_gating_ends_with_equal_weights(pair):
    _, run, weights, _, gates, _, _ = pair
    assert weights[0].equal(weights[1])
    assert gates[0] != gates[1]
    assert sum(r["brightness/gated"] for r in records(run)) == sum(map(sum, gates)) > 0


def test_losses_by_range_of_t_are_those_of_both_processes(pair):
    """In each second step, over the four micro-batches that each process had since."""
    _, run, _, _, _, errors, _ = pair
    log = records(run)
    logged = [{key: value for key, value in record.items() if key.startswith("ldm/t")} for record in log]
    for window in range(3):
        by_range = {}
        for t, error in (one for of_rank in errors for batch in of_rank[4 * window : 4 * window + 4] for one in batch):
            by_range.setdefault(f"ldm/{RANGES[bisect(BEGINNINGS, t) - 1]}", []).append(error)
        means = {name: sum(values) / len(values) for name, values in by_range.items()}
        assert logged[2 * window : 2 * window + 2] == [{}, pytest.approx(means)]


def test_two_processes_are_one_that_has_the_batches_of_both(pair, watched):
    """The same micro-batches one after the other: gradients averaged over all of a step, clipped, and applied."""
    argv, _, weights, batches, _, _, estimate = pair
    set_seed(3)
    flags = resolve(ControlNetFlags, parse(ControlNetFlags, argv))
    trainer = ControlNetTrainer(flags, torch.device("cpu"), torch.float32)
    plugins = load_plugins([str(watched[0] / "watcher.py")])
    stack = LossStack.from_preset(
        watched[0] / "own.yaml",
        vae=trainer.vae,
        noise_scheduler=trainer.noise_scheduler,
        plugins=plugins,
        overrides=[f"estimate={estimate}"],
    )
    optimizer = make_optimizer(trainer, processes=2)
    start = torch.cat([p.detach().flatten() for p in trainer.trainable()])
    for step in range(6):
        for state, batch in (of_rank[2 * step + i] for of_rank in batches for i in (0, 1)):
            torch.set_rng_state(state)
            made = trainer.diffusion_step(
                trainer.trained, batch, lambda latents: torch.randint(0, 1000, (len(latents),))
            )
            (stack(made).loss / 4).backward()
        torch.nn.utils.clip_grad_norm_(trainer.trainable(), flags.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    end = torch.cat([p.detach().flatten() for p in trainer.trainable()])
    assert (end - weights[0]).norm() < 1e-3 * (end - start).norm()


def test_a_resumed_pair_is_the_uninterrupted_one(pair, watched, tmp_path):
    argv, run, weights, _, _, _, _ = pair
    assert sorted(p.name for p in (run / "checkpoint-3").glob("position_*")) == ["position_0.pt", "position_1.pt"]
    log = records(run)
    statuses, outputs = launch([*argv, "--resume_from_checkpoint", "checkpoint-3"], tmp_path)
    assert statuses == [0, 0], outputs
    assert records(run) == log
    assert torch.load(watched[0] / "weights-1.pt", weights_only=True).equal(weights[1])


def test_a_balanced_loss_weighs_the_same_on_both(watched, tiny_pipeline, tiny_data, tmp_path):
    """Each has other pictures, and a factor of its own would be another: from four pictures on, those of the first."""
    notes, flags = watched
    loss = "brightness: {weight: 0.5, max_timestep: null, balance: gradient}"
    (tmp_path / "own.yaml").write_text(f"audit_steps: 1\nlosses:\n  {loss}\n")
    flags = [*flags, "--preset", tmp_path / "own.yaml", "--train_batch_size", 2, "--max_train_steps", 5]
    statuses, outputs = launch(command(tmp_path / "run", tiny_pipeline, tiny_data, *flags), tmp_path)
    assert statuses == [0, 0], outputs
    of_first, of_second = (json.loads((notes / f"scales-{rank}.json").read_text()) for rank in (0, 1))
    errors = [json.loads((notes / f"errors-{rank}.json").read_text()) for rank in (0, 1)]
    assert errors[0] != errors[1]
    assert of_first == of_second
    logged = [record["brightness/balance"] for record in records(tmp_path / "run")]
    assert of_first == [0, *logged[:-1]], "a reading after a step holds from the next on"
    assert of_first[:2] == [0, 0]
    assert len(set(of_first[2:])) == 3
    assert min(of_first[2:]) > 0
    weights = [torch.load(notes / f"weights-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert weights[0].equal(weights[1])


def test_an_error_of_one_process_is_one_line(watched, tiny_pipeline, make_data, tmp_path):
    """Row 1 is looked over by the second process; the first reports it."""
    data = make_data(tmp_path / "data", 3, rows={1: {"face_boxes": [[9, 9, 3, 3]]}})
    statuses, outputs = launch(command(tmp_path / "run", tiny_pipeline, data, *watched[1]), tmp_path)
    assert statuses == [1, 1]
    assert not any("Traceback" in output for output in outputs)
    (line,) = [x for output in outputs for x in output.splitlines() if x.startswith("mldm: ")]
    assert line in outputs[0]
    assert "1.png" in line
    assert "reversed" in line
    assert not (tmp_path / "run").exists()


# The second process has a gradient that is not finite in its second batch, of a value that is.
FRAGILE = """
import os
from mldm_plugin import hookimpl
seen = []

class Fragile:
    needs = frozenset()
    def __call__(self, step):
        value = step.pred_latents.square().flatten(1).mean(dim=1)
        if os.environ["RANK"] == "1" and len(seen) == 1:
            value = value + (step.pred_latents * 0).sqrt().flatten(1).sum(dim=1)
        return value

@hookimpl
def register_losses(register):
    register("fragile", Fragile)

@hookimpl
def after_loss(step, report):
    seen.append(step)
"""


def test_a_gradient_that_one_process_cannot_use_is_logged_and_the_run_goes_on(tiny_pipeline, tiny_data, tmp_path):
    (tmp_path / "fragile.py").write_text(FRAGILE)
    (tmp_path / "own.yaml").write_text("losses:\n  fragile: {weight: 0.5, max_timestep: null}\n")
    flags = ["--loss-plugin", tmp_path / "fragile.py", "--preset", tmp_path / "own.yaml", "--panel_steps", 0]
    flags += ["--train_batch_size", 1, "--max_train_steps", 3]
    statuses, outputs = launch(command(tmp_path / "run", tiny_pipeline, tiny_data, *flags), tmp_path)
    assert statuses == [0, 0], outputs
    log = records(tmp_path / "run")
    assert [r["fragile/gated"] for r in log] == [2, 2, 2]
    assert [r.get("fragile/nonfinite_gradient") for r in log] == [None, 1, None]
    assert all(r["fragile"] > 0 for r in log)


def sharding():
    """The rows of the page's table: what is given to `accelerate launch`, and what becomes of it."""
    table = PAGE.read_text(encoding="utf-8").partition("## On several GPUs")[2].partition("\n## ")[0]
    return re.findall(r"^\| (.+?) \| `(.*?)` \| (.+?) \| (.+?) \|", table, re.MULTILINE)


def environment_of(launcher):
    """What `accelerate launch` hands to a script."""
    more = "--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no train_controlnet.py"
    arguments = launch_command_parser().parse_args([*launcher.split(), *more.split()])
    arguments.deepspeed_fields_from_accelerate_config = ""
    return prepare_deepspeed_cmd_env(arguments)[1] if arguments.use_deepspeed else prepare_multi_gpu_env(arguments)


@pytest.mark.parametrize(("name", "launcher", "attached"), [(*row[:2], row[3]) for row in sharding()])
def test_attached_scripts_are_refused_as_the_page_says(name, launcher, attached):
    environment = environment_of(launcher)
    if attached.startswith("train"):
        refuse_unshown(environment)
        return
    assert attached == "refused at the start: use FSDP2 or DDP"
    with pytest.raises(MldmError, match=rf"{name}, under which .* use FSDP2 .* or DDP"):
        refuse_unshown(environment)


@pytest.mark.parametrize(("name", "launcher", "outcome"), [row[:3] for row in sharding()])
def test_what_splits_the_network_is_refused_as_the_page_says(
    name, launcher, outcome, train, tmp_path, monkeypatch, the_error
):
    for variable, value in environment_of(launcher).items():
        if os.environ.get(variable) != value and variable.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(variable, value)
    if not outcome.startswith("refused"):
        assert train(tmp_path / "run", "--max_train_steps", 1) == 0
        return
    assert train(tmp_path / "run") == 1
    line = the_error()
    assert f"accelerate is set to {name}, which splits the network" in line
    assert "use DDP (`accelerate launch --multi_gpu`)" in line
    assert not (tmp_path / "run").exists()


def test_the_page_names_every_way_of_splitting():
    names = [name for name, *_ in sharding()]
    assert names == ["DDP", "FSDP1", "FSDP2", *(f"DeepSpeed ZeRO {stage}" for stage in (1, 2, 3))]
