"""Frames: what Pillow and torchvision do to a picture, followed, against the picture itself."""

import copy
import pickle
import random

import numpy as np
import PIL.Image
import pytest
import torch
from followed_pictures import agreement, labels_of, ledger_installed, people_labels, people_picture
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision import transforms
from torchvision.transforms import functional as F
from torchvision.transforms import v2

from mldm_plugin.attach import ledger
from mldm_plugin.attach.followed import FollowedTensor
from mldm_plugin.attach.frame import IDENTITY, Frame, check_frame, compose, invert, transposition
from mldm_plugin.attach.ledger import frame_of
from mldm_plugin.data.geometry import Cut, Framing
from mldm_plugin.errors import DataError


@pytest.fixture(scope="module", autouse=True)
def _followed():
    with ledger_installed():
        yield


@pytest.fixture
def picture(tmp_path):
    """A picture in which each person is a rectangle of one colour, and its labels."""
    people_picture(tmp_path / "people.png")
    return tmp_path / "people.png", people_labels()


OPERATIONS = {
    "resize": lambda image, a, b: image.resize((40 + int(60 * a), 40 + int(60 * b)), Image.Resampling.BILINEAR),
    "resize_box": lambda image, a, b: image.resize((50, 60), box=(5 * a, 7 * b, image.width - 3, image.height - 4)),
    "crop": lambda image, a, b: image.crop((int(9 * a), int(9 * b), image.width - 4, image.height - int(6 * a))),
    "crop_beyond": lambda image, a, b: image.crop((-int(8 * a), -3, image.width, image.height + int(8 * b))),
    "flip": lambda image, a, b: F.hflip(image),
    "mirror": lambda image, a, b: ImageOps.mirror(image),
    "upside_down": lambda image, a, b: F.vflip(image),
    "quarter_turn": lambda image, a, b: image.rotate(90, expand=True),
    "half_turn": lambda image, a, b: image.rotate(180),
    "transpose": lambda image, a, b: image.transpose(Image.Transpose.TRANSPOSE),
    "transverse": lambda image, a, b: image.transpose(Image.Transpose.TRANSVERSE),
    "fit": lambda image, a, b: ImageOps.fit(image, (64, 48)),
    "contain": lambda image, a, b: ImageOps.contain(image, (70, 70)),
    "reduce": lambda image, a, b: image.reduce(2),
    "convert": lambda image, a, b: image.convert("RGBA").convert("RGB"),
    "copy": lambda image, a, b: image.copy(),
    "resize_torchvision": lambda image, a, b: F.resize(image, 48 + int(30 * a)),
    "centre_crop": lambda image, a, b: F.center_crop(image, [min(image.height, 44), min(image.width, 40)]),
    "resized_crop": lambda image, a, b: F.resized_crop(image, int(5 * a), int(5 * b), 34, 30, [60, 56]),
    "jitter": lambda image, a, b: F.adjust_hue(F.adjust_brightness(F.adjust_contrast(image, 0.95), 0.95), 0.0),
    "resize_alpha": lambda image, a, b: image.convert("RGBA").resize((66, 58)).convert("RGB"),
}


@given(
    st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=1, max_size=5),
    st.floats(0, 1),
    st.floats(0, 1),
)
@settings(max_examples=150, deadline=None)
def test_masks_go_where_the_picture_goes(tmp_path_factory, names, a, b):
    path = tmp_path_factory.getbasetemp() / "people.png"
    image = people_picture(path)
    for name in names:
        if min(image.size) < 44:
            break
        image = OPERATIONS[name](image, a, b)
    tensor = F.to_tensor(image)
    frame = check_frame(frame_of(tensor), image.size, "people.png")
    warped = frame.warp_labels(people_labels())
    assert agreement(warped, labels_of(tensor)) > 0.93  # all but a seam that resampling blurs
    assert frame.source == str(path)
    assert frame.source_size == (140, 96)


def test_boxes_go_where_the_faces_go(picture):
    path, labels = picture
    image = F.hflip(F.resize(Image.open(path), 60)).crop((10, 5, 80, 58))
    boxes = frame_of(image).warp_boxes(torch.tensor([[12.0, 30.0, 60.0, 90.0], [84.0, 8.0, 130.0, 50.0]]))
    mask = frame_of(image).warp_labels(labels)
    expected = [(mask == k).nonzero() for k in (1, 2)]
    for box, where in zip(boxes, expected, strict=True):
        low, high = where[:, 1:].amin(0), where[:, 1:].amax(0) + 1
        assert torch.allclose(box, torch.tensor([low[1], low[0], high[1], high[0]]).float(), atol=1.0)


