"""What each loss sees: estimates of one picture that differ in that alone, and what the loss says of each.

`python docs/pairs.py` writes docs/images/seen_NAME.jpg and docs/losses/pairs.json for every loss whose weights are
here, `python docs/pairs.py keypoints` for one. Drawings and noise are of fixed seeds; the card of each loss shows
them (docs/generate.py). Needs matplotlib, and openpeople for `identity`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from mldm_plugin import DiffusionStep, load_plugins
from mldm_plugin.calibration.placing import placed
from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.errors import WeightsError
from mldm_plugin.people_mini import PIPELINE
from mldm_plugin.people_mini.image_folder import row_of
from mldm_plugin.people_mini.unseen import photos_of
from mldm_plugin.prepare.synthetic.annotation import annotate
from mldm_plugin.prepare.synthetic.picture import Picture, Plan, draw_plan, paint
from mldm_plugin.prepare.synthetic.silhouette import visible_masks

sys.path.append(str(Path(__file__).parent))  # tests load this file by its path

import keypoints as limbs

IMAGES, FILE = Path(__file__).parent / "images", Path(__file__).parent / "losses" / "pairs.json"
SEED, SIZE = 77, 256  # of drawings
MINI = 2_000_009  # a drawing of 128 pixels that people-mini has never seen
ERROR = 0.25  # of the latents of people, each number on average
PIXELS, LATENTS = "squared error of pixels", "plain loss"


@dataclass
class Seen:
    """Estimates of a photograph.

    Args:
        photograph: (3, H, W) in [-1, 1].
        estimates: (n, 3, H, W).
        words: what each is.
        annotation: of one image, as `DiffusionStep` has it.
        where: x0, y0, x1, y1 of what is enlarged.
        fields: more of the step, of all images.
        beside: what else is told of each estimate, by name.
    """

    photograph: Tensor
    estimates: Tensor
    words: Sequence[str]
    annotation: dict[str, Tensor]
    where: Sequence[float]
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    beside: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def values(self, losses: dict[str, Any]) -> dict[str, list[float]]:
        """What each loss says of each estimate, by its name, and what is told beside it."""
        n, z = len(self.estimates), torch.zeros(len(self.estimates), 4, 1, 1)
        step = DiffusionStep(z, z, z, torch.zeros(n, dtype=torch.long), z, z)
        step = replace(step, **{name: _of_all(name, of_one, n) for name, of_one in self.annotation.items()})
        seen: dict[str, Any] = {
            "pred_images": self.estimates,
            "target_images": self.photograph.expand_as(self.estimates),
        }
        step = replace(step, **seen, **self.fields)
        told = {name: loss(step).tolist() for name, loss in losses.items()}
        squared = (self.estimates - self.photograph).square().flatten(1).mean(1).tolist()
        return told | (self.beside or {PIXELS: squared})


def _of_all(name: str, of_one: Tensor, n: int) -> Any:
    return of_one[None].expand(n, *of_one.shape) if name == "person_mask" else [of_one] * n


# Drawn people


def one_person(wanted: Callable[[Plan], bool]) -> Plan:
    """The first drawing of one person alone of which that is true."""
    plans = (draw_plan(np.random.default_rng([SEED, seed]), SIZE) for seed in itertools.count(1))
    return next(plan for plan in plans if len(plan.people) == 1 and not plan.props and wanted(plan))


def bare_face(plan: Plan) -> bool:
    [person] = plan.people
    look = person.look
    covered = {look.glasses, look.hat, look.beard} != {"none"}
    return not covered and look.expression == "neutral" and look.gaze == "camera" and not person.pose.back


def painted(plan: Plan, **look: Any) -> Picture:
    """The drawing with another look of its person, and nothing else another."""
    [person] = plan.people
    return paint(replace(plan, people=[replace(person, look=replace(person.look, **look))]), np.random.default_rng(1))


def as_image(picture: Picture) -> Tensor:
    return torch.from_numpy(picture.pixels).permute(2, 0, 1).float() / 127.5 - 1


def annotated(picture: Picture) -> tuple[dict[str, Tensor], Tensor]:
    """What a step has of the one person, and the box of the face."""
    [person] = (a for a in annotate(picture, np.random.default_rng(1)) if "keypoints" in a)
    [mask] = (m for m, item in zip(visible_masks(picture.shares), picture.items, strict=True) if item.person)
    x, y, width, height = person["face_box"]
    box = torch.tensor([[x, y, x + width, y + height]])
    return {"person_mask": torch.from_numpy(mask)[None].to(torch.uint8), "face_boxes": box}, box[0]


def brighter(photo: Tensor, where: Tensor, error: float) -> Tensor:
    """The photograph, brighter on a mask (1, H, W), so that its squared error is `error`."""
    return photo + where * (error / where.float().mean()) ** 0.5


def around(box: Tensor, times: float) -> list[float]:
    """A square about a box, so many times as large as its longer side."""
    middle, half = (box[:2] + box[2:]) / 2, times * (box[2:] - box[:2]).max() / 2
    return [*(middle - half).tolist(), *(middle + half).tolist()]


def sharpness() -> Seen:
    plan = one_person(lambda plan: plan.shot == "half" and bare_face(plan))
    picture = painted(plan)
    photo, (annotation, face) = as_image(picture), annotated(picture)
    mask = annotation["person_mask"]
    soft = torch.where(mask > 0, gaussian_blur(photo, [11, 11], 2.0), photo)
    bright = brighter(photo, mask, float((soft - photo).square().mean()))
    words = ("a person who is brighter", "blurred, with the same squared error")
    return Seen(photo, torch.stack([bright, soft]), words, annotation, around(face, 2.2))


def expression() -> Seen:
    plan = one_person(lambda plan: plan.shot == "close" and bare_face(plan))
    picture, other = painted(plan), as_image(painted(plan, expression="laugh"))
    photo, (annotation, face) = as_image(picture), annotated(picture)
    bright = brighter(photo, annotation["person_mask"], float((other - photo).square().mean()))
    words = ("a person who is brighter", "another expression, with the same squared error")
    return Seen(photo, torch.stack([bright, other]), words, annotation, around(face, 1.3))


def person() -> Seen:
    """Two people's panels of openpeople, the same expression before the same backdrop, their faces in one place."""
    own, [its] = photos_of("P009", ("neutral", "happy")), photos_of("P010", ("happy",))
    neutral, happy, other = (torch.from_numpy(np.array(p.picture)).permute(2, 0, 1) / 127.5 - 1 for p in (*own, its))
    faces = [photo.face for photo in (*own, its)]
    estimates = [placed(happy, faces[1], faces[0]), placed(other, faces[2], faces[0])]
    box = torch.tensor(faces[0])
    words = ("the same person, smiling", "another person, smiling")
    return Seen(neutral, torch.stack(estimates), words, {"face_boxes": box[None]}, around(box, 1.15))


