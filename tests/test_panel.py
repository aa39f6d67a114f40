"""The panel shows what the losses saw."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from make_step import make_stack, make_step, tiny_vae, two_terms
from PIL import Image

from mldm_plugin.data.drawing import draw_annotation
from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.records.panels import annotated, as_bytes, caption_of, draw_panel, save_panel


def test_a_row_an_image_with_picture_mask_boxes_xt_and_estimate():
    stack, step = two_terms(), make_step((50, 900))
    panel = draw_panel(stack, step, stack(step))
    side = 128  # pictures of 32 pixels are shown four times as large
    assert panel.size == (2 * 8 + 4 * side + 3 * 4, 2 * 8 + 18 + 2 * (side + 18 + 4))
    tiles = np.asarray(panel)[26 : 26 + side : 4]
    picture, annotated = (tiles[:, left : left + side : 4].astype(int) for left in (8, 12 + side))
    expected = ((step.pixel_values[0].permute(1, 2, 0).numpy() + 1) * 127.5).round()
    assert np.array_equal(picture, expected)
    changed = (picture != annotated).any(axis=-1)
    assert changed.any()
    assert changed.mean() < 0.6  # lines, between which the picture can be judged: it has 32 pixels a side
    assert (annotated == 255).all(axis=-1).any()  # a face box


@pytest.mark.parametrize(("side", "line"), [(128, 1), (1024, 2)])
@pytest.mark.parametrize("ground", [0, 255])
def test_outlines_are_thin_leave_people_untouched_and_show_on_any_ground(side, line, ground):
    picture = torch.full((3, side, side), ground, dtype=torch.uint8)
    mask = torch.zeros(1, side, side, dtype=torch.uint8)
    low, high = side // 4, side // 2
    mask[0, low:high, low:high] = 1
    drawn = draw_annotation(picture, mask, torch.tensor([[low * 1.3, low * 1.3, low * 1.6, low * 1.6]]))
    row = drawn[:, high - side // 32].float().mean(0)  # across the person, below the face
    changed = torch.nonzero(row != ground)[:, 0].tolist()
    assert changed == [*range(low - line, low + line), *range(high - line, high + line)]
    assert row[low - 1] < 40 < 120 < row[low]
    face = drawn[:, int(low * 1.45)].float().mean(0)[low + line : high - line]
    assert (face != ground).sum() <= 2 * 3 * line


def test_the_skeleton_leaves_the_face_alone():
    picture = torch.full((3, 128, 128), 90, dtype=torch.uint8)
    person = torch.zeros(1, 17, 3)
    person[0, :5] = torch.tensor([[64, 20, 2], [58, 15, 2], [70, 15, 2], [50, 18, 2], [78, 18, 2]])
    person[0, 5:7] = torch.tensor([[40, 60, 2], [88, 60, 2]])
    drawn = draw_annotation(picture, None, None, person)
    assert not (drawn != 90)[:, :50].any()
    assert (drawn != 90)[:, 58:63].any()


def test_the_caption_says_t_and_every_terms_value():
    stack, step = two_terms(), make_step((50, 900))
    report = stack(step)
    assert caption_of(step, report, 0).startswith(f"t = 50     picture: {report.terms['picture'].raw[0]:.3f} x 0.2")
    assert caption_of(step, report, 1) == "t = 900     picture: not applied     face: not applied"


def test_cached_latents_without_masks_and_rows_beyond_the_limit(tmp_path):
    stack, step = two_terms(), make_step((50,) * 6)
    report = stack(step)
    bare = replace(step, pixel_values=None, person_mask=None, face_boxes=None)
    state = torch.get_rng_state()
    panel = draw_panel(stack, bare, report, max_rows=1)
    assert torch.equal(torch.get_rng_state(), state)
    save_panel(panel, tmp_path / "panels" / "1.png")
    with Image.open(tmp_path / "panels" / "1.png") as saved:
        assert saved.size == panel.size
    assert [p.name for p in (tmp_path / "panels").iterdir()] == ["1.png"]


def test_without_a_decoder_the_panel_says_why():
    stack, step = make_stack(decoder=None), make_step((50,))
    report = stack(step)
    with pytest.raises(ValueError, match="panels need a decoder"):
        draw_panel(stack, step, report)
    given, own = draw_panel(stack, step, report, LatentDecoder(tiny_vae())), make_stack()
    assert np.array_equal(np.asarray(given), np.asarray(draw_panel(own, step, report)))


def test_keypoints_are_drawn_where_they_are():
    """A person of two points; a third is not there, and nothing is drawn for it."""
    stack, step = two_terms(), replace(make_step((50, 50)), person_mask=None, face_boxes=None)
    people = torch.zeros(1, 17, 3)
    people[0, 5], people[0, 6] = torch.tensor([8.0, 10.0, 2.0]), torch.tensor([24.0, 10.0, 1.0])
    picture, *_ = as_bytes(step.pixel_values)
    drawn = annotated(picture, replace(step, keypoints=[people, people[:0]]), 0)
    changed = (drawn != picture).any(dim=0)
    assert changed[10, 8:25].all()  # the shoulders, and the line that joins them
    assert not changed[:8].any()
    assert not changed[13:].any()
    assert annotated(picture, replace(step, keypoints=[people[:0]] * 2), 0).equal(picture)
    assert draw_panel(stack, replace(make_step((50,)), keypoints=[people]), stack(make_step((50,)))).width > 0
