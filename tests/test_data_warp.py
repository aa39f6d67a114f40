"""Mask, boxes and keypoints against the same warp worked out by formula, over drawn sizes, crops and flips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms, tv_tensors

from mldm_plugin.data.geometry import Cut, Framing
from mldm_plugin.errors import DataError

SIDE = 128
LEAST_ACROSS = 90  # pixels; a disc of 90 is wrong by 2 % when its rim is wrong by 0.45 pixels all around
PAIRS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
NAMES = ["nose", *(name for name in PAIRS for _ in range(2))]
SIDES = ["", *["left", "right"] * 8]


def to_square(points: np.ndarray, size: tuple[int, int], cut: Cut) -> np.ndarray:
    """Where points (…, 2) of the stored picture lie in the square."""
    width, height = size
    resized = np.array([SIDE, int(SIDE * height / width)] if width <= height else [int(SIDE * width / height), SIDE])
    x, y = np.moveaxis(points * resized / np.array(size) - (cut.left, cut.top), -1, 0)
    return np.stack([SIDE - x if cut.mirrored else x, y], axis=-1)


def to_picture(points: np.ndarray, size: tuple[int, int], cut: Cut) -> np.ndarray:
    """The other way: the warp is affine, so three points say all."""
    origin, right, down = to_square(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), size, cut)
    return (points - origin) @ np.linalg.inv(np.stack([right - origin, down - origin]))


def inside_ellipse(points: np.ndarray, centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    return (((points - centre) / radii) ** 2).sum(axis=-1) <= 1


def pixel_centres(width: int, height: int) -> np.ndarray:
    """(height, width, 2)"""
    return np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)


@given(
    size=st.tuples(st.integers(112, 220), st.integers(112, 220)),
    crop=st.booleans(),
    flip=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=1000, deadline=None)
def test_all_that_is_drawn_on_a_picture_follows_the_formula(size, crop, flip, seed):
    random = np.random.default_rng(seed)
    framing = Framing(SIDE, random_crop=crop, random_flip=flip)
    torch.manual_seed(seed)
    cut = framing.draw(size)
    centre, radii = np.array(size) * random.uniform(0.4, 0.6, 2), min(size) * random.uniform(0.37, 0.55, 2)
    told = inside_ellipse(to_picture(pixel_centres(SIDE, SIDE), size, cut), centre, radii)
    assume(told.sum() >= LEAST_ACROSS**2 * np.pi / 4)

    stored = inside_ellipse(pixel_centres(*size), centre, radii).astype(np.uint8) * 3
    mask = framing.mask(torch.from_numpy(stored)[None], cut)[0].numpy()
    assert set(np.unique(mask)) <= {0, 3}
    assert ((mask > 0) & told).sum() / ((mask > 0) | told).sum() >= 0.98

    box = torch.tensor([[*np.maximum(centre - radii, 0), *np.minimum(centre + radii, size)]], dtype=torch.float32)
    (moved,), _ = framing.boxes(box, size, cut)
    rows, columns = np.nonzero(told)
    assert np.abs(moved.numpy() - [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).max() <= 1
    corners = to_square(box.numpy().reshape(2, 2).astype(float), size, cut).clip(0, SIDE)
    assert np.abs(moved.numpy() - [*corners.min(axis=0), *corners.max(axis=0)]).max() < 1e-3

    check_keypoints(random, framing, size, cut)


def check_keypoints(random: np.random.Generator, framing: Framing, size: tuple[int, int], cut: Cut) -> None:
    """Two people, some of their points outside the picture; v is told by what happens to it."""
    points = random.uniform(-0.1, 1.1, (2, 17, 2)) * size
    v = random.integers(0, 3, (2, 17))
    stored = torch.from_numpy(np.concatenate([points, v[..., None]], axis=-1)).float()
    framed = framing.keypoints(stored, size, cut)
    assert framed.dtype == torch.float32
    assert type(framed) is torch.Tensor
    expected = to_square(points, size, cut)
    for person in range(2):
        for k, (x, y) in enumerate(expected[person]):
            side = {"left": "right", "right": "left"}.get(SIDES[k], "") if cut.mirrored else SIDES[k]
            now = next(i for i in range(17) if (NAMES[i], SIDES[i]) == (NAMES[k], side))
            assume(min(abs(x), abs(y), abs(x - SIDE), abs(y - SIDE)) > 1e-3)  # on the rim rounding decides
            if v[person, k] and 0 < x < SIDE and 0 < y < SIDE:
                assert np.abs(framed[person, now].numpy() - [x, y, v[person, k]]).max() < 1e-2
            else:
                assert framed[person, now].tolist() == [0, 0, 0]


def test_keypoints_by_hand():
    """Of 160x80 at 40: half the size, then the 40 pixels from 30, mirrored: the left eye is now called the right."""
    keypoints = torch.zeros(1, 17, 3)
    keypoints[0, 1] = torch.tensor([70.0, 10.0, 2.0])
    keypoints[0, 16] = torch.tensor([139.0, 80.0, 1.0])
    keypoints[0, 15] = torch.tensor([58.0, 20.0, 2.0])  # cut off on the left
    framed = Framing(40).keypoints(keypoints, (160, 80), Cut(0, 30, mirrored=True))
    expected = torch.zeros(1, 17, 3)
    expected[0, 2] = torch.tensor([35.0, 5.0, 2.0])
    expected[0, 15] = torch.tensor([0.5, 40.0, 1.0])
    assert framed.equal(expected)
    assert Framing(40).keypoints(torch.zeros(0, 17, 3), (160, 80)).shape == (0, 17, 3)


def test_an_old_torchvision_is_told_what_to_do(monkeypatch):
    monkeypatch.delattr(tv_tensors, "KeyPoints")
    with pytest.raises(DataError, match=r"torchvision 0\.23 or later, .*--keypoints_column none"):
        Framing(40).keypoints(torch.zeros(1, 17, 3), (80, 80))


@pytest.mark.parametrize("flip", [False, True])
def test_colours_are_those_of_torchvision_and_drawn_last(flip):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    own = Framing(32, random_crop=True, random_flip=flip, color_jitter=(0.3, 0.3, 0.3, 0.1))
    steps = [transforms.Resize(32), transforms.RandomCrop(32), transforms.ColorJitter(0.3, 0.3, 0.3, 0.1)]
    theirs = transforms.Compose(steps[:2] + [transforms.RandomHorizontalFlip()] * flip + steps[2:])
    for seed in range(5):
        torch.manual_seed(seed)
        expected, after = theirs(picture), torch.get_rng_state()
        torch.manual_seed(seed)
        cut = own.draw(picture.size)
        assert after.equal(torch.get_rng_state())
        assert own.picture(picture, cut).equal(transforms.functional.to_tensor(expected))
        assert own.picture(picture, cut).equal(own.picture(picture, cut))