def opens_a_hand(plan: Plan) -> bool:
    word = limbs.shown_hand(plan)
    return word is not None and plan.shot == "half" and plan.people[0].pose.hands[word == "right"] == "open"


def hand() -> Seen:
    plan = one_person(opens_a_hand)
    [one], word = plan.people, limbs.shown_hand(plan) or ""
    wrong = [limbs.with_fault(one, word, fault) for fault in ("none", "hand bent by 15°", "hand missing")]
    drawn = [paint(replace(plan, people=[whose]), np.random.default_rng(1)) for whose in wrong]
    [made] = (a for a in annotate(drawn[0], np.random.default_rng(1)) if "keypoints" in a)
    joints = torch.tensor(made["keypoints"]).view(1, 17, 3)
    joints[0, limbs.KEYPOINTS.index("left_wrist" if word == "right" else "right_wrist")] = 0  # one hand alone counts
    [[x, y, side, _]] = limbs.hand_squares(joints, limbs.EXTENT).tolist()
    estimates = torch.stack([limbs.as_estimate(as_image(one), SEED) for one in drawn])
    box = torch.tensor([x - side / 2, y - side / 2, x + side / 2, y + side / 2])
    words = ("as it is, a little blurred and noisy", "the same, its hand bent by 15°", "the same, its hand missing")
    return Seen(as_image(drawn[0]), estimates, words, {"keypoints": joints}, around(box, 1.2))


# Latents of people-mini


@cache
def decoder() -> LatentDecoder:
    return LatentDecoder(AutoencoderKL.from_pretrained(PIPELINE, subfolder="vae"))


def of_latents(make: Callable[[Tensor, Tensor], Sequence[Tensor]], words: Sequence[str]) -> Seen:
    """A drawing whose latents are off by what `make` makes of noise (1, 4, h, w) and of what people cover (1, 1, h, w);
    each error is as large as the others, so the plain loss does not tell them apart, where noise and picture are
    equally strong (SNR 1)."""
    row = row_of(MINI)
    if row is None:
        raise AssertionError
    picture, mask, _ = row
    photo = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
    person = torch.from_numpy(mask)[None]
    latents, _ = decoder().encode(photo[None])
    cover = F.interpolate(person[None].float(), latents.shape[-2:], mode="area")
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(SEED))
    wrong = make(noise, cover)
    length = ERROR * cover.sum().mul(latents.shape[1]).sqrt()
    errors = torch.cat([one * length / one.norm() for one in wrong])
    made, features = decoder().with_features(latents + errors)
    _, true = decoder().with_features(latents.expand_as(errors))
    zeros = torch.zeros_like(errors)  # at SNR 1 the output is off by as much as the estimate, the other way
    same = dict.fromkeys(("latents", "noise", "noisy_latents", "target"), zeros)
    fields = {**same, "model_pred": -errors, "pred_features": features, "target_features": true, "pixel_values": made}
    plain = errors.square().flatten(1).mean(1).tolist()
    box = [0.0, 0.0, float(photo.shape[2]), float(photo.shape[1])]
    return Seen(photo, made, words, {"person_mask": person}, box, fields, {LATENTS: plain})


