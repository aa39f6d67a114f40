"""What `identity` does to pixels, in the eyes of another network: docs/losses/identity.md.

    python tests/benchmarks/identity_descent.py

Of openpeople's people, by pairs: the pixels of B's selfie go down the loss towards A, the bank holding all ten people;
FaceRes, which no loss uses, says how like A's portrait they become, by boxes and by landmarks. Then two people side by
side, each of whose faces is half the other's: what the loss makes of them, without negatives and with. Nine minutes on
two cores.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Literal

import face_auc
import torch
from torch import Tensor
from torch.nn import functional as F

from mldm_plugin import DiffusionStep
from mldm_plugin.hooks.identity import Identity
from mldm_plugin.perceptual.face_crops import FaceCrop, crop_faces
from mldm_plugin.perceptual.face_networks import FaceFeatures
from mldm_plugin.perceptual.identity_bank import IdentityBank

STEPS, RATE, SIDE = 100, 0.01, 160
PAIRS = 10
BANK, SEEN, JUDGED = ("emotions_sheet",), "amateur_selfie", "studio_portrait"


def cut(seen: face_auc.SeenFace) -> Tensor:
    """A face with room around it, (3, SIDE, SIDE)."""
    return crop_faces(seen[2][None], [seen[3][None]], FaceCrop(SIDE, 2.0))[0]


BOX = torch.tensor([[SIDE / 4, SIDE / 4, SIDE * 3 / 4, SIDE * 3 / 4]])


def step_of(pred: Tensor, target: Tensor, boxes: Tensor) -> DiffusionStep:
    z, t = torch.zeros(1, 4, 1, 1), torch.zeros(1, dtype=torch.long)
    return DiffusionStep(
        latents=z, noise=z, noisy_latents=z, timesteps=t, model_pred=z, target=z, face_boxes=[boxes],
        pred_images=pred, target_images=target,
    )  # fmt: skip


def descend(loss: Identity, start: Tensor, target: Tensor, boxes: Tensor) -> Tensor:
    """`start` after some steps of Adam on its pixels."""
    pixels = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([pixels], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        given = loss(step_of(pixels, target, boxes))
        value = given[0] if isinstance(given, tuple) else given
        value.sum().backward()
        optimizer.step()
    return pixels.detach().clamp(-1, 1)


class Judge:
    """FaceRes: cosines of faces."""

    def __init__(self) -> None:
        self.features = FaceFeatures("faceres")

    def __call__(self, image: Tensor, boxes: Tensor) -> Tensor:
        with torch.no_grad():
            return F.normalize(self.features(crop_faces(image, [boxes], self.features.crop))[-1], dim=1)


def told(name: str, values: Sequence[float]) -> None:
    numbers = torch.tensor(values)
    sys.stdout.write(f"{name:<46} {numbers.mean():.3f} ± {numbers.std() / len(numbers) ** 0.5:.3f}\n")
    sys.stdout.flush()


def with_bank(
    align: Literal["box", "landmarks"], faces: Sequence[face_auc.SeenFace], people: Sequence[str]
) -> Identity:
    """The loss with all people in its bank, by their expressions."""
    loss = Identity(align=align)
    known = {
        p: torch.stack([loss.embedded.of(f[2][None], [f[3][None]])[0] for f in faces if f[:2] == (p, BANK[0])])
        for p in people
    }
    loss.bank, loss.logs = IdentityBank(known), (*loss.logs, "copying")
    return loss


def main() -> None:
    faces = face_auc.faces((*BANK, SEEN, JUDGED))
    people = sorted({face[0] for face in faces})
    first = {(p, s): cut(next(f for f in faces if f[:2] == (p, s))) for p in people for s in (SEEN, JUDGED)}
    by_box, by_landmarks, judge = with_bank("box", faces, people), with_bank("landmarks", faces, people), Judge()
    pairs = list(itertools.islice(zip(people, people[1:] + people[:1], strict=True), PAIRS))
    likeness: dict[str, list[float]] = {}
    for a, b in pairs:
        own = judge(first[a, JUDGED][None], BOX)
        towards, start = first[a, SEEN][None], first[b, SEEN][None]
        pictures = {
            "B": start,
            "B towards A": descend(by_box, start, towards, BOX),
            "B towards A by landmarks": descend(by_landmarks, start, towards, BOX),
            "A": towards,
        }
        for name, picture in pictures.items():
            alike = float((judge(picture, BOX) @ own.T)[0, 0])
            likeness.setdefault(f"likeness to A's portrait: {name}", []).append(alike)
    for name, values in likeness.items():
        told(name, values)
    _, box, landmarks, _ = likeness.values()
    told("landmarks less box", [one - other for one, other in zip(landmarks, box, strict=True)])
    bleeding(by_box, judge, first, pairs)


def bleeding(loss: Identity, judge: Judge, first: dict[tuple[str, str], Tensor], pairs: list[tuple[str, str]]) -> None:
    """Likeness of each face to its own portrait, less that to the other's."""
    boxes = torch.cat([BOX, BOX + torch.tensor([SIDE, 0, SIDE, 0])])
    apart: dict[str, list[float]] = {}
    for a, b in pairs:
        one, other = first[a, SEEN], first[b, SEEN]
        true = torch.cat([one, other], dim=2)[None]
        bled = torch.cat([(one + other) / 2] * 2, dim=2)[None]
        portraits = torch.cat([judge(first[p, JUDGED][None], BOX) for p in (a, b)])
        results = {"bled": bled}
        for contrast in (0.0, 1.0):
            loss.contrast = contrast
            results[f"after, contrast {contrast:g}"] = descend(loss, bled, true, boxes)
        for name, picture in {**results, "photographs": true}.items():
            alike = judge(picture, boxes) @ portraits.T
            apart.setdefault(f"own less other: {name}", []).append(
                float((alike.diagonal() - alike.flip(1).diagonal()).mean())
            )
    for name, values in apart.items():
        told(name, values)
    pairwise = zip(apart["own less other: after, contrast 1"], apart["own less other: after, contrast 0"], strict=True)
    told("own less other: contrast 1 less contrast 0", [with_it - without for with_it, without in pairwise])


if __name__ == "__main__":
    main()
