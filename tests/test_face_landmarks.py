"""Faces by their landmarks: the same places in each crop, however the face lies in the picture."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_step import face_step
from openpeople_pictures import photograph
from torch.nn import functional as F
from weights_entries import needs_weights

from mldm_plugin.hooks.identity import Identity
from mldm_plugin.perceptual.face_crops import VGGFACE2_CROP, FaceCrop, crop_faces
from mldm_plugin.perceptual.face_embedding import FaceEmbedding, weight_files
from mldm_plugin.perceptual.face_landmarks import (
    FaceLandmarks,
    PlacedFaces,
    crop_placed,
    points_by_box,
    square_of,
)
from mldm_plugin.perceptual.face_networks import DLIB_POINTS, FACE_NETWORKS
from mldm_plugin.perceptual.turned_squares import to_picture

FACE = torch.tensor(DLIB_POINTS)
DLIB = FACE_NETWORKS["dlib_resnet"].crop


def picture(n=1, height=24, width=24, seed=0, dtype=torch.float32):
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def placed(*squares):
    return PlacedFaces(torch.tensor(squares), torch.ones(len(squares), dtype=torch.bool))


# The transform


@settings(max_examples=50, deadline=None)
@given(
    x=st.floats(-50, 50), y=st.floats(-50, 50), side=st.floats(1, 300), angle=st.floats(-math.pi + 0.01, math.pi - 0.01)
)
def test_points_that_lie_in_a_square_give_it_back(x, y, side, angle):
    square = torch.tensor([[x, y, side, angle]], dtype=torch.float64)
    points = to_picture(square, FACE[None].double())
    torch.testing.assert_close(square_of(points, FACE.double()), square, rtol=1e-9, atol=1e-9)


def test_points_that_fit_no_square_give_the_nearest_by_least_squares():
    """No square near it is nearer, and it is not mirrored although the points are."""
    torch.manual_seed(3)
    points = (to_picture(torch.tensor([[30.0, 20.0, 40.0, 0.3]]), FACE[None]) + 3 * torch.randn(1, 5, 2)).double()
    for given_points in (points, points * torch.tensor([-1.0, 1.0])):
        found = square_of(given_points, FACE.double())

        def off(square, given_points=given_points):
            return (to_picture(square, FACE[None].double()) - given_points).square().sum()

        least = off(found)
        for change in 0.01 * torch.eye(4, dtype=torch.float64):
            assert off(found + change) > least
            assert off(found - change) > least
    assert square_of(points, FACE.double())[0, 3].item() == pytest.approx(0.3, abs=0.15)


def test_dlibs_points_are_those_of_its_chip():
    """get_face_chip_details: the mean face with a quarter of its side around it; an eye is the mean of its six."""
    eye = [(0.121737, 0.187122, 0.265825, 0.334606, 0.260918, 0.182743)]
    eye += [(0.216423, 0.178758, 0.179852, 0.231733, 0.245099, 0.244077)]
    right = (0.645647, 0.714428, 0.793132, 0.858516, 0.79751, 0.719335)
    x, y = (sum(values) / 6 for values in eye)
    mean = [(x, y), (sum(right) / 6, y), (0.490127, 0.515625), (0.254149, 0.780233), (0.726104, 0.780233)]
    chip = [((a + 0.25) / 1.5, (b + 0.25) / 1.5) for a, b in mean]
    torch.testing.assert_close(FACE, torch.tensor(chip), atol=1e-4, rtol=0)
    # and lie about where those of faces do that are cut out by their boxes
    torch.testing.assert_close(FACE, torch.tensor(points_by_box(DLIB)), atol=0.025, rtol=0)


# The crop


@pytest.mark.parametrize("crop", [FaceCrop(8, 1.0), FaceCrop(4, 1.3), VGGFACE2_CROP, FaceCrop(9, 0.97, 0.085)])
def test_the_square_of_the_box_gives_what_the_box_gives(crop):
    """Smaller and larger than the crop, at the border, and reaching out of the picture."""
    images = picture(2, 40, 30)
    boxes = [torch.tensor([[3.0, 5.0, 11.0, 13.0], [0.0, 0.0, 30.0, 40.0]]), torch.tensor([[20.5, 7.25, 30.0, 31.5]])]
    landmarks = FaceLandmarks("random")  # of which none is believed
    found = landmarks.place(images, boxes, crop, None)
    assert not found.found.any()
    torch.testing.assert_close(
        crop_placed(images, boxes, found, crop), crop_faces(images, boxes, crop), rtol=1e-4, atol=2e-5
    )


def test_a_quarter_turn_of_the_picture_changes_nothing():
    images, box = picture(1, 24, 24), [torch.tensor([[4.0, 4.0, 14.0, 14.0]])]
    upright = crop_placed(images, box, placed([9.0, 9.0, 12.0, 0.0]), FaceCrop(12, 1.2))
    turned = torch.rot90(images, -1, (2, 3))  # clockwise: (x, y) comes to (24 − y, x)
    again = crop_placed(turned, box, placed([24 - 9.0, 9.0, 12.0, math.pi / 2]), FaceCrop(12, 1.2))
    torch.testing.assert_close(again, upright, rtol=1e-4, atol=1e-4)


def test_gradcheck():
    images = picture(2, 9, 10, dtype=torch.float64).requires_grad_()
    boxes = [torch.tensor([[1.0, 1.0, 7.0, 6.0], [0.0, 2.0, 9.0, 9.0]]), torch.tensor([[2.0, 2.0, 8.0, 8.0]])]
    where = placed([4.2, 3.1, 5.5, 0.4], [5.0, 5.0, 9.0, -0.9], [4.0, 5.0, 7.0, 2.5])
    crop = FaceCrop(4, 1.2)
    assert torch.autograd.gradcheck(lambda x: crop_placed(x, boxes, where, crop), images, fast_mode=True)


def test_every_pixel_of_a_large_turned_face_has_gradient_and_none_far_from_it():
    images = torch.zeros(1, 3, 200, 200, requires_grad=True)
    box = [torch.tensor([[50.0, 50.0, 150.0, 150.0]])]
    crop_placed(images, box, placed([100.0, 100.0, 100.0, 0.6]), FaceCrop(20, 1.0)).sum().backward()
    rows, columns = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij")
    from_middle = torch.hypot(rows + 0.5 - 100, columns + 0.5 - 100)
    assert (images.grad[0, 0][from_middle < 49] > 0).all()
    assert images.grad[0, 0][from_middle > 100 / 2**0.5 + 2].abs().max() == 0


def test_no_face_gives_no_crop():
    boxes = [torch.zeros(0, 4)] * 2
    found = FaceLandmarks("random").place(picture(2), boxes, VGGFACE2_CROP, None)
    assert crop_placed(picture(2), boxes, found, VGGFACE2_CROP).shape == (0, 3, 224, 224)


def test_a_square_that_no_face_has_is_not_believed():
    """The random network is sure here, of points that would make a face many times the box's."""
    landmarks = FaceLandmarks("random")
    head = landmarks.frozen.network.onet
    head.dense6_1.bias.data = torch.tensor([-50.0, 50.0])
    found = landmarks.place(picture(1, 60, 60), [torch.tensor([[20.0, 20.0, 40.0, 40.0]])], DLIB, DLIB_POINTS)
    assert not found.found.any()  # all its points lie in one place
    head.dense6_3.weight.data.zero_()
    head.dense6_3.bias.data = FACE.T.flatten().clone()
    found = landmarks.place(picture(1, 60, 60), [torch.tensor([[20.0, 20.0, 40.0, 40.0]])], DLIB, DLIB_POINTS)
    assert found.found.all()
    torch.testing.assert_close(found.squares, torch.tensor([[30.0, 30.0, 20.0, 0.0]]), atol=1e-4, rtol=0)