def test_a_box_that_is_mostly_cut_away_is_dropped(picture):
    image = Image.open(picture[0]).crop((0, 0, 100, 96))
    boxes = torch.tensor([[12.0, 30.0, 60.0, 90.0], [84.0, 8.0, 130.0, 50.0], [200.0, 0.0, 210.0, 9.0]])
    assert frame_of(image).warp_boxes(boxes).tolist() == [[12.0, 30.0, 60.0, 90.0]]
    assert frame_of(image).warp_boxes(torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("mirrored", [False, True])
def test_keypoints_go_where_those_of_our_own_trainers_go(picture, mirrored):
    """Which test_data_keypoints.py proves. Of each of two people four are labelled in the crop, and two beyond it."""
    image = F.crop(F.resize(Image.open(picture[0]).convert("RGB"), 60), 0, 20, 60, 60)
    image = F.hflip(image) if mirrored else image
    person = torch.zeros(17, 3)
    person[:4] = torch.tensor([[60.0, 30.0, 2.0], [64.0, 28.0, 1.0], [52.5, 28.25, 2.0], [40.0, 33.0, 2.0]])
    person[7:9] = torch.tensor([[10.0, 30.0, 2.0], [131.0, 90.0, 2.0]])
    people = torch.stack([person, person * torch.tensor([0.75, 1.02, 1.0])])
    found = frame_of(image).warp_keypoints(people)
    assert torch.allclose(found, Framing(60).keypoints(people, (140, 96), Cut(0, 20, mirrored)), atol=1e-3)
    assert [int((p[:, 2] > 0).sum()) for p in found] == [4, 4]
    assert frame_of(image).warp_keypoints(torch.zeros(0, 17, 3)).shape == (0, 17, 3)


def test_upside_down_left_and_right_change_their_names_and_in_a_half_turn_they_do_not(picture):
    left_eye, right_eye = 1, 2
    person = torch.zeros(1, 17, 3)
    person[0, left_eye] = torch.tensor([40.0, 30.0, 2.0])
    image = Image.open(picture[0]).convert("RGB")
    for turned, eye, place in (
        (F.vflip(image), right_eye, [40.0, 66.0, 2.0]),
        (image.rotate(180), left_eye, [100.0, 66.0, 2.0]),
        (image.transpose(Image.Transpose.TRANSPOSE), right_eye, [30.0, 40.0, 2.0]),
    ):
        found = frame_of(turned).warp_keypoints(person)[0]
        assert found[eye].tolist() == place
        assert found.abs().sum() == sum(place)


def test_a_picture_that_is_painted_over_stays_where_it_is(picture):
    image = Image.open(picture[0]).convert("RGB").resize((70, 48))
    before = frame_of(image)
    pasted_over(image, Image.new("RGB", (20, 20)))
    image.paste((1, 2, 3), (0, 0, 9, 9))
    image.paste(image.copy(), (0, 0))
    image.paste(image.crop((5, 7, 30, 20)).convert("L"), (5, 7))
    assert frame_of(image) == before


def test_thumbnails_are_followed(picture):
    path, labels = picture
    for image in (Image.open(path), Image.open(path).convert("RGB")):
        image.thumbnail((70, 70))
        frame = check_frame(frame_of(image), image.size, "x")
        assert agreement(frame.warp_labels(labels), labels_of(F.to_tensor(image.convert("RGB")))) > 0.93


def test_v2_to_tensors_is_followed(picture):
    path, labels = picture
    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])
    torch.manual_seed(0)
    image = v2.Compose([v2.Resize(60), v2.RandomCrop(48), v2.RandomHorizontalFlip(p=1.0)])(
        Image.open(path).convert("RGB")
    )
    tensor = to_tensor(image)
    assert agreement(check_frame(frame_of(tensor), (48, 48), "x").warp_labels(labels), labels_of(tensor)) > 0.93


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda image: Image.fromarray(np.roll(np.array(image), 9, axis=1)), "not known"),
        (lambda image: ImageOps.pad(image, (100, 100)), "not known"),
        (lambda image: pasted_over(image, ImageOps.mirror(image)), "Image.paste of another picture"),
        (lambda image: Image.composite(ImageOps.flip(image), image, image.convert("L")), "Image.paste of another"),
        (lambda image: image.rotate(10), "Image.transform"),
        (lambda image: F.rotate(F.to_tensor(image), 10), "not known|on a tensor cannot be followed"),
        (lambda image: F.to_tensor(image).transpose(0, 1), "the last step that was followed left it"),
        (lambda image: F.to_tensor(image).roll(9, -1), "roll on a tensor"),
        (lambda image: F.to_tensor(image)[:, ::2], "indexing a tensor"),
        (lambda image: F.to_tensor(image)[:, [5, 3, 4]], "indexing a tensor by more than slices"),
        (lambda image: F.to_tensor(image) + F.to_tensor(F.hflip(image)), "of two pictures"),
        (lambda image: overwritten(F.to_tensor(image)), "copy_ on a tensor"),
        (lambda image: painted(F.to_tensor(image)), "__setitem__ on a tensor"),
        (lambda image: torch.stack([F.to_tensor(image)] * 2)[0], "not known"),
        (lambda image: F.affine(image, 5, [0, 0], 1.0, [0.0]), "Image.transform"),
    ],
)
def test_what_cannot_be_followed_is_refused(picture, spoil, message):
    spoilt = spoil(Image.open(picture[0]).convert("RGB"))
    size = spoilt.size if isinstance(spoilt, Image.Image) else (spoilt.shape[-1], spoilt.shape[-2])
    with pytest.raises(DataError, match=message):
        check_frame(frame_of(spoilt), size, "people.png")


