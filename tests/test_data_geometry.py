from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from mldm_plugin.data.geometry import Framing

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
    assert own(picture(*size), None, torch.zeros(0, 4)).picture.equal(theirs(picture(*size)))


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
    framed = Framing(resolution)(picture(*size), torch.from_numpy(labels)[None], torch.zeros(0, 4))
    assert framed.mask.dtype == torch.uint8
    assert framed.mask.shape == (1, resolution, resolution)
    assert type(framed.mask) is torch.Tensor
    assert framed.mask.equal(theirs)


@given(size=sizes, resolution=st.sampled_from([16, 64]), corner=st.tuples(st.floats(0, 0.6), st.floats(0, 0.6)))
@settings(deadline=None, max_examples=60)
def test_boxes_follow_the_picture(size, resolution, corner):
    """A box framed is the box of what it enclosed: computed here by hand."""
    width, height = size
    box = torch.tensor([[corner[0] * width, corner[1] * height, width * 0.8, height * 0.8]])
    framed = Framing(resolution)(picture(*size), None, box)
    resized_w = resolution if width <= height else int(resolution * width / height)
    resized_h = resolution if height <= width else int(resolution * height / width)
    left, top = round((resized_w - resolution) / 2), round((resized_h - resolution) / 2)
    moved = box[0] * torch.tensor([resized_w / width, resized_h / height] * 2) - torch.tensor([left, top] * 2)
    clipped = moved.clamp(0, resolution)
    visible = (clipped[2:] - clipped[:2]).prod() / (moved[2:] - moved[:2]).prod()
    if visible > 0.52:
        assert framed.boxes.shape == (1, 4)
        assert torch.allclose(framed.boxes[0], clipped, atol=1e-3)
    elif visible < 0.48:
        assert framed.boxes.shape == (0, 4)
    assert framed.boxes.dtype == torch.float32
    assert type(framed.boxes) is torch.Tensor


def test_mask_and_box_of_one_square_stay_on_it():
    image = Image.new("RGB", (120, 80))
    image.paste((255, 255, 255), (50, 20, 70, 40))
    mask = torch.zeros(1, 80, 120, dtype=torch.uint8)
    mask[:, 20:40, 50:70] = 3
    framed = Framing(40)(image, mask, torch.tensor([[50.0, 20.0, 70.0, 40.0]]))
    assert framed.boxes.tolist() == [[15.0, 10.0, 25.0, 20.0]]
    assert (framed.mask[0, 10:20, 15:25] == 3).all()
    assert (framed.mask == 3).sum() == 100
    assert (framed.picture[0, 11:19, 16:24] == 1).all()
    assert framed.picture[0, :9].sum() == 0


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
    framed = Framing(40)(picture(160, 80), None, boxes)
    assert framed.boxes.tolist() == left
    assert Framing(40).boxes(boxes, (160, 80))[1].tolist() == [bool(left)]
