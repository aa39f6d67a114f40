"""Frames of numpy arrays: from a picture to an array, to a tensor, and back."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from followed_pictures import (
    agreement,
    check_places,
    coordinates_picture,
    labels_of,
    ledger_installed,
    people_labels,
    people_picture,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as F
from torchvision.transforms import v2

from mldm_plugin.attach.followed import FollowedTensor
from mldm_plugin.attach.frame import check_frame
from mldm_plugin.attach.ledger import frame_of
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


# Step by step


@pytest.mark.parametrize(
    "key",
    [
        np.s_[3:33],
        np.s_[:, 5:50],
        np.s_[:, ::-1, :],
        np.s_[::-1],
        np.s_[2:, 7:-4, :3],
        np.s_[:],
        np.s_[30:10:-1, :],
        np.s_[..., 0],
        np.s_[..., 4:50, :],
    ],
    ids=str,
)
def test_an_array_is_followed_through_slices_to_the_pixel(coordinates, key):
    check_places(coordinates[key].copy())


@pytest.mark.parametrize(
    "change",
    [
        np.flipud,
        np.fliplr,
        np.rot90,
        lambda a: np.flip(a, (0, 1)),
        lambda a: a.transpose(1, 0, 2),
        lambda a: a.T.transpose(2, 1, 0),
        lambda a: np.moveaxis(np.moveaxis(a, -1, 0)[:, 3:, :-5], 0, -1),
        lambda a: a.swapaxes(0, 1)[4:].swapaxes(1, 0),
        lambda a: np.swapaxes(np.swapaxes(a, 0, 2), 0, 2),
        lambda a: np.expand_dims(a, 0)[:, 5:].squeeze(0),
        lambda a: np.squeeze(a[None, None]),
        lambda a: np.ascontiguousarray(a[:, ::-1]),
        lambda a: np.array(a)[2:],
        lambda a: np.asarray(a[2:], dtype=np.uint8),
        lambda a: np.copy(a)[::-1],
        lambda a: np.clip(a, 0, 255),
        lambda a: a.astype(np.float32) * 1.0 + 0,
        lambda a: np.where(a > 0, a, a),
        lambda a: next(iter(a[None])),
        lambda a: np.stack([a, a])[1][3:],
        lambda a: np.concatenate([a, a[:, ::-1]], axis=2)[:, 2:50, :3],
        lambda a: np.split(a, 2, axis=0)[1],
        lambda a: a.reshape(40, 60, 3),
    ],
)
def test_what_is_known_of_numpy_is_followed_to_the_pixel(coordinates, change):
    changed = change(coordinates)
    if changed.dtype != np.uint8:
        changed = changed.astype(np.uint8)
    check_places(changed)


def test_computing_in_place_stays_in_its_place(coordinates):
    floats = coordinates.astype(np.float64)
    floats += 4
    floats -= 4
    np.multiply(floats, 1, out=floats)
    floats[..., 0] *= 2
    floats[..., 0] /= 2
    floats[..., 2] = floats[..., 1]
    check_places(floats.astype(np.uint8))


def test_colours_by_another_package_stay_in_their_place(coordinates):
    """As kohya's scripts change them: by OpenCV, and written over the picture."""
    coordinates[:, :, :2] = np.asarray(coordinates[:, :, :2]).view(np.ndarray).copy()
    coordinates[:] = coordinates * 1
    check_places(coordinates)


def test_boxes_follow_a_flip_after_a_crop(coordinates):
    frame = frame_of(coordinates[4:, 10:50][:, ::-1].copy())
    assert frame.warp_boxes(torch.tensor([[15.0, 10.0, 25.0, 20.0]])).tolist() == [[25, 6, 35, 16]]


@pytest.mark.parametrize("key", [np.s_[::2], np.s_[:, [1, 2, 3]], np.s_[5], np.s_[:, 3]], ids=str)
def test_other_indexing_loses_the_frame_and_names_it(coordinates, key):
    assert "indexing an array" in frame_of(coordinates[key]).lost


def flipped_in_place(array):
    array[:] = array[:, ::-1].copy()
    return array


