from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from mldm_plugin.data.geometry import Cut, Framing

sizes = st.tuples(st.integers(8, 90), st.integers(8, 90))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@given(size=sizes, resolution=st.sampled_from([8, 32, 64]))
@settings(deadline=None, max_examples=40)
def test_the_picture_is_that_of_diffusers_script_to_the_bit(size, resolution):
    theirs = transforms.Compose(
        [
            transforms.Resize(resolution, interpolation=transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(resolution),
            transforms.ToTensor(),
        ]
    )
    own = Framing(resolution)
    assert own.picture(picture(*size)).equal(theirs(picture(*size)))


@given(size=sizes, resolution=st.sampled_from([8, 32, 64]))
@settings(deadline=None, max_examples=40)
def test_the_mask_is_what_pillow_makes_of_it(size, resolution):
    """Nearest neighbour from pixel centres: in register with the picture, and labels stay labels."""
    width, height = size
    labels = np.random.default_rng(1).integers(0, 4, (height, width), dtype=np.uint8)
    theirs = transforms.Compose(
        [
            transforms.Resize(resolution, interpolation=transforms.InterpolationMode.NEAREST),
            transforms.CenterCrop(resolution),
            transforms.PILToTensor(),
        ]
    )(Image.fromarray(labels))
    mask = Framing(resolution).mask(torch.from_numpy(labels)[None])
    assert mask.dtype == torch.uint8
    assert mask.shape == (1, resolution, resolution)
    assert type(mask) is torch.Tensor
    assert mask.equal(theirs)


@given(size=sizes, resolution=st.sampled_from([16, 64]), corner=st.tuples(st.floats(0, 0.6), st.floats(0, 0.6)))
@settings(deadline=None, max_examples=60)
def test_boxes_follow_the_picture(size, resolution, corner):
    """A box framed is the box of what it enclosed: computed here by hand."""
    width, height = size
    box = torch.tensor([[corner[0] * width, corner[1] * height, width * 0.8, height * 0.8]])
    kept = Framing(resolution).kept_boxes(box, size)
    resized_w = resolution if width <= height else int(resolution * width / height)
    resized_h = resolution if height <= width else int(resolution * height / width)
    left, top = round((resized_w - resolution) / 2), round((resized_h - resolution) / 2)
    moved = box[0] * torch.tensor([resized_w / width, resized_h / height] * 2) - torch.tensor([left, top] * 2)
    clipped = moved.clamp(0, resolution)
    visible = (clipped[2:] - clipped[:2]).prod() / (moved[2:] - moved[:2]).prod()
    if visible > 0.52:
        assert kept.shape == (1, 4)
        assert torch.allclose(kept[0], clipped, atol=1e-3)
    elif visible < 0.48:
        assert kept.shape == (0, 4)
    assert kept.dtype == torch.float32
    assert type(kept) is torch.Tensor


def test_mask_and_box_of_one_square_stay_on_it():
    image = Image.new("RGB", (120, 80))
    image.paste((255, 255, 255), (50, 20, 70, 40))
    mask = torch.zeros(1, 80, 120, dtype=torch.uint8)
    mask[:, 20:40, 50:70] = 3
    framing = Framing(40)
    boxes = framing.kept_boxes(torch.tensor([[50.0, 20.0, 70.0, 40.0]]), image.size)
    assert boxes.tolist() == [[15.0, 10.0, 25.0, 20.0]]
    framed, seen = framing.mask(mask), framing.picture(image)
    assert (framed[0, 10:20, 15:25] == 3).all()
    assert (framed == 3).sum() == 100
    assert (seen[0, 11:19, 16:24] == 1).all()
    assert seen[0, :9].sum() == 0


@pytest.mark.parametrize(
    ("box", "left"),
    [
        ([0, 0, 20, 40], []),  # cropped away: the crop is the middle 80x80 of 160x80
        ([30, 10, 50, 30], [[0, 5, 5, 15]]),  # half visible: clipped and kept
        ([28, 10, 50, 30], []),  # less than half
        ([-40, 10, 130, 30], [[0, 5, 40, 15]]),  # partly outside the photo: only the inside counts
        ([60, 10, 80, 30], [[10, 5, 20, 15]]),
    ],
)
def test_what_the_crop_leaves_of_a_box(box, left):
    boxes = torch.tensor([box], dtype=torch.float32)
    assert Framing(40).kept_boxes(boxes, (160, 80)).tolist() == left
    assert Framing(40).boxes(boxes, (160, 80))[1].tolist() == [bool(left)]


MODES = ["nearest", "nearest_exact", "bilinear", "bicubic", "box", "hamming", "lanczos"]


@given(
    size=sizes,
    resolution=st.sampled_from([8, 32, 64]),
    crop=st.booleans(),
    flip=st.booleans(),
    mode=st.sampled_from(MODES),
)
@settings(deadline=None, max_examples=60)
def test_what_is_drawn_and_cut_is_that_of_torchvisions_transforms(size, resolution, crop, flip, mode):
    """Three pictures in a row: each picture to the bit, and the generator left where they leave it."""
    theirs = transforms.Compose(
        [
            transforms.Resize(resolution, interpolation=transforms.InterpolationMode[mode.upper()]),
            transforms.RandomCrop(resolution) if crop else transforms.CenterCrop(resolution),
            transforms.RandomHorizontalFlip() if flip else transforms.Lambda(lambda x: x),
            transforms.ToTensor(),
        ]
    )
    own = Framing(resolution, interpolation=mode, random_crop=crop, random_flip=flip)
    pictures = [picture(*size, seed=seed) for seed in range(3)]
    torch.manual_seed(size[0])
    expected, after = [theirs(p) for p in pictures], torch.get_rng_state()
    torch.manual_seed(size[0])
    cuts = [own.draw(p.size) for p in pictures]
    assert after.equal(torch.get_rng_state())
    for p, cut, wanted in zip(pictures, cuts, expected, strict=True):
        assert own.picture(p, cut).equal(wanted)


@given(
    size=st.tuples(st.integers(70, 200), st.integers(70, 200)),
    seed=st.integers(0, 1000),
    mode=st.sampled_from(["bilinear", "lanczos", "nearest"]),
)
@settings(deadline=None, max_examples=40)
def test_mask_and_boxes_follow_crop_and_flip(size, seed, mode):
    """The picture is painted from its annotation: people by the red channel, the face by the green one."""
    width, height = size
    x0, y0, x1, y1 = width // 8, height // 8, width - width // 6, height - height // 7
    labels = np.zeros((height, width), np.uint8)
    labels[y0:y1, x0:x1] = 2
    face = (width // 3, height // 3, width // 3 + 24, height // 3 + 20)
    painted = np.zeros((height, width, 3), np.uint8)
    painted[..., 0] = 255 * (labels > 0)
    painted[face[1] : face[3], face[0] : face[2], 1] = 255
    framing = Framing(64, interpolation=mode, random_crop=True, random_flip=True)
    torch.manual_seed(seed)
    cut = framing.draw(size)
    boxes = torch.tensor([face], dtype=torch.float32)
    square, mask = framing.picture(Image.fromarray(painted), cut), framing.mask(torch.from_numpy(labels)[None], cut)
    boxes = framing.kept_boxes(boxes, size, cut)

    seen, told = square[0] > 0.5, mask[0] == 2
    assert (seen & told).sum() / (seen | told).sum() >= 0.95
    assert mask.unique().tolist() in ([0, 2], [2])
    rows, columns = torch.nonzero(square[1] > 0.5, as_tuple=True)
    if len(boxes):
        edges = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (boxes[0] - edges).abs().max() <= 1
    else:
        scale = (64 / min(size)) ** 2
        assert len(rows) < 0.6 * 24 * 20 * scale


def test_a_mirrored_box_by_hand():
    """Of 160x80 at 40: half the size, then the 40 pixels from 30, mirrored."""
    boxes = torch.tensor([[70.0, 10.0, 90.0, 30.0]])
    assert Framing(40).kept_boxes(boxes, (160, 80), Cut(0, 30, mirrored=True)).tolist() == [[25, 5, 35, 15]]
