"""Turned squares are cut out where they lie, with gradient."""

import math

import pytest
import torch

from mldm_plugin.perceptual.turned_squares import around, cut_out, moved, to_picture, upright

CORNERS = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]])


def square(x, y, side, angle=0.0):
    return torch.tensor([[x, y, side, angle]])


def test_corners_lie_where_they_should():
    assert to_picture(square(10, 20, 4), CORNERS).tolist() == [[[8, 18], [12, 18], [12, 22]]]
    turned = to_picture(square(10, 20, 4, math.pi / 2), CORNERS)  # clockwise: top left goes to top right
    torch.testing.assert_close(turned, torch.tensor([[[12.0, 18.0], [12.0, 22.0], [8.0, 22.0]]]))
    assert around(40, 60).tolist() == [[30, 20, 60, 0]]


@pytest.mark.parametrize(
    ("end", "angle"), [((0, -3), 0), ((3, 0), math.pi / 2), ((0, 3), math.pi), ((-3, 0), -math.pi / 2)]
)
def test_upright_turns_a_way_to_lead_up(end, angle):
    found = upright(torch.zeros(1, 2), torch.tensor([end], dtype=torch.float32))
    assert found.item() == pytest.approx(angle)


def test_squares_move_in_their_own_frame():
    assert moved(square(10, 20, 4), down=-0.5, scale=2).tolist() == [[10, 18, 8, 0]]
    torch.testing.assert_close(
        moved(square(10, 20, 4, math.pi / 2), down=-0.5, scale=1)[:, :2], torch.tensor([[12.0, 20]])
    )


def test_an_upright_square_is_a_slice():
    image = torch.rand(3, 12, 16)
    torch.testing.assert_close(cut_out(image, square(8, 6, 4), 4)[0], image[:, 4:8, 6:10])


def test_a_quarter_turn_is_rot90():
    image = torch.rand(3, 12, 12)
    cut = cut_out(image, square(6, 6, 8, math.pi / 2), 8)[0]
    torch.testing.assert_close(cut, torch.rot90(image[:, 2:10, 2:10], 1, (1, 2)))


def test_outside_is_the_border_or_nothing():
    image = torch.full((1, 4, 4), 5.0)
    assert cut_out(image, square(2, 2, 8), 8).unique().tolist() == [5]
    black = cut_out(image, square(2, 2, 8), 8, outside="zeros")[0, 0]
    assert black[2:6, 2:6].unique().tolist() == [5]
    assert black[:2].abs().sum() == 0


@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_a_large_square_averages_all_its_pixels(angle):
    image = torch.rand(1, 40, 30, requires_grad=True)
    cut = cut_out(image, square(15, 20, 80, angle), 8, outside="zeros")
    cut.sum().backward()
    assert (image.grad > 0).all()
    even = cut_out(torch.ones(1, 40, 30), square(15, 20, 20, angle), 4)
    torch.testing.assert_close(even, torch.ones(1, 1, 4, 4))
    ramp = torch.arange(64.0).expand(1, 64, 64)
    torch.testing.assert_close(cut_out(ramp, square(32, 32, 32), 4)[0, 0, 0], torch.tensor([19.5, 27.5, 35.5, 43.5]))


def test_each_square_is_by_itself():
    image = torch.rand(3, 32, 32)
    squares = torch.cat([square(10, 12, 9, 0.3), square(20, 20, 30, -1.0)])
    both = cut_out(image, squares, 8)
    torch.testing.assert_close(both[1:], cut_out(image, squares[1:], 8))
    assert cut_out(image, torch.zeros(0, 4), 8).shape == (0, 3, 8, 8)


def test_gradients():
    image = torch.rand(1, 9, 9, dtype=torch.float64, requires_grad=True)
    squares = torch.cat([square(4, 5, 5, 0.3), square(4, 4, 12, 1.0)]).double()
    assert torch.autograd.gradcheck(lambda x: cut_out(x, squares, 3), image)
