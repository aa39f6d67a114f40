"""What the benchmark of heat maps learns from: true points, in the square that the loss cuts out."""

import math

import numpy as np
import pytest
import torch
from benchmarks.hand_heatmaps import CELLS, SIDE, Heatmaps, batch, gaussians, hands_of, in_square, places_of

from mldm_plugin.perceptual.turned_squares import cut_out, to_picture
from mldm_plugin.prepare.synthetic.curve import Frame
from mldm_plugin.prepare.synthetic.hand import hand_points


def test_places_in_a_square_are_those_that_it_brings_back():
    square = torch.tensor([30.0, 20.0, 16.0, 0.7])
    places = torch.rand(21, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(in_square(square, to_picture(square[None], places[None])[0]), places)


def test_a_heat_map_has_its_middle_at_its_point():
    places = 0.3 + 0.4 * torch.rand(21, 2, generator=torch.Generator().manual_seed(0))
    maps = gaussians(places)
    assert maps.shape == (21, CELLS, CELLS)
    torch.testing.assert_close(places_of(maps), places, atol=2e-3, rtol=0)


@pytest.mark.parametrize("gesture", ["open", "relaxed"])
def test_a_bent_hand_costs_a_perfect_network_less_than_a_missing_one(gesture):
    """With narrower Gaussians it costs as much."""
    places = [0.45 + hand_points(Frame(0, 0, 0.61, angle), gesture) for angle in (0, math.radians(15))]
    right, bent = (gaussians(torch.from_numpy(at).float()) for at in places)
    assert (bent - right).square().sum() < 0.75 * right.square().sum()
    far = np.linalg.norm(places[0] - places[1], axis=1)
    assert 2 * (1 - np.exp(-(far**2) / (4 / 16**2))).mean() > 0.9


def test_true_maps_lie_on_the_hand_that_is_cut_out():
    """Of a picture that is bright where the hand's points are."""
    hands = [hand for seed in range(6) for hand in hands_of(seed)]
    assert len(hands) >= 6
    assert {hand.there for hand in hands} == {hand.drawn for hand in hands} == {False, True}
    for hand in (hand for hand in hands if hand.there and hand.length > 12):
        _, height, width = hand.window.shape
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        apart = (torch.stack([x, y], dim=2)[None] - hand.points[:, None, None]).norm(dim=3)
        picture = torch.exp(-(apart**2) / (2 * (hand.square[2] / 12) ** 2))
        seen = torch.nn.functional.avg_pool2d(cut_out(picture, hand.square[None], SIDE), SIDE // CELLS)[0]
        _, maps = batch([hand], np.random.default_rng(0), degraded=0.0, jitter=0.0)
        assert (seen - maps[0])[hand.seen].abs().mean() < 0.01


def test_a_missing_hand_has_empty_maps_and_the_network_has_a_map_for_each_point():
    missing = next(hand for seed in range(20) for hand in hands_of(seed) if not hand.there)
    squares, maps = batch([missing, missing], np.random.default_rng(0), degraded=1.0, jitter=1.0)
    assert maps.abs().max() == 0
    assert not torch.equal(squares[0], squares[1])
    found, stages = Heatmaps().eval()(squares)
    assert found.shape == maps.shape == (2, 21, CELLS, CELLS)
    assert [stage.shape[2] for stage in stages] == [32, 16, 8, 16, 32]
