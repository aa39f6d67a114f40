"""The plain versions of masked LPIPS are its equals in result."""

import pytest
import torch

from mldm_plugin.bench import agreement, candidates, distances
from mldm_plugin.bench.workload import People
from mldm_plugin.errors import CheckError
from mldm_plugin.plugins import load_plugins

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def losses():
    return candidates.LossesAlone(load_plugins(()), face_crop=16)


def test_they_agree(losses):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = agreement.compare_losses(losses, People.draw(1, 64, CPU))
    exact, rounded = found[:3], found[3:]
    assert max(max(a.value, a.gradient) for a in exact) < 1e-6
    assert max(a.value for a in rounded) < 1e-5


def test_a_mask_left_out_is_an_error(losses, monkeypatch):
    whole = distances.spatial_times_mask
    monkeypatch.setattr(distances, "spatial_times_mask", lambda m, p, t, mask: whole(m, p, t, torch.ones_like(mask)))
    with pytest.raises(CheckError, match="lpips spatial x mask"):
        agreement.compare_losses(losses, People.draw(1, 64, CPU))


def test_eq_2_by_hand():
    # One layer, one channel, 1 and 3 at two pixels, upsampled to 1, 1.5, 2.5, 3; the mask keeps the middle.
    predicted, target = torch.tensor([[[[1.0, 3.0]]]]), torch.zeros(1, 1, 1, 2)
    mask = torch.tensor([[[[0.0, 1.0, 1.0, 0.0]]]])
    expected = 0.5 * ((1.5**2 + 2.5**2) / 2) ** 0.5
    assert distances.upsample_then_mask([predicted], [target], [0.5], mask).item() == pytest.approx(expected)


def test_gradients_are_left_behind_nowhere(losses):
    functions = losses.on(People.draw(1, 64, CPU))
    value, gradients = candidates.value_and_gradient(*functions[candidates.DISTANCE])
    assert value > 0
    assert all(g.abs().sum() > 0 for g in gradients)
    assert all(leaf.grad is None for leaf in functions[candidates.DISTANCE][1])


def test_a_person_covers_a_third_and_a_face_an_eighth():
    people = People.draw(2, 96, CPU)
    assert people.person_mask.float().mean().item() == pytest.approx(1 / 3)
    assert people.face_boxes[1].tolist() == [[44, 24, 56, 36]]
