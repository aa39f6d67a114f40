"""Face crops: which pixels are in them, and where their gradient goes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.ops import roi_align

from mldm_plugin.engine.step import clip_boxes
from mldm_plugin.perceptual.face_crops import VGGFACE2_CROP, FaceCrop, crop_faces, largest, square_boxes


def picture(n=1, height=24, width=24, seed=0, dtype=torch.float32):
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_a_crop_of_the_same_size_is_those_pixels():
    images = picture()
    crops = crop_faces(images, [torch.tensor([[3.0, 5.0, 11.0, 13.0]])], FaceCrop(8, 1.0))
    torch.testing.assert_close(crops[0], images[0, :, 5:13, 3:11])


def test_shrinking_averages_all_pixels():
    images = picture()
    crops = crop_faces(images, [torch.tensor([[4.0, 2.0, 20.0, 18.0]])], FaceCrop(4, 1.0))
    torch.testing.assert_close(crops, F.avg_pool2d(images[:, :, 2:18, 4:20], 4))


def test_the_box_is_made_square_and_extended_by_vggface2s_factor():
    assert FaceCrop(size=224, extent=1.3) == VGGFACE2_CROP
    square = square_boxes(torch.tensor([[10.0, 20.0, 20.0, 60.0]]), VGGFACE2_CROP)
    torch.testing.assert_close(square, torch.tensor([[15.0 - 26, 40.0 - 26, 15.0 + 26, 40.0 + 26]]))


def test_outside_the_picture_the_border_is_repeated():
    images = picture(height=16, width=16)
    crops = crop_faces(images, [torch.tensor([[0.0, 0.0, 4.0, 16.0]])], FaceCrop(16, 1.0))
    expected = F.pad(images, (6, 6, 0, 0), mode="replicate")[:, :, :, :16]
    torch.testing.assert_close(crops, expected)


def test_defect_4_a_tall_box_keeps_forehead_and_chin():
    """The released code resized the short side and cut a square out of the middle."""
    images = torch.zeros(1, 3, 64, 64)
    box = torch.tensor([[24.0, 8.0, 40.0, 56.0]])
    images[:, :, 8, 24:40] = 1  # the topmost and the lowest row of the box
    images[:, :, 55, 24:40] = -1
    crops = crop_faces(images, [box], FaceCrop(62, 1.3))
    assert crops.amax() > 0.5
    assert crops.amin() < -0.5
    images.requires_grad_()
    crop_faces(images, [box], FaceCrop(62, 1.3)).sum().backward()
    assert (images.grad[:, :, 8:56, 24:40] > 0).all()


def test_every_pixel_of_a_large_face_has_gradient():
    images = torch.zeros(1, 3, 200, 200, requires_grad=True)
    crop_faces(images, [torch.tensor([[20.0, 20.0, 180.0, 180.0]])], FaceCrop(32, 1.3)).sum().backward()
    assert (images.grad[:, :, 20:180, 20:180] > 0).all()


def test_faces_of_all_images_come_in_order():
    images = picture(3)
    boxes = [torch.tensor([[2.0, 2, 6, 6], [8, 8, 16, 20]]), torch.empty(0, 4), torch.tensor([[0.0, 0, 9, 7]])]
    crops = crop_faces(images, boxes, FaceCrop(10, 1.3))
    assert crops.shape == (3, 3, 10, 10)
    singles = [crop_faces(images[i : i + 1], [b[None]], FaceCrop(10, 1.3)) for i in (0, 2) for b in boxes[i]]
    torch.testing.assert_close(crops, torch.cat(singles), rtol=1e-5, atol=1e-5)


def test_no_faces_give_no_crops():
    images = picture(2).requires_grad_()
    crops = crop_faces(images, [torch.empty(0, 4)] * 2, FaceCrop(10, 1.3))
    assert crops.shape == (0, 3, 10, 10)
    crops.sum().backward()
    assert not images.grad.any()


def test_gradcheck():
    images = picture(2, 7, 9, dtype=torch.float64).requires_grad_()
    boxes = [torch.tensor([[-1.0, 1, 4, 6], [3, 2, 5.5, 4]]), torch.tensor([[4.0, 0, 9, 7]])]
    assert torch.autograd.gradcheck(lambda x: crop_faces(x, boxes, FaceCrop(4, 1.3)), images)


def test_parity_with_roi_align():
    images = picture(2, 40, 56)
    boxes = [torch.tensor([[5.3, 6.1, 20.7, 31.9], [30.0, 1.0, 55.0, 12.0]]), torch.tensor([[0.0, 0.0, 9.0, 7.0]])]
    for size in (4, 7, 64):
        squares = [square_boxes(b, VGGFACE2_CROP) + 40 for b in boxes]
        padded = F.pad(images, (40, 40, 40, 40), mode="replicate")
        expected = roi_align(padded, squares, output_size=size, sampling_ratio=-1, aligned=True)
        torch.testing.assert_close(crop_faces(images, boxes, FaceCrop(size, 1.3)), expected, rtol=1e-4, atol=1e-4)


def test_a_crop_may_lie_lower_than_its_box():
    lower = square_boxes(torch.tensor([[10.0, 10.0, 30.0, 30.0]]), FaceCrop(150, 0.97, 0.085))
    side = 20 * 0.97
    centre = 20 + 0.085 * side
    torch.testing.assert_close(
        lower, torch.tensor([[20 - side / 2, centre - side / 2, 20 + side / 2, centre + side / 2]])
    )


def test_autocast_leaves_pixels_as_they_are():
    images, boxes = picture(), [torch.tensor([[4.0, 2.0, 20.0, 18.0]])]
    with torch.autocast("cpu", torch.bfloat16):
        crops = crop_faces(images, boxes, FaceCrop(8, 1.3))
    assert torch.equal(crops, crop_faces(images, boxes, FaceCrop(8, 1.3)))


def test_nothing_outside_the_extended_box_matters():
    images = picture(height=40, width=40)
    box = torch.tensor([[12.0, 10.0, 22.0, 20.0]])
    x0, y0, x1, y1 = square_boxes(box, VGGFACE2_CROP)[0].tolist()
    inside = torch.zeros(40, 40, dtype=torch.bool)
    inside[int(y0) - 1 : int(y1) + 2, int(x0) - 1 : int(x1) + 2] = True  # bilinear reading: one pixel more
    changed = torch.where(inside, images, 100.0).requires_grad_()
    crops = crop_faces(changed, [box], FaceCrop(12, 1.3))
    torch.testing.assert_close(crops, crop_faces(images, [box], FaceCrop(12, 1.3)))
    crops.sum().backward()
    assert not changed.grad[..., ~inside].any()


box = st.tuples(
    st.floats(-60, 60, width=32), st.floats(-60, 60, width=32), st.floats(0, 90, width=32), st.floats(0, 90, width=32)
)


@settings(max_examples=60, deadline=None)
@given(boxes=st.lists(box, max_size=4), height=st.integers(1, 40), width=st.integers(1, 40))
def test_defect_9_boxes_partly_outside_are_cropped_not_dropped(boxes, height, width):
    corners = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes], dtype=torch.float32).reshape(-1, 4)
    visible = clip_boxes(corners, height, width)
    images = picture(1, height, width).requires_grad_()
    crops = crop_faces(images, [visible], FaceCrop(6, 1.3))
    assert crops.shape == (len(visible), 3, 6, 6)
    assert torch.isfinite(crops).all()
    if len(visible):
        assert crops.max() <= images.max() + 1e-4
        assert crops.min() >= images.min() - 1e-4
        squares = square_boxes(visible, VGGFACE2_CROP)
        assert (squares[:, :2] <= visible[:, :2] + 1e-4).all()
        assert (squares[:, 2:] >= visible[:, 2:] - 1e-4).all()
    crops.sum().backward()
    assert torch.isfinite(images.grad).all()
    # Each crop hands all of its gradient on to the picture.
    torch.testing.assert_close(images.grad.sum(), torch.tensor(float(crops.numel())), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("count", "kept"), [(None, [0, 1, 2]), (3, [0, 1, 2]), (2, [1, 2]), (1, [1])])
def test_largest(count, kept):
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 9, 9], [5, 5, 9, 9]])
    assert torch.equal(largest(boxes, count), boxes[kept])