def pasted_over(image, other):
    image.paste(other, (0, 0))
    return image


def overwritten(tensor):
    tensor.copy_(tensor.flip(-1))
    return tensor


def painted(tensor):
    tensor[:, :, :30] = tensor[:, :, 30:60]
    return tensor


def window(tensor, a, b):
    top, left = int(9 * a), int(9 * b)
    return tensor[:, top : top + 44, left : left + 44]


def one_channel_darker(tensor):
    tensor[0] *= 0.9
    return tensor


ON_TENSORS = {
    "crop": lambda x, a, b: F.crop(x, int(5 * a), int(7 * b), x.shape[1] - 8, x.shape[2] - 9),
    "crop_beyond": lambda x, a, b: F.crop(x, -int(8 * a), -3, x.shape[1] + 2, x.shape[2]),
    "center_crop": lambda x, a, b: F.center_crop(x, [x.shape[1] - 2, x.shape[2] - 5]),
    "center_crop_beyond": lambda x, a, b: F.center_crop(x, [x.shape[1] + 6, x.shape[2] - 5]),
    "hflip": lambda x, a, b: F.hflip(x),
    "vflip": lambda x, a, b: F.vflip(x),
    "flip": lambda x, a, b: torch.flip(x, dims=(-1, -2)),
    "flip_method": lambda x, a, b: x.flip(2),
    "transpose": lambda x, a, b: x.transpose(1, 2),
    "quarter_turn": lambda x, a, b: x.permute(0, 2, 1).flip(-1),
    "slice": lambda x, a, b: x[..., int(4 * a) :, : x.shape[2] - int(6 * b)],
    "window": window,
    "resize": lambda x, a, b: F.resize(x, [44 + int(50 * a), 44 + int(60 * b)], antialias=True),
    "resized_crop": lambda x, a, b: F.resized_crop(x, 2, 3, x.shape[1] - 9, x.shape[2] - 5, [60, 50], antialias=True),
    "interpolate": lambda x, a, b: torch.nn.functional.interpolate(x[None], scale_factor=1.25, mode="bilinear")[0],
    "pad": lambda x, a, b: F.pad(x, [int(6 * a), 2, 1, int(5 * b)]),
    "random_crop": lambda x, a, b: transforms.RandomCrop(44)(x),
    "v2_crop": lambda x, a, b: v2.Compose([v2.RandomCrop(44), v2.RandomHorizontalFlip()])(x),
    "v2_resize": lambda x, a, b: v2.Resize((60, 70))(x),
    "v2_functional": lambda x, a, b: v2.functional.horizontal_flip(v2.functional.crop(x, 1, 2, 44, 44)),
    "a_channel": lambda x, a, b: one_channel_darker(x.clone()),
    "colours": lambda x, a, b: (x * 0.5 + 0.25).clamp(0, 1).to(torch.float64).float().contiguous(),
}