def decoded_error() -> Seen:
    """The plain loss counts all four numbers of a latent pixel alike; the decoder hardly hears the second."""

    def make(noise: Tensor, cover: Tensor) -> list[Tensor]:
        channels = torch.eye(4).view(4, 1, 4, 1, 1)
        return [noise * channels[k] * (cover > 0.5) for k in (1, 0)]

    words = ("the person's latents off, in their second channel", "off as much, in their first channel")
    return of_latents(make, words)


def place_of_error() -> Seen:
    words = ("latents off elsewhere", "off as much, on the person")
    return of_latents(lambda noise, cover: [noise * (cover < 0.5), noise * (cover > 0.5)], words)


def arrangement() -> Seen:
    """An arm that is elsewhere, beside one whose sleeve has another colour, with the same squared error."""
    plan = one_person(lambda plan: plan.shot == "half" and limbs.shown_hand(plan) is not None)
    picture = painted(plan)
    photo, (annotation, _) = as_image(picture), annotated(picture)
    word = limbs.shown_hand(plan) or "left"
    bent = limbs.with_fault(plan.people[0], word, "forearm bent by 15°")
    moved = as_image(paint(replace(plan, people=[bent]), np.random.default_rng(1)))
    bright = brighter(photo, annotation["person_mask"], float((moved - photo).square().mean()))
    words = ("a person who is brighter", "an arm elsewhere, with the same squared error")
    box = [0.0, 0.0, float(photo.shape[2]), float(photo.shape[1])]
    return Seen(photo, torch.stack([bright, moved]), words, annotation, box)


@dataclass(frozen=True)
class Card:
    """What stands in the card of a loss: its estimates, and the options that it is asked with."""

    seen: Callable[[], Seen]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


CARDS = {
    "masked_lpips": Card(sharpness),
    "face": Card(expression, {"network": "dlib_resnet"}),
    "identity": Card(person),
    "latent_perceptual": Card(decoded_error),
    "masked_mse": Card(place_of_error),
    "keypoints": Card(hand),
    "dino": Card(arrangement),
}


def told(name: str) -> tuple[Seen, dict[str, list[float]]]:
    """The estimates, and what the loss says of them.

    Raises:
        WeightsError: its weights cannot be had.
    """
    loss, seen = load_plugins().losses[name](**CARDS[name].options), CARDS[name].seen()
    return seen, {label: [float(f"{v:.3g}") for v in of] for label, of in seen.values({name: loss}).items()}


def draw(seen: Seen, values: dict[str, list[float]], path: Path) -> None:
    """The photograph and its estimates side by side, with what is enlarged below, and the values."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    pictures = [seen.photograph, *seen.estimates]
    titles = ["photograph", *seen.words]
    figure, axes = plt.subplots(1, len(pictures), figsize=(2.9 * len(pictures), 3.9), layout="constrained")
    x0, y0, x1, y1 = seen.where
    for k, (one, picture, title) in enumerate(zip(axes, pictures, titles, strict=True)):
        one.imshow(((picture.clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy())
        one.set(xlim=(x0, x1), ylim=(y1, y0), xticks=(), yticks=())
        one.set_title(title.replace(", ", ",\n"), fontsize=9)
        lines = [f"{label} {of[k - 1]:g}" for label, of in values.items()] if k else ["what it is compared with"]
        one.set_xlabel("\n".join(lines), fontsize=9)
    figure.savefig(path, dpi=100, pil_kwargs={"quality": 85})
    plt.close(figure)


@torch.no_grad()
def main(names: Sequence[str]) -> None:
    found = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    for name in names or CARDS:
        try:
            seen, values = told(name)
        except WeightsError as error:
            click.echo(f"{name}: not drawn, {error}")
            continue
        draw(seen, values, IMAGES / f"seen_{name}.jpg")
        found[name] = {"words": list(seen.words), "values": values}
        click.echo(f"{name}: {found[name]}")
    FILE.write_text(
        json.dumps({name: found[name] for name in CARDS if name in found}, indent=1, ensure_ascii=False) + "\n"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
