"""Two judges of faces, trained on real ones: which attributes a picture shows, and where its parts are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mldm_plugin.conditions.celeba import ATTRIBUTES, PARTS
from mldm_plugin.faces.pictures import Faces
from mldm_plugin.people_mini.classifier import varied
from mldm_plugin.people_mini.loop import Batch, Plan, Training
from mldm_plugin.perceptual.frozen import build_seeded

BATCH = 16
RATE = 2e-3
RESNET_18 = (64, 128, 256, 512)
SMALL = (24, 48, 96, 160)  # the widths that judge pictures of 128 pixels; chosen


class AttributeJudge(nn.Module):
    """A ResNet-18 with one logit an attribute, as the paper's (section 4.2).

    Args:
        widths: of its four stages; `RESNET_18` is the paper's, `SMALL` is enough for drawings.
    """

    def __init__(self, widths: tuple[int, ...] = SMALL) -> None:
        super().__init__()
        from transformers import ResNetConfig, ResNetModel

        config = ResNetConfig(
            embedding_size=widths[0], hidden_sizes=list(widths), depths=[2] * len(widths), layer_type="basic"
        )
        self.network = ResNetModel(config)
        self.head = nn.Linear(widths[-1] * 16, len(ATTRIBUTES))  # where something is matters: a hat is above a face

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, 40) of pictures (N, 3, S, S) in [-1, 1]."""
        features = self.network(pixels).last_hidden_state
        return self.head(F.adaptive_avg_pool2d(features, 4).flatten(1))


class PartsJudge(nn.Module):
    """A small U-Net that labels each pixel with one of CelebAMask-HQ's parts, or with none."""

    def __init__(self, widths: tuple[int, ...] = SMALL) -> None:
        super().__init__()
        self.down = nn.ModuleList(_block(a, b) for a, b in zip((3, *widths[:-1]), widths, strict=True))
        pairs = zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True)
        self.up = nn.ModuleList(_block(a + b, b) for a, b in pairs)
        self.head = nn.Conv2d(widths[0], len(PARTS) + 1, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, 19, S, S) of pictures (N, 3, S, S) in [-1, 1]; S a multiple of 8."""
        kept, x = [], pixels
        for number, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if number else x)
            kept.append(x)
        for block, beside in zip(self.up, reversed(kept[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), beside], 1))
        return self.head(x)


def _block(low: int, high: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (low, high):
        layers += [nn.Conv2d(width, high, 3, padding=1, bias=False), nn.BatchNorm2d(high), nn.ReLU()]
    return nn.Sequential(*layers)


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
        numbers = torch.randint(len(self.faces), (BATCH,), generator=generator)
        if self.of_parts:  # the picture must stay where its labels are, so it is softened only
            pixels, share = self.faces.floats(numbers), torch.rand(BATCH, 1, 1, 1, generator=generator)
            soft = F.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False)
            return {"pixels": pixels + share * (soft - pixels), "answers": self.faces.parts[numbers].long()}
        return {"pixels": varied(self.faces.floats(numbers), generator), "answers": self.faces.attributes[numbers]}

    def loss(self, module: Any, batch: Batch) -> Tensor:
        device = next(module.parameters()).device
        logits, answers = module(batch["pixels"].to(device)), batch["answers"].to(device)
        if self.of_parts:
            return F.cross_entropy(logits, answers)
        return F.binary_cross_entropy_with_logits(logits, answers)


def train_judge(kind: type[AttributeJudge] | type[PartsJudge], faces: Faces, steps: int, folder: Path) -> Any:
    """Train a judge; resumable, its state lies in `folder`. Returns it with averaged weights."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = Plan(kind.__name__, RATE, steps=steps, warmup=min(100, steps), ema=0.99, graph=False)
    objective = JudgeObjective(faces, of_parts=kind is PartsJudge)
    training = Training(build_seeded(kind), plan, objective, Accelerator(), folder)
    judge = training.run()
    last = training.accelerator.unwrap_model(training.module)
    for own, buffer in zip(judge.buffers(), last.buffers(), strict=True):  # batch norm's, which are not averaged
        own.copy_(buffer)
    return judge.eval()


def write_judge(judge: nn.Module, path: Path) -> None:
    """Write its weights, so that other pictures are judged by the same network."""
    save_file({name: value.cpu().contiguous() for name, value in judge.state_dict().items()}, path)


def read_judge(kind: type[AttributeJudge] | type[PartsJudge], path: Path) -> Any:
    """The judge of `write_judge`."""
    judge = kind()
    judge.load_state_dict(load_file(path))
    return judge.eval()


@torch.no_grad()
def attributes_seen(judge: AttributeJudge, pixels: Tensor, batch: int = 32) -> Tensor:
    """What it says of pictures (N, 3, S, S) in [-1, 1], bool (N, 40)."""
    return torch.cat([judge(some) > 0 for some in pixels.split(batch)])


@torch.no_grad()
def parts_seen(judge: PartsJudge, pixels: Tensor, batch: int = 16) -> Tensor:
    """The labels that it gives the pixels, uint8 (N, S, S)."""
    return torch.cat([judge(some).argmax(1).to(torch.uint8) for some in pixels.split(batch)])


def attribute_accuracy(seen: Tensor, wanted: Tensor, numbers: list[int]) -> float:
    """Share of right answers about the attributes of these numbers, in [0, 1]. Source: the paper, section 4."""
    return float((seen[:, numbers] == wanted[:, numbers].bool()).float().mean())


def mask_accuracy(seen: Tensor, wanted: Tensor) -> float:
    """Share of pixels that have the label they should have, in [0, 1]. Source: the paper, section 4.3."""
    return float((seen == wanted).float().mean())


def mean_iou(seen: Tensor, wanted: Tensor) -> float:
    """Intersection over union of each label over all pictures, the mean over the labels that are there, in [0, 1].

    Source: Long et al., "Fully Convolutional Networks for Semantic Segmentation", section 5; background counts as one.
    """
    shares = []
    for label in range(len(PARTS) + 1):
        own, other = seen == label, wanted == label
        union = int((own | other).sum())
        if int(other.sum()):
            shares.append(int((own & other).sum()) / union)
    return sum(shares) / len(shares)
