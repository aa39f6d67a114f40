"""What MediaPipe's detectors say, decoded."""

import pytest
import torch

from mldm_plugin.perceptual.anchored import anchors, decoded, overlap, suppressed
from mldm_plugin.perceptual.hands import PALMS
from mldm_plugin.perceptual.pose import PEOPLE


@pytest.mark.parametrize(("detector", "count"), [(PALMS, 2016), (PEOPLE, 2254)])
def test_there_are_as_many_anchors_as_outputs(detector, count):
    """num_boxes of MediaPipe's graphs."""
    centres = anchors(detector.size, detector.strides)
    assert centres.shape == (count, 2)
    first = 0.5 / (detector.size / 8)
    torch.testing.assert_close(centres[:3], torch.tensor([[first, first], [first, first], [3 * first, first]]))


def test_boxes_and_points_are_around_their_anchor():
    count = len(anchors(PALMS.size, PALMS.strides))
    raw, logits = torch.zeros(count, 18), torch.full((count,), -5.0)
    logits[2], raw[2, :6] = 3.0, torch.tensor([19.2, 0, 38.4, 19.2, 1.92, -1.92])
    [found] = decoded(raw, logits, PALMS, 0.5)
    x, y = anchors(PALMS.size, PALMS.strides)[2].tolist()
    expected = [torch.tensor(3.0).sigmoid(), x + 0.1 - 0.1, y - 0.05, x + 0.1 + 0.1, y + 0.05, x + 0.01, y - 0.01]
    torch.testing.assert_close(found[:7], torch.tensor(expected))
    assert decoded(raw, logits, PALMS, 0.99).shape == (0, 19)


def test_overlap_by_hand():
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6], [0, 0, 0, 0]])
    torch.testing.assert_close(overlap(boxes[0], boxes), torch.tensor([1.0, 1 / 3, 0.0, 0.0]))


def test_what_overlaps_is_averaged_by_score():
    found = torch.tensor(
        [
            [0.6, 0.0, 0.0, 1.0, 1.0, 4.0, 0.0],
            [0.9, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0],
            [0.7, 5.0, 5.0, 6.0, 6.0, 7.0, 7.0],
        ]
    )
    out = suppressed(found)
    torch.testing.assert_close(out[0], torch.tensor([0.9, 0, 0, 1, 1, (0.9 + 2.4) / 1.5, 0]))
    torch.testing.assert_close(out[1], found[2])
    assert len(suppressed(found[:0])) == 0
    assert len(suppressed(torch.tensor([[0.9, 1.0, 1, 1, 1]] * 2))) == 2  # no area: nothing overlaps, and it ends
