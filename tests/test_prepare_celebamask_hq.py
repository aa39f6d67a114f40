"""CelebAMask-HQ: its files become sources, part masks become a person, a face and a label map of parts."""

import itertools
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from mldm_plugin.conditions.celeba import ATTRIBUTES, PARTS
from mldm_plugin.errors import DataError
from mldm_plugin.prepare.celeba_captions import caption
from mldm_plugin.prepare.celebamask_hq import CelebAMaskHQ, read_parts, sources
from mldm_plugin.prepare.source import Face, RejectedError

# Where the drawn face has its parts, in its masks of 64x64: left, top, right, bottom, the last ones inside.
DRAWN = {
    "skin": (20, 16, 43, 47),
    "nose": (30, 28, 33, 35),
    "l_eye": (36, 26, 39, 27),
    "r_eye": (24, 26, 27, 27),
    "l_brow": (35, 22, 40, 23),
    "r_brow": (23, 22, 28, 23),
    "l_ear": (44, 26, 46, 33),
    "u_lip": (28, 39, 35, 40),
    "l_lip": (28, 41, 35, 42),
    "hair": (16, 4, 47, 19),
    "ear_r": (44, 34, 45, 37),
    "neck": (26, 48, 37, 55),
    "cloth": (8, 52, 55, 63),
}
WAVY = {"Young", "Black_Hair", "Wavy_Hair", "Smiling", "Wearing_Lipstick", "Wearing_Earrings", "No_Beard"}


def mask(box, mode, size=64):
    """A part mask in a mode in which they come: white on black, or a palette with a white."""
    drawn = Image.new("L", (size, size))
    ImageDraw.Draw(drawn).rectangle(box, fill=255)
    if mode == "P":
        palette = Image.fromarray((np.asarray(drawn) > 0).astype(np.uint8), "P")
        palette.putpalette([0, 0, 0, 255, 255, 255])
        return palette
    return drawn.convert(mode)


def line(number, true):
    return f"{number}.jpg  " + " ".join("1" if name in true else "-1" for name in ATTRIBUTES)


