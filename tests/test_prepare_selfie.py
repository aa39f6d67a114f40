"""People found by MediaPipe's selfie segmentation, with its own weights."""

import numpy as np
import pytest
from PIL import Image
from weights_entries import needs_weights

from mldm_plugin.errors import WeightsError
from mldm_plugin.prepare import plans
from mldm_plugin.prepare.selfie import SelfieSegmentation, pieces
from mldm_plugin.prepare.source import Source

SOURCE = Source(name="a", path="a.png", text="")
PRETRAINED = needs_weights("mediapipe_selfie")


class Shown:
    """A picture that is in memory."""

    def __init__(self, picture):
        self.size = picture.size
        self.rgb = lambda: picture


@PRETRAINED
def test_masks_are_those_of_the_people():
    """A studio's wall tells the person by its colour; both agree, in a picture that is not square."""
    unseen = pytest.importorskip("mldm_plugin.people_mini.unseen")
    for photo in unseen.photos_of("P009", unseen.LEARNT[:3]):
        wide = Image.new("RGB", (384, 256), photo.picture.getpixel((2, 2)))
        wide.paste(photo.picture, (64, 0))
        found = SelfieSegmentation()(SOURCE, Shown(wide))
        assert found.count == 1
        assert found.labels.shape == (256, 384)
        person, theirs = found.labels[:, 64:320] == 1, photo.mask
        assert (person & theirs).sum() / (person | theirs).sum() > 0.9


@PRETRAINED
def test_a_wall_has_nobody():
    from skimage.data import brick

    found = SelfieSegmentation()(SOURCE, Shown(Image.fromarray(brick()).convert("RGB")))
    assert found.count == 0
    assert not found.labels.any()


def test_pieces_are_numbered_by_their_area():
    mask = np.zeros((10, 10), bool)
    mask[0:2, 0:2] = mask[5:9, 5:9] = mask[0, 9] = True
    labels, count = pieces(mask, smallest=0.01)
    assert (count, labels[0, 0], labels[6, 6], labels[0, 9]) == (2, 2, 1, 0)
    many = np.indices((60, 60)).sum(0) % 2 == 0  # touching at corners does not connect
    assert pieces(many, 0.0)[1] == 255


def test_what_finds_the_people_is_said(monkeypatch, capsys, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    asked = []

    def fetch(name):
        asked.append(name)
        if name == "mask_rcnn":
            raise WeightsError("no network")

    monkeypatch.setattr(plans, "fetch", fetch)
    plan = plans.folder(tmp_path, caption="a")
    assert plan.command["masks"] == "selfie"
    assert "by MediaPipe's selfie segmentation (--masks selfie)" in capsys.readouterr().err
    assert asked == ["mask_rcnn", "mediapipe_selfie"]
    with pytest.raises(WeightsError):  # asked for by name, nothing else is taken in its place
        plans.folder(tmp_path, caption="a", masks="maskrcnn")