def copied_over(array):
    np.copyto(array, np.zeros(array.shape, np.uint8))
    return array


def painted_by_an_unknown_array(array):
    array[:20] = np.roll(np.asarray(array).view(np.ndarray), 3, axis=1)[:20]
    return array


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda a: np.roll(a, 3, axis=1), "numpy.roll"),
        (lambda a: np.repeat(a, 2, axis=0), "numpy.repeat"),
        (lambda a: np.concatenate([a, a], axis=1), "numpy.concatenate"),
        (lambda a: np.concatenate([a[..., 0], a[..., 0]]), "numpy.concatenate"),
        (lambda a: a.reshape(60, 40, 3), "reshape of an array"),
        (lambda a: a + a[:, ::-1], "numpy.add of two pictures"),
        (lambda a: np.where(a > 3, a, a[::-1]), "numpy.where of two pictures"),
        (flipped_in_place, "a picture that was written into another"),
        (copied_over, "numpy.copyto"),
        (painted_by_an_unknown_array, "an array that was written into another"),
        (lambda a: a.repeat(2, 1), "a step on an array"),
    ],
)
def test_what_is_not_known_is_lost_and_named_with_its_file(coordinates, change, named):
    changed = change(coordinates)
    with pytest.raises(DataError, match=rf"a\.png: {named} cannot be followed"):
        check_frame(frame_of(changed), (changed.shape[1], changed.shape[0]), frame_of(changed).source)


# Pasting


def test_a_picture_in_an_empty_array_is_followed_and_the_rest_shows_nobody(image):
    canvas = np.zeros((110, 150, 3), dtype=np.float32)
    canvas[7:103, 5:145, :] = np.array(image)[:, ::-1] / 255
    frame = check_frame(frame_of(canvas), (150, 110), "people.png")
    expected = torch.zeros(1, 110, 150, dtype=torch.uint8)
    expected[:, 7:103, 5:145] = people_labels().flip(-1)
    assert torch.equal(frame.warp_labels(people_labels()), expected)


def two_pictures(array):
    canvas = np.zeros((40, 120, 3), np.uint8)
    canvas[:, :60], canvas[:, 60:] = array, array[:, ::-1]
    return canvas


def an_unknown_one_first(array):
    canvas = np.zeros((40, 120, 3), np.uint8)
    canvas[:, 60:] = np.random.default_rng(0).integers(0, 255, (40, 60, 3))
    canvas[:, :60] = array
    return canvas


def stretched(array):
    canvas = np.ones((40, 60, 3), np.uint8)
    canvas[:] = array[:1]
    return canvas


@pytest.mark.parametrize("paste", [two_pictures, an_unknown_one_first, stretched])
def test_other_pasting_is_refused(coordinates, paste):
    canvas = paste(coordinates)
    with pytest.raises(DataError, match="not known|cannot be followed"):
        check_frame(frame_of(canvas), (canvas.shape[1], canvas.shape[0]), "a.png")


# From picture to array to tensor and back

STEPS = {
    "window": lambda a, u, v: a[int(9 * u) : int(9 * u) + 70, int(9 * v) : int(9 * v) + 70],
    "mirror": lambda a, u, v: a[:, ::-1],
    "rot90": lambda a, u, v: np.rot90(a),
    "through_pillow": lambda a, u, v: np.array(Image.fromarray(a).resize((72 + int(20 * u), 72 + int(9 * v)))),
    "flip_of_pillow": lambda a, u, v: np.asarray(F.hflip(Image.fromarray(a))),
    "through_tensors": lambda a, u, v: F.hflip(torch.from_numpy(a.copy()).permute(2, 0, 1)).permute(1, 2, 0).numpy(),
    "channels_first": lambda a, u, v: a.transpose(2, 0, 1)[:, 2:, :-3].transpose(1, 2, 0),
    "colours": lambda a, u, v: (a / 255.0 * 0.9 * 255).astype(np.uint8),
    "padded": lambda a, u, v: pasted(a, int(9 * u), int(9 * v)),
}
TO_TENSORS = {
    "from_numpy": lambda a: torch.from_numpy((a / 255).astype(np.float32)).permute(2, 0, 1),
    "transposed": lambda a: torch.from_numpy(np.transpose(a.astype(np.float32) / 255, [2, 0, 1])),
    "tensor": lambda a: torch.tensor(a.copy()).permute(2, 0, 1) / 255,
    "as_tensor": lambda a: torch.as_tensor(np.moveaxis(a, 2, 0).copy()).float().div(255),
    "to_tensor": lambda a: F.to_tensor(a.copy()),
}