def write(folder, numbers=(0, 1, 2), *, modes=("RGB", "L", "P", "1", "RGBA")):
    """A small data set of the layout, pictures of 128x128 and masks of 64x64."""
    (folder / "CelebA-HQ-img").mkdir(parents=True)
    (folder / "CelebAMask-HQ-mask-anno").mkdir()
    mode = itertools.cycle(modes)
    for number in numbers:
        Image.new("RGB", (128, 128), (200, 160, number % 256)).save(folder / "CelebA-HQ-img" / f"{number}.jpg")
        parts = folder / "CelebAMask-HQ-mask-anno" / str(number // 2000)
        parts.mkdir(exist_ok=True)
        for part, box in DRAWN.items():
            mask(box, next(mode)).save(parts / f"{number:05d}_{part}.png")
    lines = [str(len(numbers)), " ".join(ATTRIBUTES) + " ", *[line(number, WAVY) for number in numbers]]
    (folder / "CelebAMask-HQ-attribute-anno.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def data_set(tmp_path):
    return write(tmp_path / "CelebAMask-HQ")


class Shown:
    def __init__(self, path):
        with Image.open(path) as opened:
            self._picture = opened.convert("RGB")
        self.size = self._picture.size

    def rgb(self):
        return self._picture


def found(folder, number=0):
    source = next(s for s in sources(folder) if s.name == f"{number:05d}")
    return CelebAMaskHQ()(source, Shown(source.path))


# Sources


def test_sources_come_in_numeric_order_with_splits_captions_and_attributes(tmp_path):
    folder = write(tmp_path / "set", (10, 2, 24999, 25000, 100, 29999))
    listed = list(sources(folder))
    assert [s.name for s in listed] == ["00002", "00010", "00100", "24999", "25000", "29999"]
    assert [s.split for s in listed] == ["train"] * 4 + ["validation"] * 2
    first = listed[0]
    assert first.path == str(folder / "CelebA-HQ-img" / "2.jpg")
    assert first.text == "a young woman with black wavy hair, smiling, wearing lipstick and earrings"
    assert list(first.columns["attributes"]) == ATTRIBUTES
    assert {name for name, value in first.columns["attributes"].items() if value} == WAVY
    assert all(s.fault is None for s in listed)
    assert {s.text for s in sources(folder, caption="a face")} == {"a face"}


def test_the_split_of_latent_diffusion_is_taken_where_its_list_lies_there(tmp_path):
    folder = write(tmp_path / "set", (2, 10, 25000))
    (folder / "celebahqvalidation.txt").write_text("imgHQ00010.npy\nimgHQ12345.npy\n")
    assert [s.split for s in sources(folder)] == ["train", "validation", "train"]
    (folder / "celebahqvalidation.txt").write_text("imgHQ00010.npy\n084980.npy\n")
    with pytest.raises(DataError, match=r"validation\.txt, line 2: '084980\.npy', expected a name like imgHQ05953"):
        list(sources(folder))


def test_what_is_missing_is_listed_with_its_fault(data_set):
    (data_set / "CelebA-HQ-img" / "1.jpg").unlink()
    Image.new("RGB", (9, 9)).save(data_set / "CelebA-HQ-img" / "7.jpg")
    (data_set / "CelebA-HQ-img" / "00008.jpg").write_bytes(b"of another layout")
    faults = {s.name: s.fault for s in sources(data_set)}
    assert list(faults) == ["00000", "00001", "00002", "00007"]
    assert faults["00001"] == "is missing"
    assert faults["00007"] == "has no line in CelebAMask-HQ-attribute-anno.txt"
    assert faults["00000"] is faults["00002"] is None


@pytest.mark.parametrize("name", ["CelebA-HQ-img", "CelebAMask-HQ-mask-anno", "CelebAMask-HQ-attribute-anno.txt"])
def test_another_layout_is_refused(data_set, name):
    path = data_set / name
    path.unlink() if path.is_file() else shutil.rmtree(path)
    with pytest.raises(DataError, match=rf"is not CelebAMask-HQ: {name}/? is missing.*00000_skin\.png"):
        list(sources(data_set))


NAMES = " ".join(ATTRIBUTES)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "line 1: ''"),
        ("many\n", "line 1: 'many', expected the number"),
        ("1", "line 2: field 1 is the line's end, expected 5_o_Clock_Shadow"),
        (f"1\n{NAMES.replace('Bald', 'Balt')}\n", "line 2: field 5 is Balt, expected Bald"),
        (f"1\n{NAMES} Tall\n", "line 2: field 41 is Tall, expected the line's end"),
        (f"2\n{NAMES}\n{line(0, WAVY)}\n", "line 1 says 2 pictures, 1 lines follow"),
        (f"1\n{NAMES}\n{line(0, WAVY)} 1\n", "line 3: 41 values, expected 40"),
        (f"1\n{NAMES}\n{line(0, WAVY)}\n{line(0, WAVY)}\n", "line 4: 0.jpg has a line before"),
        (f"1\n{NAMES}\n\n{line('0000', WAVY)}\n", "line 4: field 1 is '0000.jpg'"),
        (f"1\n{NAMES}\n{line('../0', WAVY)}\n", r"line 3: field 1 is '\.\./0.jpg'"),
        (
            f"1\n{NAMES}\n{line(0, WAVY).replace('-1 -1 -1', '-1 0 -1', 1)}\n",
            r"field \d+ \(\w+\) is '0', expected 1 or",
        ),
    ],
)
def test_faults_of_the_attributes_are_named_by_line_and_field(data_set, content, fault):
    (data_set / "CelebAMask-HQ-attribute-anno.txt").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=f"attribute-anno.txt.*{fault}"):
        list(sources(data_set))


