"""Poses lie where people are."""

import dataclasses

import pytest
import torch
from openpeople_pictures import as_tensor, photograph
from weights_entries import needs_weights

from mldm_plugin.perceptual.pose import COCO, Pose, as_coco, find_pose, refined, same_person

PRETRAINED = needs_weights("mediapipe_person", "mediapipe_pose")
NOSE, SHOULDERS, WRISTS, HIPS, ANKLES = 0, [11, 12], [15, 16], [23, 24], [27, 28]


def test_coco_takes_its_seventeen_points():
    pose = Pose(torch.zeros(4), torch.tensor(1.0), torch.arange(66.0).view(33, 2), torch.arange(33.0) / 33)
    points = as_coco(pose)
    assert points.shape == (17, 3)
    assert points[5].tolist() == pytest.approx([22, 23, 11 / 33])  # the left shoulder
    assert points[16].tolist() == pytest.approx([56, 57, 28 / 33])  # the right ankle
    assert len(set(COCO)) == 17


def test_a_sure_heat_map_moves_its_points_and_another_does_not():
    points = torch.tensor([[[0.5, 0.5], [0.5, 0.5], [1.5, 0.5]]], requires_grad=True)
    heat = torch.full((1, 16, 16, 3), -20.0)
    heat[0, 9, 10, 0] = heat[0, 9, 11, 0] = 20.0  # rows, columns
    heat[0, 1, 1, 1] = 20.0  # too far away
    heat.requires_grad_()
    moved = refined(points, heat)
    torch.testing.assert_close(moved[0].detach(), torch.tensor([[10.5 / 16, 9 / 16], [0.5, 0.5], [1.5, 0.5]]))
    moved.sum().backward()
    assert heat.grad.isfinite().all()
    assert points.grad[0].tolist() == [[0, 0], [1, 1], [1, 1]]


def test_refinement_has_the_gradient_of_its_function():
    generator = torch.Generator().manual_seed(0)
    heat = torch.randn(1, 8, 8, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    points = torch.tensor([[[0.5, 0.4], [0.1, 0.9]]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda h: refined(points, h), heat)


def test_a_person_found_twice_is_one():
    points = torch.rand(33, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([100.0, 300.0])
    box = torch.tensor([0.0, 0, 100, 300])

    def pose(by):
        return Pose(box + by, torch.tensor(1.0), points + by, torch.ones(33))

    assert same_person(pose(0), pose(15))
    assert not same_person(pose(0), pose(80))


@PRETRAINED
@pytest.mark.parametrize("kind", ["studio_posture", "amateur_posture"])
def test_a_standing_person_is_found_from_nose_to_ankles(kind):
    image = photograph("P008", kind)
    [pose] = find_pose(image)
    assert pose.score > 0.9
    assert pose.visibility[[NOSE, *SHOULDERS, *HIPS]].min() > 0.9
    heights = [pose.points[i, 1].mean() for i in ([NOSE], SHOULDERS, HIPS, ANKLES)]
    assert heights == sorted(heights)
    assert pose.points[11, 0] > pose.points[12, 0]  # the left shoulder is on our right
    assert (pose.box[2:] > pose.box[:2]).all()
    assert pose.box[1] < pose.points[NOSE, 1] < heights[1]


@PRETRAINED
def test_two_people_are_two_and_a_mirror_exchanges_left_and_right():
    one, two = (photograph(person, "studio_posture", 400) for person in ("P002", "P005"))
    poses = find_pose(torch.cat([one, two], dim=2))
    assert sorted(int(pose.points[NOSE, 0] // one.shape[2]) for pose in poses) == [0, 1]
    [pose], [mirrored] = find_pose(one), find_pose(one.flip(2))
    tall = pose.box[3] - pose.box[1]
    across = one.shape[2] - mirrored.points[SHOULDERS[::-1], 0]
    assert (across - pose.points[SHOULDERS, 0]).abs().max() < 0.02 * tall


@PRETRAINED
@pytest.mark.parametrize("name", ["coffee", "rocket", "chelsea"])
def test_nobody_is_found_where_nobody_is(name):
    import skimage.data

    assert find_pose(as_tensor(getattr(skimage.data, name)())) == []


@PRETRAINED
def test_gradients_reach_the_picture():
    image = photograph("P003", "amateur_posture").requires_grad_()
    [pose] = find_pose(image)
    assert not pose.box.requires_grad
    (pose.points.sum() + pose.score + pose.visibility.sum()).backward()
    assert image.grad.isfinite().all()
    assert image.grad.abs().sum() > 0
    assert {field.name for field in dataclasses.fields(pose)} == {"box", "score", "points", "visibility"}