def pasted(array, top, left):
    canvas = np.zeros((array.shape[0] + 9, array.shape[1] + 9, 3), np.uint8)
    canvas[top : top + array.shape[0], left : left + array.shape[1]] = array
    return canvas


@given(
    st.lists(st.sampled_from(sorted(STEPS)), max_size=5),
    st.sampled_from(sorted(TO_TENSORS)),
    st.floats(0, 1),
    st.floats(0, 1),
)
@settings(max_examples=200, deadline=None)
def test_masks_go_where_the_picture_goes_as_an_array(tmp_path_factory, names, last, u, v):
    path = tmp_path_factory.getbasetemp() / "people_as_array.png"
    array = np.array(people_picture(path)).astype(np.uint8)
    for name in names:
        if min(array.shape[:2]) < 80:
            break
        array = STEPS[name](array, u, v)
    tensor = TO_TENSORS[last](array)
    assert tensor.dtype == torch.float32
    frame = check_frame(frame_of(tensor), (tensor.shape[2], tensor.shape[1]), "people.png")
    assert agreement(frame.warp_labels(people_labels()), labels_of(tensor)) > 0.93
    assert frame.source == str(path)


def test_values_are_those_of_ordinary_arrays(image):
    own = np.array(image)
    plain = own.view(np.ndarray).copy()
    for name, step in STEPS.items():
        expected = step(plain, 0.3, 0.6)
        assert np.array_equal(np.asarray(step(own, 0.3, 0.6)), np.asarray(expected)), name
    for name, to_tensor in TO_TENSORS.items():
        assert torch.equal(to_tensor(own).as_subclass(torch.Tensor), to_tensor(plain)), name
    for measure in (np.mean, np.std, np.argmax, lambda a: a.sum(axis=2), lambda a: np.histogram(a)[0]):
        assert np.array_equal(measure(own), measure(plain))
    assert isinstance(own.mean(), np.floating)
    batch = torch.utils.data.default_collate([own, own])
    assert type(batch) is torch.Tensor
    assert torch.equal(batch[1], torch.from_numpy(plain))


def test_a_picture_without_a_frame_and_a_list_make_ordinary_arrays():
    for made in (
        np.array(Image.new("RGB", (4, 4))),
        np.asarray([1, 2]),
        np.zeros(3),
        np.zeros((9, 9)),
        np.ones((2, 3, 9)),
    ):
        assert type(made) is np.ndarray
    assert type(torch.tensor([1.0])) is torch.Tensor
    assert type(torch.from_numpy(np.zeros((4, 4, 3)))) is torch.Tensor


# Several pictures at once, as instruct-pix2pix's script treats its pairs


def pairs(images, join):
    """(2, 3N, H, W) or (6N, H, W) of pictures and of their mirrors, one crop and one flip for all of them."""
    first = np.concatenate([np.array(i.resize((120, 90))).transpose(2, 0, 1) for i in images])
    second = np.concatenate([np.array(F.hflip(i).resize((120, 90))).transpose(2, 0, 1) for i in images])
    tensor = 2 * (torch.tensor(join([first, second])) / 255) - 1
    cropped = transforms.Compose([transforms.RandomCrop(64), transforms.RandomHorizontalFlip(1.0)])(tensor)
    return cropped if cropped.ndim == 4 else cropped.chunk(2)