def test_which_weights_are_asked_for():
    options = {"network": "dlib_resnet", "weights": "pretrained", "align": "box"}
    assert weight_files(options) == ["dlib_resnet"]
    assert weight_files({**options, "align": "landmarks"}) == ["dlib_resnet", "mtcnn"]
    assert weight_files({**options, "align": "landmarks", "weights": "random"}) == []


# On photographs


@pytest.fixture(scope="module")
def portraits():
    """Of each person two pictures with one face each, (3, H, W), and its box, as MTCNN finds it."""
    from mldm_plugin.prepare.faces.mtcnn import load_network

    found = {}
    for person in ("P001", "P004", "P007"):
        for kind in ("studio_portrait", "amateur_selfie"):
            image = photograph(person, kind, 400)
            boxes, scores, points = (x.clone() for x in load_network()((image + 1) * 127.5, 20))
            best = int(scores.argmax())
            found[person, kind] = image, boxes[best][None], points[best]
    return found


def turned(image, degrees):
    """The picture turned clockwise about its middle, as large as before."""
    height, width = image.shape[1:]
    a = math.radians(degrees)
    y, x = torch.meshgrid(torch.arange(height) + 0.5 - height / 2, torch.arange(width) + 0.5 - width / 2, indexing="ij")
    grid = torch.stack([x * math.cos(a) + y * math.sin(a), y * math.cos(a) - x * math.sin(a)], dim=2)
    normal = grid / torch.tensor([width / 2, height / 2])
    return F.grid_sample(image[None], normal[None], padding_mode="border", align_corners=False)[0]


