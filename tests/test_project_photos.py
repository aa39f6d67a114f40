"""What is seen of a handful of photographs: real faces, real copies, two people who are told apart."""

import itertools

import pytest
from PIL import Image, ImageFilter
from weights_entries import needs_weights

from mldm_plugin.errors import DataError
from mldm_plugin.project.photos import (
    WEIGHTS,
    Photo,
    _mark_copies,
    are_copies,
    left_out,
    look_at,
    remarks,
    thumb_of,
)

unseen = pytest.importorskip("mldm_plugin.people_mini.unseen")


def portraits(person, count):
    pytest.importorskip("openpeople")
    return [photo.picture for photo in unseen.photos_of(person, unseen.LEARNT[:count])]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Four photographs of one person, one of them twice and one blurred, two of another, and a broken file."""
    folder = tmp_path_factory.mktemp("photos")
    for number, picture in enumerate(portraits("P009", 5)):
        picture = picture.filter(ImageFilter.GaussianBlur(3)) if number == 4 else picture
        picture.save(folder / f"imara{number}.png")
    portraits("P009", 1)[0].resize((300, 300)).save(folder / "imara0_small.jpg", quality=60)
    for number, picture in enumerate(portraits("P008", 2)):
        picture.save(folder / f"helkar{number}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return {photo.name: photo for photo in look_at(folder)}


@needs_weights(*WEIGHTS)
def test_people_are_told_apart_and_the_most_frequent_comes_first(seen):
    assert {seen[f"imara{k}.png"].people[0] for k in range(4)} == {0}
    assert {seen[f"helkar{k}.png"].people[0] for k in range(2)} == {1}


@needs_weights(*WEIGHTS)
def test_what_should_not_be_learnt_is_left_out_with_its_reason(seen):
    out = left_out(list(seen.values()))
    assert set(out) == {"broken.jpg", "imara0.png", "helkar0.png", "helkar1.png"}
    assert out["imara0.png"] == "the same picture as imara0_small.jpg", "the larger one is kept"
    assert "most photographs is not in it" in out["helkar0.png"]


@needs_weights(*WEIGHTS)
def test_a_blurred_face_and_a_small_picture_are_noticed(seen):
    notes = list(remarks(list(seen.values()), 512))
    assert [note.partition(":")[0] for note in notes if "less detail" in note] == ["imara4.png"]
    [enlarged] = [note for note in notes if "enlarged" in note]
    assert enlarged.startswith("smaller than 512 px, and will be enlarged: helkar0.png, helkar1.png, imara0.png, ")
    assert not any("small" in note for note in remarks(list(seen.values()), 128))


@pytest.mark.parametrize("wide", [1, 3])
def test_a_copy_is_found_and_expressions_of_one_sheet_are_none(wide):
    """Also where the person is a small part of a frame that is the same each time, as from a tripod."""
    pictures = [framed(picture, wide) for picture in portraits("P009", 10)]
    thumbs = [thumb_of(picture) for picture in pictures]
    assert not any(are_copies(one, other) for one, other in itertools.combinations(thumbs, 2))
    for picture, thumb in zip(pictures[:3], thumbs, strict=False):
        for copy in (picture.resize((97 * wide, 97)), picture.convert("L").convert("RGB"), picture.resize((400, 400))):
            assert are_copies(thumb_of(copy), thumb)


def framed(picture, wide):
    frame = Image.new("RGB", (picture.width * wide, picture.height), picture.getpixel((2, 2)))
    frame.paste(picture, (picture.width * (wide - 1) // 2, 0))
    return frame


def test_the_largest_of_copies_is_kept(tmp_path):
    [picture] = portraits("P009", 1)
    photos = [Photo("a_small.jpg", (100, 100), thumb=thumb_of(picture.resize((100, 100)))), Photo("b.jpg", (256, 256))]
    photos[1].thumb = thumb_of(picture)
    _mark_copies(photos)
    assert [photo.like for photo in photos] == ["b.jpg", None]


def test_small_faces_and_other_people_are_noticed():
    photos = [
        Photo("far.jpg", (2000, 1000), faces=[50.0], people=[0], detail=0.1),
        Photo("two.jpg", (1000, 1000), faces=[400.0, 300.0], people=[0, 1], detail=0.1),
        Photo("back.jpg", (600, 600)),
    ]
    assert left_out(photos) == {}
    notes = "\n".join(remarks(photos, 512))
    assert "far.jpg: the face is 26 pixels wide at 512 px" in notes
    assert "back.jpg: no face is found" in notes
    assert "1 other person is in 1 of the photographs" in notes
    assert "two.jpg" not in notes


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no pictures"):
        look_at(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        look_at(tmp_path / "none")


def test_pictures_of_flat_colour_have_a_thumb():
    assert not thumb_of(Image.new("RGB", (8, 8), "red")).any()