@pytest.mark.parametrize("join", [np.stack, np.concatenate])
@pytest.mark.parametrize("count", [1, 3])
def test_pairs_part_with_the_frame_of_each(tmp_path, join, count):
    images = [people_picture(tmp_path / f"{n}.png") for n in range(count)]
    torch.manual_seed(1)
    parts = pairs(images, join)
    for mirrored, part in enumerate(parts):
        pictures = part.reshape(-1, 3, 64, 64)
        for n in range(count):
            frame = check_frame(frame_of(pictures[n]), (64, 64), "x")
            assert frame.source == str(tmp_path / f"{n}.png")
            assert (frame.affine[0] < 0) is (not mirrored)  # all are flipped once more
            assert agreement(frame.warp_labels(people_labels()), labels_of(pictures[n] / 2 + 0.5)) > 0.93


def test_a_picture_and_its_condition_are_cropped_as_one_tensor(tmp_path):
    """As ControlNet++'s reward script does: the picture, a condition of another file and labels without one."""
    image, condition = (people_picture(tmp_path / f"{name}.png") for name in ("image", "condition"))
    labels = torch.rand(1, 96, 140)
    torch.manual_seed(0)
    joined = transforms.RandomCrop(60)(torch.cat([F.to_tensor(image), F.to_tensor(F.hflip(condition)), labels]))
    for part, name, sign in ((joined[:3], "image", 1), (joined[3:6], "condition", -1)):
        frame = check_frame(frame_of(part), (60, 60), "x")
        assert frame.source == str(tmp_path / f"{name}.png")
        assert frame.affine[0] == sign
        assert agreement(frame.warp_labels(people_labels()), labels_of(part)) > 0.93
    assert frame_of(joined) is None
    assert "beside a picture" in frame_of(joined[6:]).lost


def test_pictures_of_two_files_in_one_are_nobodys(tmp_path):
    one, other = (np.array(people_picture(tmp_path / name)) for name in ("one.png", "other.png"))
    both = torch.from_numpy(np.concatenate([one[..., :2], other[..., 2:]], axis=2)).permute(2, 0, 1)
    with pytest.raises(DataError, match="not known"):
        check_frame(frame_of(both), (140, 96), "x")


def test_two_inputs_of_one_transform_keep_their_frames(image):
    """As realfill's script has them: a picture and its weights, cropped alike."""
    transform = v2.Compose([v2.ToImage(), v2.RandomCrop(60), v2.ToDtype(torch.float32, scale=True)])
    picture, weights = transform(image, Image.new("L", image.size))
    frame = check_frame(frame_of(picture), (60, 60), "people.png")
    assert agreement(frame.warp_labels(people_labels()), labels_of(picture.as_subclass(torch.Tensor))) > 0.93
    assert frame_of(weights) is None


def test_an_array_keeps_its_memory_and_a_copied_tensor_its_frame(image):
    array = np.array(image)
    tensor = torch.from_numpy(array)
    tensor[0, 0, 0] = 77
    assert array[0, 0, 0] == 77
    assert isinstance(tensor, FollowedTensor)
    assert frame_of(copy.deepcopy(tensor.permute(2, 0, 1))) == frame_of(array)


def test_torch_still_knows_its_own_functions(tmp_path):
    """Device contexts, TorchScript and torch.compile tell functions by what they are; in a process of its own."""
    script = tmp_path / "script.py"  # TorchScript reads sources
    script.write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["meta", "meta", "4.0", "[6.0,", "7.0]"]


SCRIPT = """
import numpy as np
import torch
from mldm_plugin.attach import ledger

ledger.install()
with torch.device("meta"):
    print(torch.tensor([]).device, torch.as_tensor([1.0]).device)


@torch.jit.script
def scripted(x: torch.Tensor):
    return torch.sqrt(torch.tensor(x.size(-1), dtype=torch.float)) + torch.as_tensor(2.0)


print(scripted(torch.zeros(4)).item())


def compiled(x):
    known = torch.from_numpy(np.ones(2, np.float32)) + torch.as_tensor(np.asarray(np.array([1.0, 2.0], np.float32)))
    return x + torch.tensor([1.0, 1.0]) + torch.as_tensor(3.0) + known


print(torch.compile(compiled, backend="eager", fullgraph=True)(torch.zeros(2)).tolist())
"""
