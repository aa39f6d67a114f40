"""A classifier of drawn people's attributes, trained on real drawings: it says whether a sample shows its caption."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from mldm_plugin.people_mini.attributes import PLACES
from mldm_plugin.people_mini.drawn import VIEWS
from mldm_plugin.perceptual.frozen import build_seeded
from mldm_plugin.prepare.synthetic.look import (
    BEARDS,
    EXPRESSIONS,
    GLASSES,
    HATS,
    KINDS,
    PATTERNS,
    STYLES,
    TOPS,
)
from mldm_plugin.prepare.synthetic.palette import CLOTH, HAIR, SKIN

# What is asked of a picture, and the answers. Gaze and eye colour are left out: at 128 pixels an eye has three.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "kind": tuple(KINDS),
    "skin": tuple(SKIN),
    "hair": tuple(sorted({style for styles in STYLES.values() for style in styles})),
    "hair_colour": (*HAIR, "none"),
    "expression": tuple(EXPRESSIONS),
    "glasses": tuple(GLASSES),
    "beard": tuple(BEARDS),
    "hat": tuple(HATS),
    "top": tuple(sorted({top for tops in TOPS.values() for top in tops})),
    "top_colour": tuple(CLOTH),
    "pattern": tuple(PATTERNS),
    "scene": tuple(PLACES),
    "view": ("bust", *dict.fromkeys(VIEWS.values())),
}
UNKNOWN = -100  # cross_entropy's mark of what is not to be learned


def labels_of(attributes: Sequence[dict[str, str]]) -> Tensor:
    """Numbers of the answers (n, questions); UNKNOWN where the picture does not show it."""
    rows = []
    for a in attributes:
        rows.append([answers.index(a[q]) if a[q] in answers else UNKNOWN for q, answers in QUESTIONS.items()])
    return torch.tensor(rows)


class Block(nn.Module):
    """Two convolutions and a short cut; the first may halve the sides."""

    def __init__(self, low: int, high: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(low, high, 3, stride, 1, bias=False), nn.BatchNorm2d(high), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(high, high, 3, 1, 1, bias=False), nn.BatchNorm2d(high))
        self.short = nn.Sequential(nn.Conv2d(low, high, 1, stride, bias=False), nn.BatchNorm2d(high))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.short(x))


class Classifier(nn.Module):
    """Pictures (n, 3, 128, 128) in [-1, 1] → logits for all answers to all questions, (n, answers)."""

    def __init__(self, widths: Sequence[int] = (24, 48, 96, 160)) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, widths[0], 5, 2, 2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        blocks = [Block(low, high, 2) for low, high in pairwise(widths)]
        self.body = nn.Sequential(stem, Block(widths[0], widths[0], 1), *blocks, Block(widths[-1], widths[-1], 1))
        # Where something is matters (a hat is above a face), so the last map is not averaged as a whole.
        self.head = nn.Linear(widths[-1] * 16, sum(len(answers) for answers in QUESTIONS.values()))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.body(pixels), 4).flatten(1))


def by_question(logits: Tensor) -> tuple[Tensor, ...]:
    """The logits of each question's answers."""
    return logits.split([len(answers) for answers in QUESTIONS.values()], 1)


def varied(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored, shifted and softened at random, so that a sample's slight blur is nothing new."""
    device, room = pixels.device, 6

    def draw(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator, device=device))

    padded = F.pad(pixels, (room,) * 4, mode="replicate")
    x, y = draw(2 * room + 1), draw(2 * room + 1)
    moved = padded[..., y : y + pixels.shape[-2], x : x + pixels.shape[-1]]
    turned = torch.rand(len(pixels), 1, 1, 1, generator=generator, device=device) < 0.5
    moved = torch.where(turned, moved.flip(-1), moved)
    softened = F.avg_pool2d(moved, 3, 1, 1, count_include_pad=False)
    share = torch.rand(len(pixels), 1, 1, 1, generator=generator, device=device)
    return moved + share * (softened - moved)


def train_classifier(pixels: Tensor, labels: Tensor, steps: int, batch: int = 128, seed: int = 0) -> Classifier:
    """Train on drawings, uint8 (n, 3, 128, 128), on their device."""
    device = pixels.device
    network = build_seeded(Classifier, seed).to(device)
    labels, generator = labels.to(device), torch.Generator(device).manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in tqdm(range(steps), desc="classifier", mininterval=5):
        numbers = torch.randint(len(pixels), (batch,), generator=generator, device=device)
        logits = by_question(network(varied(pixels[numbers].float() / 127.5 - 1, generator)))
        wanted = labels[numbers]
        loss: Any = sum(_cross_entropy(one, wanted[:, q]) for q, one in enumerate(logits))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def write_classifier(network: Classifier, path: Path) -> None:
    """Write its weights in half precision, so that other samples are judged by the same network."""
    weights = network.state_dict().items()
    save_file({name: (value.half() if value.is_floating_point() else value).cpu() for name, value in weights}, path)


def read_classifier(path: Path, device: torch.device) -> Classifier:
    """The network of `write_classifier`, in single precision."""
    network = Classifier()
    network.load_state_dict(load_file(path))
    return network.to(device).eval()


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """The mean over known answers; 0 where none is known."""
    total = F.cross_entropy(logits, wanted, ignore_index=UNKNOWN, reduction="sum")
    return total / (wanted != UNKNOWN).sum().clamp(min=1)


@torch.no_grad()
def answered(network: Classifier, pixels: Tensor, batch: int = 64) -> Tensor:
    """The likeliest answers (n, questions) about pictures in [-1, 1]."""
    found = [torch.stack([one.argmax(1) for one in by_question(network(some))], 1) for some in pixels.split(batch)]
    return torch.cat(found).cpu()


def accuracy(answers: Tensor, labels: Tensor) -> dict[str, float]:
    """The share of right answers to each question among those whose answer is known, and their mean."""
    known, right = labels != UNKNOWN, answers == labels
    shares = {q: float(right[known[:, i], i].float().mean()) for i, q in enumerate(QUESTIONS)}
    return {q: round(share, 4) for q, share in shares.items()} | {"mean": round(sum(shares.values()) / len(shares), 4)}