def test_a_file_that_is_no_text_is_named(data_set):
    (data_set / "CelebAMask-HQ-attribute-anno.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"attribute-anno\.txt cannot be read as text"):
        list(sources(data_set))


# People


def test_the_parts_are_numbered_as_the_authors_number_them():
    """g_mask.py of switchablenorms/CelebAMask-HQ, and the table in face_parsing/README.md."""
    assert len(PARTS) == 18
    assert [PARTS.index(part) + 1 for part in ("skin", "nose", "eye_g", "r_eye", "l_lip", "hair", "cloth")] == [
        1, 2, 3, 5, 12, 13, 18,
    ]  # fmt: skip


def test_parts_become_a_person_a_face_and_a_label_map(data_set):
    people = found(data_set)
    parts = people.columns["parts"]
    assert (parts.mode, parts.size) == ("L", (128, 128))
    labels = np.asarray(parts)
    for part, (left, top, right, bottom) in DRAWN.items():
        if part not in ("skin", "hair", "neck"):  # nothing is drawn over these
            middle = labels[top + bottom + 1, left + right + 1]
            assert middle == PARTS.index(part) + 1, part
    assert labels[2 * 17, 2 * 30] == PARTS.index("hair") + 1  # over the skin: it comes later
    assert labels[2 * 53, 2 * 30] == PARTS.index("cloth") + 1  # over the neck
    assert people.labels.dtype == np.uint8
    np.testing.assert_array_equal(people.labels, labels > 0)
    assert people.count == 1
    assert people.labels.sum() == 4 * (read_parts(data_set / "CelebA-HQ-img" / "0.jpg") > 0).sum()


def test_the_face_box_is_around_the_parts_of_the_face(data_set):
    """Skin from 20 to 43 and from below the hair, 20, to 47, in masks of half the size; the ear is not in it."""
    assert found(data_set).faces == [Face((40.0, 40.0, 88.0, 96.0))]


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA"])
def test_every_mode_of_a_mask_says_the_same(tmp_path, mode):
    one = write(tmp_path / "one", (0,), modes=(mode,))
    other = write(tmp_path / "other", (0,), modes=("RGB",))
    np.testing.assert_array_equal(found(one).labels, found(other).labels)


def test_a_picture_of_folder_fourteen(tmp_path):
    assert found(write(tmp_path / "set", (29999,)), 29999).labels.any()
    assert (tmp_path / "set" / "CelebAMask-HQ-mask-anno" / "14" / "29999_skin.png").is_file()


def test_a_person_whose_face_cannot_be_seen_has_none(data_set):
    folder = data_set / "CelebAMask-HQ-mask-anno" / "0"
    for path in folder.glob("00000_*.png"):
        if path.stem not in ("00000_hair", "00000_cloth"):
            path.unlink()
    people = found(data_set)
    assert people.labels.any()
    assert people.faces == []


def test_a_picture_without_masks_is_rejected(data_set):
    masks = data_set / "CelebAMask-HQ-mask-anno" / "0"
    for path in masks.glob("00001_*.png"):
        path.unlink()
    with pytest.raises(RejectedError, match=r"has no part masks, expected some like .*00001_skin\.png"):
        found(data_set, 1)
    for path in masks.glob("00002_*.png"):
        Image.new("L", (64, 64)).save(path)
    with pytest.raises(RejectedError, match="has no part masks"):
        found(data_set, 2)
    shutil.rmtree(masks)
    with pytest.raises(RejectedError, match="has no part masks"):
        found(data_set, 0)


def test_masks_that_do_not_fit_are_rejected(data_set):
    masks = data_set / "CelebAMask-HQ-mask-anno" / "0"
    Image.new("RGB", (128, 96)).save(data_set / "CelebA-HQ-img" / "0.jpg")
    with pytest.raises(RejectedError, match="is 128x96, its part masks are 64x64"):
        found(data_set, 0)
    mask((1, 1, 5, 5), "L", size=32).save(masks / "00001_hair.png")
    with pytest.raises(RejectedError, match=r"has a mask 00001_hair\.png of 32x32, others are 64x64"):
        found(data_set, 1)
    (masks / "00002_skin.png").write_bytes(b"no picture")
    with pytest.raises(RejectedError, match=r"has a mask 00002_skin\.png that cannot be read"):
        found(data_set, 2)


# Captions


@pytest.mark.parametrize(
    ("true", "text"),
    [
        ("Young", "a young woman"),
        ("Male", "an older man with a beard"),
        ("Male No_Beard", "an older man"),
        (
            "Male Bald Goatee Mustache Wearing_Necktie",
            "an older bald man with a goatee and a mustache, wearing a necktie",
        ),
        ("Goatee Young", "a young woman"),
        ("Brown_Hair Gray_Hair Straight_Hair", "an older woman with brown and gray straight hair"),
        ("Young Wavy_Hair Bangs Mouth_Slightly_Open", "a young woman with wavy hair and bangs, lips parted"),
        ("Young Smiling Mouth_Slightly_Open", "a young woman, smiling"),
        (
            "Young Blond_Hair Bangs Rosy_Cheeks Eyeglasses Heavy_Makeup Wearing_Earrings",
            "a young woman with blond hair, bangs and rosy cheeks, wearing glasses, heavy makeup and earrings",
        ),
        ("Attractive Chubby Big_Nose Blurry Young No_Beard", "a young woman"),
    ],
)
def test_captions(true, text):
    assert caption({name: name in true.split() for name in ATTRIBUTES}) == text


@given(st.sets(st.sampled_from(ATTRIBUTES)))
def test_any_attributes_make_a_plain_phrase(true):
    attributes = {name: name in true for name in ATTRIBUTES}
    text = caption(attributes)
    assert text == caption(dict(reversed(attributes.items())))
    assert text.startswith(("a young ", "an older "))
    assert "_" not in text
    assert "  " not in text
    assert " ," not in text
    assert text.strip(" ,.") == text
    assert ("man" in text.split(",")[0].split()) == ("Male" in true)