@given(
    st.lists(st.sampled_from(sorted(ON_TENSORS)), min_size=1, max_size=4),
    st.floats(0, 1),
    st.floats(0, 1),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
@example(["vflip", "v2_resize"], 0.0, 0.0, True)  # v2 rewrites strides
@example(["center_crop_beyond", "center_crop_beyond", "colours", "colours"], 0.0, 0.0, False)
def test_masks_go_where_the_picture_goes_as_a_tensor(tmp_path_factory, names, a, b, with_v2):
    path = tmp_path_factory.getbasetemp() / "people_as_tensor.png"
    image = people_picture(path)
    tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])(image) if with_v2 else F.to_tensor(image)
    if with_v2:  # a picture of v2's own, with v2's transforms alone, until it is an ordinary tensor
        tensor = v2.ToPureTensor()(v2.Compose([v2.RandomHorizontalFlip(), v2.CenterCrop((90, 130))])(tensor))
    for name in names:
        if min(tensor.shape[1:]) < 60:
            break
        tensor = ON_TENSORS[name](tensor, a, b)
    size = (tensor.shape[2], tensor.shape[1])
    warped = check_frame(frame_of(tensor), size, "people.png").warp_labels(people_labels())
    middle, most = tensor.sort(0).values[1:]
    # What was padded is nobody, but grey where colours changed after it, which is the colour of no label.
    where = most - middle > 0.02 if "colours" in names else torch.ones_like(most, dtype=torch.bool)
    assert agreement(warped[0][where], labels_of(tensor)[0][where]) > 0.93
    assert frame_of(tensor).source == str(path)


def test_values_gradients_and_types_are_those_of_ordinary_tensors(picture):
    """The subclass changes no number, and ends where a batch begins."""
    plain = F.to_tensor(Image.open(picture[0]).convert("RGB")).as_subclass(torch.Tensor)
    assert type(plain) is torch.Tensor
    own = F.to_tensor(Image.open(picture[0]).convert("RGB"))
    for change in (*ON_TENSORS.values(), lambda x, a, b: torch.nn.functional.conv2d(x[None], torch.ones(2, 3, 3, 3))):
        torch.manual_seed(0)
        expected = change(plain, 0.3, 0.6)
        torch.manual_seed(0)
        assert torch.equal(change(own, 0.3, 0.6).as_subclass(torch.Tensor), expected)
    batch = torch.utils.data.default_collate([{"pixel_values": own}, {"pixel_values": own}])["pixel_values"]
    for ended in (batch, torch.stack([own]), torch.cat([own[None], own[None]]), own.mean(), own.shape):
        assert not isinstance(ended, FollowedTensor)
    assert isinstance(own.numpy(), np.ndarray)


def test_a_tensor_keeps_its_frame_through_worker_processes_and_pickles(picture):
    own = F.hflip(F.to_tensor(Image.open(picture[0]).convert("RGB")))
    for again in (pickle.loads(pickle.dumps(own)), copy.deepcopy(own), own.data):
        assert frame_of(again) == frame_of(own)
        assert torch.equal(again, own)
    loader = torch.utils.data.DataLoader([own, own], batch_size=2, num_workers=1, collate_fn=list)
    ((one, _),) = list(loader)
    assert torch.equal(one, own)


def test_a_size_that_changed_unseen_is_refused(picture):
    image = Image.open(picture[0]).convert("RGB")
    with pytest.raises(DataError, match="the last step that was followed left it 140x96"):
        check_frame(frame_of(image), (64, 64), "people.png")