def turned_box(box, image, degrees):
    """The square of a box, moved with the picture and not turned."""
    middle = torch.tensor([image.shape[2] / 2, image.shape[1] / 2])
    a = math.radians(degrees)
    turn = torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])
    centre = ((box[0, :2] + box[0, 2:]) / 2 - middle) @ turn + middle
    half = (box[0, 2:] - box[0, :2]) / 2
    return torch.cat([centre - half, centre + half])[None]


@needs_weights("mtcnn")
def test_the_points_are_those_of_the_whole_cascade(portraits):
    landmarks = FaceLandmarks()
    for image, box, points in portraits.values():
        found, score = landmarks(image[None], [box])
        side = (box[0, 2:] - box[0, :2]).max()
        assert score.item() > 0.9
        assert ((found[0] - points).norm(dim=1) / side).max() < 0.06


@needs_weights("mtcnn")
def test_they_move_with_cuts_and_mirrors(portraits):
    landmarks = FaceLandmarks()
    for image, box, _ in portraits.values():
        side = (box[0, 2:] - box[0, :2]).max()
        (found,), _ = landmarks(image[None], [box])
        moved = box - torch.tensor([20.0, 10.0, 20.0, 10.0])
        (cut,), _ = landmarks(image[None, :, 10:, 20:], [moved])
        torch.testing.assert_close(cut + torch.tensor([20.0, 10.0]), found, atol=1e-2, rtol=0)
        width = image.shape[2]
        mirrored = torch.stack([width - box[:, 2], box[:, 1], width - box[:, 0], box[:, 3]], dim=1)
        (other,), _ = landmarks(image[None].flip(3), [mirrored])
        back = torch.stack([width - other[:, 0], other[:, 1]], dim=1)[[1, 0, 2, 4, 3]]
        assert ((back - found).norm(dim=1) / side).max() < 0.05


@needs_weights("mtcnn", "dlib_resnet")
def test_a_turned_photograph_is_the_same_person_by_landmarks_and_less_so_by_box(portraits):
    """By 30 degrees, which dlib's network minds: docs/losses/face.md."""
    by_box, by_landmarks = FaceEmbedding("dlib_resnet"), FaceEmbedding("dlib_resnet", align="landmarks")
    for image, box, _ in portraits.values():
        for degrees in (-30, 30):
            apart = []
            for embedding in (by_box, by_landmarks):
                one = embedding.of(image[None], [box])
                other = embedding.of(turned(image, degrees)[None], [turned_box(box, image, degrees)])
                apart.append(1 - (one @ other.T).item())
            assert apart[1] < 0.5 * apart[0]
            assert apart[1] < 0.02  # two pictures of one person are .036 apart, of two people .128


@needs_weights("mtcnn", "dlib_resnet")
def test_the_estimate_is_cut_out_where_the_photographs_face_lies(portraits):
    """An estimate without a face is looked at in the same place, and has a gradient there."""
    embedding = FaceEmbedding("dlib_resnet", align="landmarks")
    image, box, _ = portraits["P001", "amateur_selfie"]
    where = embedding.place(image[None], [box])
    assert where.found.all()
    torch.testing.assert_close(embedding(image[None], [box], where), embedding.of(image[None], [box]))
    grey = torch.zeros_like(image[None]).requires_grad_()
    embedding(grey, [box], where)[0, 0].backward()
    seen = grey.grad[0].abs().sum(0).nonzero().flip(1) + 0.5
    x, y, side, angle = where.squares[0]
    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    inside = (seen - torch.stack([x, y])) @ turn / side
    assert 0.45 < inside.abs().max() < 0.5 + 1 / side  # a pixel beside the edge has a part in what is interpolated


@needs_weights("mtcnn", "dlib_resnet")
def test_the_loss_looks_for_landmarks_in_the_photograph(portraits):
    """Of a photograph that shows none its box is used, whatever the estimate shows, and counted."""
    loss = Identity(align="landmarks")
    assert [name.split()[0].rstrip(":,") for name in loss.networks] == ["dlib_resnet", "mtcnn"]
    image, box, _ = portraits["P004", "studio_portrait"]
    photograph_, grey = image[None], torch.zeros_like(image[None])
    for target, pred, by_box in ((photograph_, grey, 0), (grey, photograph_, 1)):
        step = face_step([box.tolist()], pred.clone().requires_grad_(), target)
        value, logs = loss(step)
        assert logs["by_box"].tolist() == [by_box]
        assert value.item() > 0.5
    value, _ = loss(face_step([box.tolist()], photograph_.clone().requires_grad_(), photograph_))
    assert value.item() == pytest.approx(0, abs=1e-5)
