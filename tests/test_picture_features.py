"""One vector for a picture, or for each person or face in it."""

import numpy as np
import pytest
import torch
from PIL import Image
from seen_pictures import seen_picture

from mldm_plugin.errors import DataError, PresetError
from mldm_plugin.perceptual.face_crops import FaceCrop, crop_faces
from mldm_plugin.perceptual.picture_features import PictureFeatures, resized


@pytest.fixture(scope="module")
def of():
    """The features of each kind, of random networks."""
    made = {kind: PictureFeatures("vgg16", kind, "random") for kind in ("picture", "person", "face")}
    return {**made, "dlib": PictureFeatures("dlib", "face", "random")}


@pytest.mark.parametrize("size", [(64, 50), (300, 500), (700, 401)])
def test_resizing_is_pillows_of_single_channels(size):
    """clean-fid's: antialiased bicubic in float32, overshoots cut off, nothing rounded."""
    noise = 0.3 * torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    image = (seen_picture(size=size).image + noise).clamp(-1, 1)
    ours = resized(image, 299)
    for channel, seen in zip(image.numpy(), ours, strict=True):
        theirs = Image.fromarray(channel).resize((299, 299), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(seen.numpy(), np.asarray(theirs).clip(-1, 1), atol=5e-5)  # 0.006 grey levels


def test_a_picture_of_the_networks_size_is_shown_as_it_is():
    image = seen_picture(size=(299, 299)).image
    assert resized(image, 299) is image


@pytest.mark.parametrize(("kind", "rows"), [("picture", 1), ("person", 3), ("face", 2), ("dlib", 2)])
def test_rows(of, kind, rows):
    vectors = of[kind](seen_picture(faces=2, people=3))
    assert vectors.shape == (rows, of[kind].network.width)
    assert vectors.dtype == torch.float32
    assert not vectors.requires_grad


@pytest.mark.parametrize("kind", ["person", "face", "dlib"])
def test_nobody_gives_no_rows(of, kind):
    assert of[kind](seen_picture(faces=0, people=0)).shape == (0, of[kind].network.width)


def test_people_and_faces_are_cut_out_as_squares(of):
    picture = seen_picture(faces=2, people=2)
    boxes = torch.tensor([face.box for face in picture.faces])
    for kind, these, square in (
        ("person", torch.stack(picture.people), FaceCrop(224, extent=1.0)),
        ("face", boxes, FaceCrop(224, extent=1.3)),
        ("dlib", boxes, FaceCrop(150, extent=0.97, down=0.085)),
    ):
        network = of[kind].network
        expected = network.embed(crop_faces(picture.image[None], [these], square))
        torch.testing.assert_close(of[kind](picture), expected)


def test_a_face_is_blind_to_the_rest_of_the_picture(of):
    picture = seen_picture(faces=1, size=(160, 160))
    before = of["dlib"](picture)
    picture.image[:, 60:] = 0.5
    torch.testing.assert_close(of["dlib"](picture), before)
    picture.image[:, 20:30] = 0.5
    assert (of["dlib"](picture) - before).abs().max() > 1e-3


def test_bad_pictures_and_boxes_are_told(of):
    grey = seen_picture()
    grey.image = grey.image[:1]
    with pytest.raises(DataError, match=r"expected a picture \(3, H, W\), got \(1, 80, 96\)"):
        of["picture"](grey)
    flat = seen_picture(faces=1)
    flat.faces[0].box = (10.0, 10.0, 10.0, 30.0)
    with pytest.raises(DataError, match="a face's box has no area"):
        of["face"](flat)
    with pytest.raises(PresetError, match="dlib knows faces only, got of: picture; take of: face"):
        PictureFeatures("dlib", "picture", "random")