def test_a_turned_picture_is_marked(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as image:
        assert frame_of(image).orientation == 6
        assert frame_of(ImageOps.exif_transpose(image)).orientation == 6


def test_nothing_is_drawn_and_pictures_stay_the_same(picture):
    pipeline = transforms.Compose(
        [transforms.Resize(60), transforms.RandomCrop(48), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    )
    image = Image.open(picture[0]).convert("RGB")
    torch.manual_seed(0)
    random.seed(0)
    pipeline(image)
    followed = torch.get_rng_state()
    plain = Image.new("RGB", image.size)
    plain.paste(image)  # has no frame
    torch.manual_seed(0)
    unfollowed = pipeline(plain)
    assert torch.equal(followed, torch.get_rng_state())
    torch.manual_seed(0)
    assert torch.equal(pipeline(image), unfollowed)
    assert frame_of(unfollowed) is None


def test_installing_twice_wraps_once():
    opened = PIL.Image.open
    ledger.install()
    assert PIL.Image.open is opened


affines = st.tuples(*[st.floats(-3, 3) for _ in range(6)]).filter(lambda m: abs(m[0] * m[4] - m[1] * m[3]) > 0.1)


@given(affines, affines)
@settings(deadline=None)
def test_affine_maps_compose_and_invert(one, other):
    def apply(m, x, y):
        return m[0] * x + m[1] * y + m[2], m[3] * x + m[4] * y + m[5]

    assert apply(compose(one, other), 2, 5) == pytest.approx(apply(one, *apply(other, 2, 5)), abs=1e-6)
    assert compose(one, invert(one)) == pytest.approx(IDENTITY, abs=1e-6)


@pytest.mark.parametrize("method", list(Image.Transpose))
def test_transpositions_are_pillows(method):
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    affine, size = transposition(method, image.size)
    frame = Frame("", image.size, size, affine)
    own = frame.warp_labels(torch.from_numpy(np.array(image))[None])
    assert torch.equal(own[0], torch.from_numpy(np.array(image.transpose(method))))


def test_padding_shows_nobody_though_its_source_goes_on_there(picture):
    image = Image.open(picture[0]).convert("RGB").crop((0, 0, 100, 96)).crop((0, 0, 140, 96))
    frame = check_frame(frame_of(image), (140, 96), "people.png")
    warped = frame.warp_labels(picture[1])
    assert torch.equal(warped[..., :100], picture[1][..., :100])
    assert not warped[..., 100:].any()
    assert frame.warp_boxes(torch.tensor([[84.0, 8.0, 130.0, 50.0]])).tolist() == []
    assert frame.warp_boxes(torch.tensor([[84.0, 8.0, 110.0, 50.0]])).tolist() == [[84.0, 8.0, 100.0, 50.0]]


def mirrored_through(view):
    def change(image):
        tensor = F.to_tensor(image)
        part = view(tensor)
        part.copy_(part.flip(-1))
        return tensor

    return change


def whole_from_elsewhere(image):
    tensor = F.to_tensor(image)
    tensor[:] = plain_mirror(image)
    return tensor


def other_data(image):
    tensor = F.to_tensor(image)
    tensor.data = plain_mirror(image)
    return tensor


def out_of_selection(image):
    tensor = F.to_tensor(image).permute(1, 2, 0).contiguous()
    torch.index_select(tensor.clone(), 1, torch.arange(139, -1, -1), out=tensor)
    return tensor.permute(2, 0, 1)


def plain_mirror(image):
    return F.to_tensor(image).as_subclass(torch.Tensor).flip(-1)


@pytest.mark.parametrize(
    "spoil",
    [
        mirrored_through(lambda t: t[:]),
        mirrored_through(lambda t: t.chunk(2, dim=2)[0]),
        mirrored_through(lambda t: t.detach()),
        mirrored_through(lambda t: t.data),
        mirrored_through(lambda t: next(iter(t))),
        mirrored_through(lambda t: t.permute(1, 2, 0).permute(2, 0, 1)),
        mirrored_through(lambda t: torch.from_numpy(t.numpy())),
        whole_from_elsewhere,
        other_data,
        out_of_selection,
        lambda image: plain_mirror(image).to(F.to_tensor(image)),
        lambda image: plain_mirror(image).type_as(F.to_tensor(image)),
        lambda image: torch.where(F.to_tensor(image) > 0.5, plain_mirror(image), 0.0),
    ],
)
def test_pixels_that_were_moved_unseen_are_nobodys(picture, spoil):
    spoilt = spoil(Image.open(picture[0]).convert("RGB"))
    with pytest.raises(DataError, match="not known|cannot be followed"):
        check_frame(frame_of(spoilt), (140, 96), "people.png")


def test_noise_comparisons_and_keywords_keep_the_frame(picture):
    tensor = F.to_tensor(Image.open(picture[0]).convert("RGB"))
    before = frame_of(tensor)
    noisy = (tensor + 0.1 * torch.randn_like(tensor)) * (tensor >= 0)
    noisy -= torch.zeros_like(noisy)
    for channel in noisy:
        channel.sub_(0.5).div_(0.5)
    assert frame_of(noisy) == before
    assert noisy.add_(1) is noisy
    turned = torch.transpose(input=torch.permute(input=tensor, dims=(0, 2, 1)), dim0=1, dim1=2)
    assert (frame_of(turned).affine, frame_of(turned).lost) == (before.affine, "")
    last = tensor.permute(1, 2, 0).contiguous()
    assert torch.equal(last[None].as_strided(last.shape, last.stride()), last)
    copied = tensor.clone()
    tensor[:, :, :30].copy_(tensor[:, :, 30:60].clone())
    assert frame_of(copied) == before
    assert frame_of(tensor).lost


def test_v2_may_make_several_of_a_picture(picture):
    image = v2.ToImage()(Image.open(picture[0]).convert("RGB"))
    parts = v2.FiveCrop(24)(image)
    assert [tuple(part.shape) for part in parts] == [(3, 24, 24)] * 5
