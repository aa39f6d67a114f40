"""Two judges of faces: which attributes a picture shows, and where its parts are; and how they agree with a condition.

`mldm faces judges` trains them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mldm_plugin.conditions.celeba import ATTRIBUTES, PARTS
from mldm_plugin.errors import DataError

RESNET_18 = (64, 128, 256, 512)
SMALL = (24, 48, 96, 160)  # the widths that judge pictures of 128 pixels; chosen
LABELS = len(PARTS) + 1  # 0 is where no part is


class AttributeJudge(nn.Module):
    """A ResNet-18 with one logit an attribute, as the paper's (section 4.2).

    Args:
        widths: of its four stages; `RESNET_18` is the paper's, `SMALL` is enough for drawings.
    """

    file = "attributes.safetensors"

    def __init__(self, widths: tuple[int, ...] = SMALL) -> None:
        super().__init__()
        from transformers import ResNetConfig, ResNetModel

        config = ResNetConfig(
            embedding_size=widths[0], hidden_sizes=list(widths), depths=[2] * len(widths), layer_type="basic"
        )
        self.widths = widths
        self.network = ResNetModel(config)
        self.head = nn.Linear(widths[-1] * 16, len(ATTRIBUTES))  # where something is matters: a hat is above a face

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, 40) of pictures (N, 3, S, S) in [-1, 1]."""
        features = self.network(pixels).last_hidden_state
        return self.head(F.adaptive_avg_pool2d(features, 4).flatten(1))


class PartsJudge(nn.Module):
    """A small U-Net that labels each pixel with one of CelebAMask-HQ's parts, or with none."""

    file = "parts.safetensors"

    def __init__(self, widths: tuple[int, ...] = SMALL) -> None:
        super().__init__()
        self.widths = widths
        self.down = nn.ModuleList(_block(a, b) for a, b in zip((3, *widths[:-1]), widths, strict=True))
        pairs = zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True)
        self.up = nn.ModuleList(_block(a + b, b) for a, b in pairs)
        self.head = nn.Conv2d(widths[0], LABELS, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, 19, S, S) of pictures (N, 3, S, S) in [-1, 1]; S a multiple of 8."""
        kept, x = [], pixels
        for number, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if number else x)
            kept.append(x)
        for block, beside in zip(self.up, reversed(kept[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), beside], 1))
        return self.head(x)


Judge = TypeVar("Judge", AttributeJudge, PartsJudge)


def _block(low: int, high: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (low, high):
        layers += [nn.Conv2d(width, high, 3, padding=1, bias=False), nn.BatchNorm2d(high), nn.ReLU()]
    return nn.Sequential(*layers)


def write_judge(judge: AttributeJudge | PartsJudge, folder: Path, side: int) -> None:
    """Write its weights, and the side of the pictures that it learnt, so that others are judged by the same network."""
    tensors = {name: value.cpu().contiguous() for name, value in judge.state_dict().items()}
    save_file(tensors, folder / judge.file, {"side": str(side), "widths": json.dumps(judge.widths)})


def read_judge(kind: type[Judge], folder: Path) -> tuple[Judge, int, str]:
    """The judge of `write_judge`, the side that it looks at, and a few words that name it with its digest.

    Raises:
        DataError: the folder has none.
    """
    path = folder / kind.file
    try:
        with safe_open(path, "pt") as opened:
            known = opened.metadata()
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        judge = kind(tuple(json.loads(known["widths"])))
        judge.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        said = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        how = f"mldm faces judges FACES --out {folder}"
        raise DataError(f"{path} is no judge ({said}); train it: {how}") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return judge.eval(), int(known["side"]), f"{path.stem}_judge {digest} at {known['side']} px, of this project"


def at_side(pixels: Tensor, side: int) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] as a judge looks at them, (N, 3, side, side)."""
    if pixels.shape[-2:] == (side, side):
        return pixels
    return F.interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)


@torch.no_grad()
def attributes_seen(judge: AttributeJudge, pixels: Tensor, batch: int = 32) -> Tensor:
    """What it says of pictures (N, 3, S, S) in [-1, 1], bool (N, 40)."""
    return torch.cat([judge(some) > 0 for some in pixels.split(batch)])


@torch.no_grad()
def parts_seen(judge: PartsJudge, pixels: Tensor, batch: int = 16) -> Tensor:
    """The labels that it gives the pixels, uint8 (N, S, S)."""
    return torch.cat([judge(some).argmax(1).to(torch.uint8) for some in pixels.split(batch)])


def attribute_accuracy(seen: Tensor, wanted: Tensor, numbers: list[int]) -> float:
    """Share of right answers about the attributes of these numbers, in [0, 1]. Source: the paper, section 4.

    Args:
        seen, wanted: (N, 40), of yes and no.
    """
    return float((seen[:, numbers].bool() == wanted[:, numbers].bool()).float().mean())


def overlaps(seen: Tensor, wanted: Tensor) -> Tensor:
    """For each picture and label how many pixels have it in both, and in either: int64 (N, 2, 19).

    Args:
        seen, wanted: labels (N, H, W).
    """
    own, other = (F.one_hot(labels.long(), LABELS).flatten(1, 2) > 0 for labels in (seen, wanted))
    return torch.stack([(own & other).sum(1), (own | other).sum(1)], 1)


def iou_by_label(counts: Tensor) -> dict[int, float]:
    """Intersection over union of each label over all pictures, of `overlaps`; those that are nowhere are left out.

    Source: Long et al., "Fully Convolutional Networks for Semantic Segmentation", section 5; background counts as one.
    """
    both, either = counts.double().sum(0)
    return {label: float(both[label] / either[label]) for label in range(LABELS) if either[label]}


def mean_iou(counts: Tensor) -> float:
    """The mean of `iou_by_label`, in [0, 1].

    >>> mean_iou(overlaps(torch.tensor([[[1, 1], [0, 2]]]), torch.tensor([[[1, 0], [0, 2]]])))
    0.6666666666666666
    """
    shares = iou_by_label(counts)
    return sum(shares.values()) / len(shares)


def mask_accuracy(counts: Tensor) -> float:
    """Share of pixels that have the label they should have, in [0, 1], of `overlaps`. Source: the paper, section 4.3.

    Each pixel of the right label is in its label's intersection; of all others two labels' unions have one each.
    """
    both, either = counts.double().sum((0, 2))
    return float(both / ((both + either) / 2))


def names_of_labels() -> dict[int, str]:
    """What the labels of a mask are called."""
    return dict(enumerate(("background", *PARTS)))
