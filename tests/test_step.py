"""DiffusionStep refuses what does not belong together; clip_boxes clips and never drops what is partly inside."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from make_step import make_step

from mldm_plugin.engine.step import clip_boxes
from mldm_plugin.errors import DataError


def test_shapes_that_do_not_belong_together_are_named():
    step = make_step()
    with pytest.raises(DataError, match=r"noise has shape \(2, 4, 4, 4\), expected that of latents, \(2, 4, 8, 8\)"):
        replace(step, noise=torch.zeros(2, 4, 4, 4))
    with pytest.raises(DataError, match="timesteps is for 3 images, expected 2"):
        replace(step, timesteps=torch.zeros(3))
    with pytest.raises(DataError, match="face_boxes is for 1 images, expected 2"):
        replace(step, face_boxes=[torch.zeros(0, 4)])
    with pytest.raises(DataError, match=r"person_mask is \(16, 16\), the pictures are \(32, 32\)"):
        replace(step, person_mask=torch.zeros(2, 1, 16, 16))
    with pytest.raises(DataError, match=r"person_mask has shape \(2, 32, 32\)"):
        replace(step, person_mask=torch.zeros(2, 32, 32))
    with pytest.raises(DataError, match=r"pixel_values is torch.uint8 .* expected float \(N, 3, H, W\)"):
        replace(step, pixel_values=torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


def test_select_keeps_rows_together_and_keeps_the_gradient():
    step = make_step((10, 20, 30))
    chosen = step.select([2, 0])
    assert chosen.timesteps.tolist() == [30, 10]
    assert len(chosen.face_boxes) == 2
    assert chosen.base_loss is None
    chosen.model_pred.sum().backward()
    assert step.model_pred.grad.flatten(1).sum(1).tolist() == [256, 0, 256]
    assert step.select([0, 1, 2]) is step


def test_clip_boxes_by_hand():
    boxes = torch.tensor([[-5.0, 2, 10, 50], [0, 0, 0, 0], [40, 40, 50, 50], [1, 1, 2, 2]])
    assert clip_boxes(boxes, 32, 32).tolist() == [[0, 2, 10, 32], [1, 1, 2, 2]]
    assert clip_boxes(torch.empty(0), 32, 32).shape == (0, 4)
    assert clip_boxes([[1, 1, 2, 2]], 32, 32).tolist() == [[1, 1, 2, 2]]
    with pytest.raises(DataError, match=r"shape \(1, 3\), expected \(K, 4\)"):
        clip_boxes([[1, 2, 3]], 32, 32)


@pytest.mark.parametrize(
    ("box", "message"),
    [([9.0, 9, 3, 12], "reversed"), ([float("nan"), 0, 1, 1], "not finite"), ([0, 0, float("inf"), 1], "not finite")],
)
def test_boxes_that_make_no_sense_are_refused(box, message):
    with pytest.raises(DataError, match=message):
        clip_boxes(torch.tensor([box]), 32, 32)


coordinate = st.floats(-100, 100, width=32)


@given(st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), max_size=6))
def test_clipped_boxes_lie_inside_and_none_that_overlaps_is_lost(corners):
    """Defect 9 of the released code: boxes partly outside the picture were dropped."""
    boxes = torch.tensor([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in corners]).reshape(-1, 4)
    clipped = clip_boxes(boxes, 40, 60)
    assert ((clipped >= 0) & (clipped <= torch.tensor([60.0, 40, 60, 40]))).all()
    assert (clipped[:, 2:] > clipped[:, :2]).all()
    overlaps = (
        (boxes[:, 2] > 0) & (boxes[:, 3] > 0) & (boxes[:, 0] < 60) & (boxes[:, 1] < 40)
        & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    )  # fmt: skip
    assert len(clipped) == int(overlaps.sum())
