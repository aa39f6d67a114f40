"""The training loop of both networks: accelerate, an average of the weights, a budget in steps or minutes, resumable.

Each step draws from a generator seeded with its number, so a run that was interrupted and started again with the same
folder goes on as if nothing had happened. On a GPU forward and backward pass are captured into a CUDA graph, because
networks this small are otherwise held up by the launches of their thousand kernels.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

log = logging.getLogger(__name__)
Batch = dict[str, Tensor]
LOG_EVERY = 20  # steps between two looks at the loss, for which a GPU must be waited for


@dataclass(frozen=True)
class Plan:
    """How one network is trained.

    Args:
        name: of its files.
        rate: highest learning rate.
        steps, minutes: the budget; the one that is used up first ends the training. At least one is given.
        warmup: steps until the rate is reached.
        ema: decay of the average of the weights.
        seed: of all that is drawn.
        sheet_every: steps between two sheets; 0 makes none.
        save_minutes: between two states that an interrupted run goes on from.
        graph: whether a GPU's passes are captured.
    """

    name: str
    rate: float
    steps: int | None = None
    minutes: float | None = None
    warmup: int = 100
    ema: float = 0.999
    seed: int = 0
    sheet_every: int = 0
    save_minutes: float = 1.0
    graph: bool = True

    def progress(self, step: int, seconds: float) -> float:
        """The used share of the budget."""
        by_steps = step / self.steps if self.steps else 0.0
        by_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        return max(by_steps, by_time)

    def rate_at(self, step: int, progress: float) -> float:
        """Linear warm-up, then a cosine to a hundredth."""
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.rate * min(1.0, (step + 1) / self.warmup) * cosine


class Objective(Protocol):
    """What is trained for: a batch at random, of the same shapes each time, and its loss."""

    def draw(self, generator: torch.Generator) -> Batch: ...

    def loss(self, module: Any, batch: Batch) -> Tensor: ...


@dataclass
class Progress:
    """How far a training is: steps done, seconds used, and (step, seconds, loss) now and then."""

    step: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float, float]] = field(default_factory=list)


class Training:
    """One network in training.

    Args:
        module: the network, trained in place.
        plan: how.
        objective: what for.
        accelerator: device and precision.
        folder: of the state.
        on_sheet: is called with the averaged network and the step, every `plan.sheet_every` steps.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        plan: Plan,
        objective: Objective,
        accelerator: Accelerator,
        folder: Path,
        on_sheet: Callable[[Any, int], None] | None = None,
    ) -> None:
        self.plan, self.objective, self.accelerator, self.on_sheet = plan, objective, accelerator, on_sheet
        self.state_file = folder / f"{plan.name}.state.pt"
        fused = accelerator.device.type == "cuda"
        module.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(module).requires_grad_(False).eval()
        optimizer = torch.optim.AdamW(module.parameters(), plan.rate, (0.9, 0.99), weight_decay=0.01, fused=fused)
        self.module, self.optimizer = accelerator.prepare(module.train(), optimizer)
        self.weights: list[Tensor] = [p for p in self.module.parameters() if p.requires_grad]
        self.averages: list[Tensor] = list(self.average.parameters())
        self.progress = Progress()
        self.generator = torch.Generator(accelerator.device)
        self._passes: Callable[[Batch], Tensor] = self._eager_passes

    def run(self) -> Any:
        """Train until the budget is used up and return the network with averaged weights."""
        self._restore()
        plan, began, done = self.plan, time.monotonic() - self.progress.seconds, 0
        if plan.graph and self.accelerator.device.type == "cuda" and not self.finished():
            self._capture()
        saved = time.monotonic()
        with tqdm(total=plan.steps, initial=self.progress.step, desc=plan.name, mininterval=5) as bar:
            while not self.finished():
                loss = self._step()
                self.progress.step += 1
                done += 1
                bar.update()
                if self.progress.step % LOG_EVERY == 0 or done == 1:
                    self.progress.losses.append((self.progress.step, time.monotonic() - began, float(loss)))
                    bar.set_postfix(loss=f"{float(loss):.4f}", refresh=False)
                self.progress.seconds = time.monotonic() - began
                if plan.sheet_every and self.on_sheet and self.progress.step % plan.sheet_every == 0:
                    self.on_sheet(self.average, self.progress.step)
                if time.monotonic() - saved > 60 * plan.save_minutes:
                    self.store()
                    saved = time.monotonic()
        self.store()
        return self.average

    def finished(self) -> bool:
        """Whether all steps, or all the time there was, are used up."""
        return self.plan.progress(self.progress.step, self.progress.seconds) >= 1

    def _step(self) -> Tensor:
        step = self.progress.step
        share = self.plan.progress(step, self.progress.seconds)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate_at(step, share)
        self.generator.manual_seed(self.plan.seed * 1_000_003 + step)
        loss = self._passes(self.objective.draw(self.generator))
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        decay = min(self.plan.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.weights, 1 - decay)
        return loss

    def _eager_passes(self, batch: Batch) -> Tensor:
        for weight in self.weights:
            weight.grad = None
        loss = self.objective.loss(self.module, batch)
        self.accelerator.backward(loss)
        return loss.detach()

    def _capture(self) -> None:
        """Capture forward and backward pass; where that cannot be done, say so and go on without. The passes that this
        takes are no steps: what they leave in buffers, as batch norm does, is put back."""
        buffers = list(self.module.buffers())
        before = [buffer.clone() for buffer in buffers]
        try:
            self._passes = captured(self._eager_passes, self.objective.draw(self.generator))
        except Exception as error:  # whatever a kernel or library dislikes about capture
            reason = str(error).partition("\n")[0]
            log.warning("%s: no CUDA graph (%s); training goes on without one, slower.", self.plan.name, reason)
            torch.cuda.synchronize()
            self._passes = self._eager_passes
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)

    def store(self) -> None:
        """Write the state; a half-written file never has its name."""
        part = self.state_file.with_suffix(".part")
        state = {
            "step": self.progress.step,
            "seconds": self.progress.seconds,
            "losses": self.progress.losses,
            "module": self.accelerator.unwrap_model(self.module).state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, part)
        part.replace(self.state_file)

    def _restore(self) -> None:
        if not self.state_file.is_file():
            return
        state = torch.load(self.state_file, weights_only=True, map_location=self.accelerator.device)
        self.accelerator.unwrap_model(self.module).load_state_dict(state["module"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(state["step"], state["seconds"], [tuple(row) for row in state["losses"]])


def captured(passes: Callable[[Batch], Tensor], batch: Batch) -> Callable[[Batch], Tensor]:
    """`passes` as a CUDA graph that is replayed on the batches it is given; gradients lie where they lay.

    Source: PyTorch, "CUDA semantics", whole-network capture.
    """
    static = {name: value.clone() for name, value in batch.items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # cuDNN looks for its fastest kernels, and nothing of that may be captured
            passes(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = passes(static)

    def replayed(batch: Batch) -> Tensor:
        for name, value in batch.items():
            static[name].copy_(value)
        graph.replay()
        return loss

    return replayed
