"""What is written into arrays where it is not seen, and what others make of our arrays."""

import copy
import pickle

import numpy as np
import pytest
import torch
from followed_pictures import (
    check_places,
    coordinates_picture,
    ledger_installed,
    people_labels,
    people_picture,
)
from PIL import Image
from torchvision.transforms import functional as F

from mldm_plugin.attach.followed_array import FollowedArray
from mldm_plugin.attach.frame import Frame, check_frame
from mldm_plugin.attach.ledger import frame_of
from mldm_plugin.attach.planes import Planes
from mldm_plugin.errors import DataError


@pytest.fixture(scope="module", autouse=True)
def _followed():
    with ledger_installed():
        yield


@pytest.fixture
def image(tmp_path):
    return people_picture(tmp_path / "people.png")


@pytest.fixture
def coordinates():
    return coordinates_picture()


def written_through(view):
    def change(array):
        part = view(array)
        part[:] = part[:, ::-1].copy()
        return array

    return change


def each_row_mirrored(array):
    for row in array:
        row[:] = row[::-1].copy()
    return array


def out_of(function):
    def change(array):
        function(array[:, ::-1].copy(), array)
        return array

    return change


def shuffled(array):
    pictures = np.stack([array, array[:, ::-1], array[::-1], array[::-1, ::-1]])
    np.random.default_rng(2).shuffle(pictures)
    return pictures[0]


def through_memory_of_a_tensor(array):
    torch.from_numpy(array).copy_(torch.from_numpy(array[:, ::-1].copy()))
    return array


def unknown(array):
    return np.ascontiguousarray(array.view(np.ndarray)[:, ::-1])


def in_place(method, *args, **kwargs):
    def change(array):
        getattr(array, method)(*args, **kwargs)
        return array

    return change


@pytest.mark.parametrize(
    "change",
    [
        written_through(lambda a: a[:, :30]),
        written_through(lambda a: a.transpose(1, 0, 2).swapaxes(0, 1)),
        written_through(lambda a: a[None].reshape(a.shape)),
        written_through(lambda a: np.asarray(a)),  # the wrapped one
        each_row_mirrored,
        shuffled,
        through_memory_of_a_tensor,
        in_place("sort", axis=1),
        in_place("fill", 3),
        in_place("put", np.arange(900), 5),
        lambda a: np.sort(a[:, ::-1], axis=1),
        lambda a: np.partition(a[:, ::-1], 5, axis=1),
        out_of(lambda b, a: np.add(b, 0, out=a[:])),
        out_of(lambda b, a: np.add(b, 0, out=a, where=a > 3)),
        out_of(lambda b, a: np.multiply(b.view(np.ndarray), 1, out=a)),
        out_of(lambda b, a: np.max(np.stack([b, b]), axis=0, out=a)),
        out_of(lambda b, a: np.concatenate([b[:20], b[20:]], out=a)),
        out_of(lambda b, a: np.take(b, np.arange(60), axis=1, out=a)),
        out_of(lambda b, a: np.copyto(dst=a[:], src=b)),
        out_of(lambda b, a: np.add.at(a, slice(None), b)),
        out_of(lambda b, a: a.flat.__setitem__(slice(None), b.ravel())),
        lambda a: np.eye(40)[::-1] @ a[..., 0],
        lambda a: np.where(a > 3, unknown(a), unknown(a)),
    ],
)
def test_pixels_that_were_moved_unseen_are_nobodys(coordinates, change):
    changed = change(coordinates)
    with pytest.raises(DataError, match="not known|cannot be followed"):
        check_frame(frame_of(changed), (60, 40), "a.png")


def test_a_copy_is_not_what_is_written_into_the_original(coordinates):
    copies = [coordinates.copy(), np.array(coordinates), coordinates * 1, coordinates[:, 4:].astype(np.int16)]
    copies += [np.stack([coordinates, coordinates])[1], copy.deepcopy(coordinates), copy.copy(coordinates)]
    coordinates[:, :30][:] = coordinates[:, 30:]
    for own in copies:
        check_places(own.astype(np.uint8))
    assert all(frame_of(own).lost for own in (coordinates, coordinates.copy(), coordinates * 1, coordinates[None][0]))


