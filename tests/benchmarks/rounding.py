"""How far trainings drift apart whose gradients differ in their last digits alone, as sums of a GPU do from run to run.

    PYTHONPATH=tests python tests/benchmarks/rounding.py

The trainer of conditions, small, on a CPU, where a repeated run is equal to the bit: four steps of AdamW at 1e-3, as
tests/gpu compares them. Noise of so many times a gradient's root mean square is added to it; printed is the largest
difference of a weight to the run without, where it is, and the median over tensors of their largest. AdamW's first
steps are of one size for every weight, however small its gradient: a bias before a norm, whose gradient is rounding
alone, moves as far as any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from accelerate import Accelerator
from run_trainer import command, run_here
from tiny_conditional import BOTH, SMALL, write_faces
from tiny_data import write_pipeline

from mldm_plugin.conditions.pipeline import ConditionalLDMPipeline
from mldm_plugin.training.conditional_ldm import main as train

LEVELS = (0.0, 1e-8, 1e-7, 1e-6, 1e-5)


@contextmanager
def noisy_gradients(level: float) -> Iterator[None]:
    """Every backward pass of an Accelerator leaves its gradients with noise of that level."""
    own, generator = Accelerator.backward, torch.Generator().manual_seed(1)

    def backward(self: Accelerator, loss: torch.Tensor, **options: Any) -> None:
        own(self, loss, **options)
        for model in self._models:
            for gradient in (p.grad for p in model.parameters() if p.grad is not None):
                gradient += level * gradient.square().mean().sqrt() * torch.randn(gradient.shape, generator=generator)

    Accelerator.backward = backward
    try:
        yield
    finally:
        Accelerator.backward = own


def main() -> None:
    with TemporaryDirectory() as folder:
        top = Path(folder)
        faces, pipeline = write_faces(top / "faces"), write_pipeline(top / "pipeline")
        same = (*SMALL, *BOTH, "--use_ema", "--ema_decay", 0.5, "--max_train_steps", 4)

        def trained(name: str) -> dict[str, torch.Tensor]:
            assert run_here(train, command(top / name, pipeline, faces, *same)) == 0
            return dict(ConditionalLDMPipeline.from_pretrained(top / name).unet.named_parameters())

        whole = trained("whole")
        for level in LEVELS:
            with noisy_gradients(level):
                made = trained(f"noise-{level}")
            off = {name: float((whole[name] - made[name]).abs().max()) for name in whole}
            most = max(off, key=lambda name: off[name])
            told = f"weights off by up to {off[most]:.2g} ({most}), by {median(off.values()):.2g} in the median tensor"
            click.echo(f"gradients off by {level:g} of their size: {told}")


if __name__ == "__main__":
    main()
