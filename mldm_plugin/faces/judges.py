"""The training of the two judges of faces, on real ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from mldm_plugin.conditions.judges import SMALL, AttributeJudge, PartsJudge
from mldm_plugin.faces.pictures import Faces
from mldm_plugin.people_mini.classifier import varied
from mldm_plugin.people_mini.loop import Batch, Plan, Training
from mldm_plugin.perceptual.frozen import build_seeded

BATCH = 16
RATE = 2e-3


@dataclass
class JudgeObjective:
    """Cross-entropy of what a judge says about varied pictures.

    Args:
        faces: with the answers.
        of_parts: whether the answers are the parts; else the attributes.
    """

    faces: Faces
    of_parts: bool

    def draw(self, generator: torch.Generator) -> Batch:
        device, numbers = generator.device, self.faces.drawn(BATCH, generator)
        pixels = self.faces.floats(numbers, device)
        if self.of_parts:  # the picture must stay where its labels are, so it is softened only
            share = torch.rand(BATCH, 1, 1, 1, generator=generator, device=device)
            soft = F.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False)
            return {"pixels": pixels + share * (soft - pixels), "answers": self.faces.parts[numbers].to(device).long()}
        return {"pixels": varied(pixels, generator), "answers": self.faces.attributes[numbers].to(device)}

    def loss(self, module: Any, batch: Batch) -> Tensor:
        logits, answers = module(batch["pixels"]), batch["answers"]
        if self.of_parts:
            return F.cross_entropy(logits, answers)
        return F.binary_cross_entropy_with_logits(logits, answers)


def train_judge(
    kind: type[AttributeJudge] | type[PartsJudge],
    faces: Faces,
    steps: int,
    folder: Path,
    widths: tuple[int, ...] = SMALL,
) -> Any:
    """Train a judge; resumable, its state lies in `folder`. Returns it with averaged weights, on the CPU."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = Plan(kind.__name__, RATE, steps=steps, warmup=min(100, steps), ema=0.99)
    objective = JudgeObjective(faces, of_parts=kind is PartsJudge)
    training = Training(build_seeded(lambda: kind(widths)), plan, objective, Accelerator(), folder)
    judge = training.run()
    last = training.accelerator.unwrap_model(training.module)
    for own, buffer in zip(judge.buffers(), last.buffers(), strict=True):  # batch norm's, which are not averaged
        own.copy_(buffer)
    return judge.cpu().eval()