def test_colours_may_change_through_views(coordinates):
    floats = coordinates.astype(np.float64)
    for channel in floats.transpose(2, 0, 1):
        channel += 2
        np.subtract(channel, 2, out=channel)
    check_places(floats.astype(np.uint8))


def test_frames_of_another_size_that_were_lost_do_not_cut_their_neighbours(coordinates):
    wide = FollowedArray.of(np.zeros((40, 90), np.uint8), Planes.of(Frame("b.png", (90, 40), (90, 40)), (40, 90)))
    pictures = np.stack([wide[:, [*range(60)]], coordinates[..., 0]])[:, :, -20:]
    check_places(pictures[1])


def test_a_picture_pasted_beside_something_unseen_is_refused(coordinates):
    canvases = [np.zeros((40, 120, 3), np.uint8) for _ in range(3)]
    canvases[0][:, 60:][:] = coordinates
    memoryview(canvases[1])[0, 70, 0] = 9
    canvases[2] = np.full((40, 120, 3), np.concatenate([unknown(coordinates)] * 2, axis=1))
    for canvas in canvases:
        canvas[:, :60] = coordinates
        with pytest.raises(DataError, match=r"a\.png: writing a picture into an array"):
            check_frame(frame_of(canvas), (120, 40), frame_of(canvas).source)


def test_a_picture_added_to_a_part_of_an_empty_array_is_followed(image):
    canvas = np.full((110, 150, 3), (0, 0, 0), np.uint8)
    canvas[7:103, 5:145] += np.array(image)
    frame = check_frame(frame_of(canvas), (150, 110), "people.png")
    assert torch.equal(frame.warp_labels(people_labels())[:, 7:103, 5:145], people_labels())


def test_what_works_without_us_works(image):
    """Numbers, types and identity, in calls that once failed."""
    own, plain = np.array(image), np.array(Image.fromarray(np.array(image).view(np.ndarray)))
    assert type(plain) is np.ndarray
    for step in (
        lambda a: a @ np.array([0.2, 0.7, 0.1]),
        lambda a: a.mean(where=a > 3),
        lambda a: np.percentile(a[..., 0], a[:2, :2, 0] / 9),
        lambda a: np.stack(np.divmod(a, 16, out=(np.empty_like(a), np.empty_like(a)))),
        lambda a: np.stack(np.modf(a / 7)),
        lambda a: np.add(a, 1, out=np.zeros_like(a), where=a > 5),
        lambda a: np.asarray(Image.fromarray(obj=a)),
        lambda a: F.to_tensor(pic=a).numpy(),
        lambda a: np.fromiter((row.sum() for row in a), int),
        lambda a: np.array(np.iterable(a[0, 0, 0, ...])),
    ):
        assert np.array_equal(np.asarray(step(own)), np.asarray(step(plain)))
    total = np.zeros(own.shape)
    assert np.add(own, 1, out=total) is total
    np.zeros_like(own[0, :, 0])[:] = own[:1, :, 0]
    tensor = torch.from_numpy(own)
    assert torch.as_tensor(tensor) is tensor
    leaf = torch.tensor(own, dtype=torch.float32, requires_grad=True)
    leaf.sum().backward()
    assert leaf.grad is not None
    with pytest.raises(ValueError, match="axis"):
        own.swapaxes(0, 7)


def test_others_know_our_arrays_and_functions(image):
    own = np.array(image)
    assert b"mldm" not in pickle.dumps([own, np.zeros((4, 4, 3))])
    assert np.array_equal(pickle.loads(pickle.dumps(own)), own)
    assert isinstance(torch.utils.data.default_convert(own), torch.Tensor)
    for function in (np.array, np.zeros, torch.tensor, torch.as_tensor, torch.from_numpy, Image.fromarray):
        assert pickle.loads(pickle.dumps(function)) is function

    class Other:
        def __array_function__(self, *_):
            return "other"

    assert np.zeros((4, 4, 3), like=Other()) == "other"


def test_what_is_lost_costs_no_more_than_what_is_plain(image):
    pixels = np.array(image).reshape(-1, 1, 3)
    assert pixels.mldm_planes.is_lost
    assert pixels.mldm_planes.each(lambda frame: frame).frames.strides == (0,)  # one frame, not one of each pixel
