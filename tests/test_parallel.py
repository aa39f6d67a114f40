"""Two real processes with unequal gates: the gradient is the mean of what each would have had alone."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from accelerate import Accelerator
from make_step import FaceLoss, PictureLoss, make_stack, make_step
from run_trainer import PROCESSES
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from mldm_plugin.engine.balance import Balance
from mldm_plugin.engine.host_loss import gradient_at, take_apart
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.engine.term import Term

TIMESTEPS = ((50, 20), (900, 800))  # both images of the first rank are gated, none of the second


class Host(nn.Module):
    """A network whose output is as wrong as its weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 3, padding=1))

    def forward(self, noisy: Tensor) -> Tensor:
        return self.layers(noisy)


def host() -> Host:
    torch.manual_seed(0)
    return Host()


def backward(model: nn.Module, rank: int, *, attached: bool) -> None:
    """One step of a rank; `attached` reads the weights of the images off the host's loss first, as attach does."""
    step = make_step(TIMESTEPS[rank], seed=rank)
    output = model(step.noisy_latents)
    loss = F.mse_loss(output, step.target)
    more: dict[str, Any] = {}
    if attached:
        parts = take_apart(loss, gradient_at(output, loss), output, step.target)
        parts.check()
        more = {"base_weights": parts.weights, "other_loss": parts.rest}
    stack = make_stack(Term("picture", PictureLoss(), 0.3), Term("face", FaceLoss(), 0.3))
    stack(replace(step, model_pred=output, base_loss=loss, **more)).loss.backward()


KINDS = [(kind, attached) for kind in ("DDP", "FSDP2") for attached in (False, True)]


def measured(steps: list[DiffusionStep], accelerator: Accelerator | None = None) -> list[dict[str, float]]:
    """What is read of the losses' gradients after each step."""
    terms = Term("picture", PictureLoss(), 0.3), Term("face", FaceLoss(), 0.3, balance=Balance(least=1))
    stack = make_stack(*terms, audit_steps=1)
    stack.start_up = None
    logs = []
    for number, step in enumerate(steps, 1):
        stack(step)
        logs.append(stack.audit.read(number, accelerator))
    return logs


def measured_additively(model: nn.Module, rank: int) -> dict[str, float]:
    """A measured step of a rank with `combine: additive`, where the host's own loss could be asked for its gradient."""
    step = make_step(TIMESTEPS[rank], seed=rank)
    output = model(step.noisy_latents)
    stack = make_stack(Term("picture", PictureLoss(), 0.3), combine="additive", audit_steps=1)
    stack.start_up = None
    stack(replace(step, model_pred=output, base_loss=F.mse_loss(output, step.target))).loss.backward()
    return stack.audit.read(1)


def steps_of(rank: int) -> list[DiffusionStep]:
    """Three steps, the first with no gated image on the second rank, all of two images."""
    drawn = (TIMESTEPS[rank], (20, 950)[:: 1 - 2 * rank], (99, 3))
    return [make_step(t, seed=10 * i + rank, base_loss=False) for i, t in enumerate(drawn)]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    patience = timedelta(minutes=2)
    dist.init_process_group("gloo", timeout=patience, init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = dist.init_device_mesh("cpu", (2,))
    for kind, attached in KINDS:
        model: Any = host()
        if kind == "DDP":
            model = nn.parallel.DistributedDataParallel(model)
        else:
            for part in (model.layers[0], model.layers[2], model):
                fully_shard(part, mesh=mesh)
        backward(model, rank, attached=attached)
        gradients = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in model.parameters()]
        if rank == 0:
            torch.save(gradients, f"{folder}/{kind}-{attached}.pt")
        of_rank = measured_additively(model, rank)  # on the first alone, and no process may wait for it
        torch.save(of_rank, f"{folder}/additive-{kind}-{rank}.pt")
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # asked for, though the group is there
    torch.save(measured(steps_of(rank), Accelerator(cpu=True)), f"{folder}/measured-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave, one pair for all kinds."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(work, args=(str(folder),), nprocs=2, start_method=PROCESSES.get_start_method())
    return folder


@pytest.mark.parametrize(("kind", "attached"), KINDS)
def test_two_ranks_give_the_mean_of_two_single_processes(kind: str, attached: bool, trained: Path) -> None:
    found = torch.load(trained / f"{kind}-{attached}.pt", weights_only=True)
    alone = []
    for rank in range(2):
        model = host()
        backward(model, rank, attached=attached)
        alone.append([p.grad for p in model.parameters()])
    for own, one, other in zip(found, *alone, strict=True):
        torch.testing.assert_close(own, (one + other) / 2, rtol=1e-5, atol=1e-8)
    plain = host()
    step = make_step(TIMESTEPS[0], seed=0)
    F.mse_loss(plain(step.noisy_latents), step.target).backward()
    first = next(plain.parameters()).grad
    assert first is not None
    assert not torch.allclose(alone[0][0], first, rtol=1e-2)  # the losses are part of it


@pytest.mark.parametrize("kind", ["DDP", "FSDP2"])
def test_a_measured_step_of_the_first_rank_stops_no_other(kind: str, trained: Path) -> None:
    found = [torch.load(trained / f"additive-{kind}-{rank}.pt", weights_only=True) for rank in range(2)]
    alone = measured_additively(host(), 0)
    assert alone["picture/measured/t0-99"] > 0
    assert {name: found[0][name] for name in alone} == pytest.approx(alone, rel=1e-4)
    assert not any("measured" in name for name in found[1])


def test_two_ranks_measure_what_the_first_would_alone_and_count_what_both_reach(trained: Path) -> None:
    found = [torch.load(trained / f"measured-{rank}.pt", weights_only=True) for rank in range(2)]
    assert found[0] == found[1]
    alone = [measured(steps_of(rank)) for rank in range(2)]
    assert [[logs["face/pictures"] for logs in of] for of in (*alone, found[0])] == [[2, 1, 2], [0, 1, 2], [2, 2, 4]]
    for ours, *both in zip(found[0], *alone, strict=True):
        for name, value in ours.items():
            counted = name.split("/")[1] in ("pictures", "faces", "hands")
            assert value == (sum(logs[name] for logs in both) if counted else both[0][name])
    assert len({logs["face/balance"] for logs in found[0]}) == 3  # by which the second rank trains, too
