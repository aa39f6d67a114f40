import io
import os
import sys

import numpy as np
import pytest
from odd_pictures import BAD, FINE, encoded, scene
from PIL import Image, ImageCms

from mldm_plugin.prepare.picture import Picture
from mldm_plugin.prepare.source import RejectedError


@pytest.mark.parametrize("name", FINE)
def test_a_picture_comes_out_as_it_looks(tmp_path, name):
    make, suffix = FINE[name]
    (tmp_path / name).write_bytes(make())
    picture = Picture(tmp_path / name)
    content, stored_suffix = picture.stored()
    assert stored_suffix == suffix
    with Image.open(io.BytesIO(content)) as stored:
        assert stored.mode in ("RGB", "L")
        assert stored.getexif().get(0x0112, 1) == 1
        assert stored.size == picture.size == picture.rgb().size
        seen = np.asarray(stored.convert("RGB")).astype(int)
    expected = scene(picture.size)
    if name in ("grey.jpg", "deep.png", "turned_deep.png"):
        expected = expected.convert("L").convert("RGB")
    difference = np.abs(seen - np.asarray(expected).astype(int))
    assert difference.mean() < 8  # JPEG, palettes and CMYK are lossy
    assert np.abs(np.asarray(picture.rgb()).astype(int) - seen).mean() < 2


@pytest.mark.parametrize("name", BAD)
def test_a_picture_that_cannot_be_used_is_rejected_with_the_reason(tmp_path, name):
    make, reason = BAD[name]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(RejectedError, match=reason):
        Picture(tmp_path / name).stored()


@pytest.mark.timeout(20)  # it would wait for somebody who writes into it
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(RejectedError, match="a pipe or a device"):
        Picture(tmp_path / "pipe.jpg")


@pytest.mark.parametrize("name", ["plain.jpg", "grey.jpg", "lossless.png", "web.webp", "misnamed.png", "wide.jpg"])
def test_what_trainers_read_alike_is_stored_byte_for_byte(tmp_path, name):
    content = FINE[name][0]()
    (tmp_path / name).write_bytes(content)
    assert Picture(tmp_path / name).stored()[0] == content


def test_a_truncated_picture_is_found_though_it_is_not_decoded_in_full(tmp_path):
    """From the last byte of its data on, every cut of the file is refused."""
    content = FINE["wide.jpg"][0]()
    for part in (0.3, 0.9, 0.99):
        (tmp_path / "cut.jpg").write_bytes(content[: int(len(content) * part)])
        with pytest.raises(RejectedError, match="cannot be read as a picture"):
            Picture(tmp_path / "cut.jpg").stored()


def test_transparency_lies_on_white(tmp_path):
    (tmp_path / "t.png").write_bytes(FINE["see_through.png"][0]())
    assert Picture(tmp_path / "t.png").rgb().getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_keep_their_greys(tmp_path):
    """Pillow alone would clip all of them to white."""
    (tmp_path / "d.png").write_bytes(FINE["deep.png"][0]())
    seen = Picture(tmp_path / "d.png").rgb().convert("L")
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(scene(mode="L")))


def test_a_second_picture_in_a_cameras_file_is_passed_over(tmp_path):
    scene().save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[scene()])
    with Image.open(tmp_path / "phone.jpg") as opened:
        assert opened.format == "MPO"
    content, suffix = Picture(tmp_path / "phone.jpg").stored()
    assert suffix == ".jpg"
    assert content == (tmp_path / "phone.jpg").read_bytes()


def pages():
    return encoded(scene(), "TIFF", save_all=True, append_images=[scene()])


@pytest.mark.parametrize("make", [BAD["moves.gif"][0], pages, *(FINE[n][0] for n in ("plain.jpg", "see_through.png"))])
def test_damage_of_any_kind_rejects_the_picture_and_nothing_else(tmp_path, make):
    """Pillow raises many things for a damaged file; none of them comes through."""
    whole, rng, rejected = make(), np.random.default_rng(0), 0
    path = tmp_path / "damaged"
    for _ in range(150):
        content = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, len(content), rng.integers(0, 6)):
            content[place] = rng.integers(0, 256)
        path.write_bytes(bytes(content))
        try:
            picture = Picture(path)
            picture.stored()
            assert picture.rgb().size == picture.size
        except RejectedError:
            rejected += 1
    assert rejected > 20


def test_a_profile_goes_with_the_colours_that_it_is_for(tmp_path):
    """One for print stays out of the RGB picture that is made of a CMYK one."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    scene(mode="CMYK").save(tmp_path / "print.tiff", icc_profile=profile)
    with Image.open(io.BytesIO(Picture(tmp_path / "print.tiff").stored()[0])) as stored:
        assert "icc_profile" not in stored.info


def test_a_photograph_of_an_iphone_says_what_reads_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    with pytest.raises(RejectedError, match="is HEIC, an iPhone's: pip install pillow-heif, or save it as JPEG"):
        Picture(tmp_path / "IMG_1.HEIC")


def test_a_photograph_of_an_iphone_is_read_where_pillow_heif_is(tmp_path):
    pytest.importorskip("pillow_heif").from_pillow(scene()).save(tmp_path / "IMG_1.HEIC", quality=95)
    picture = Picture(tmp_path / "IMG_1.HEIC")
    content, suffix = picture.stored()
    assert suffix == ".jpg"
    with Image.open(io.BytesIO(content)) as stored:
        seen = np.asarray(stored.convert("RGB")).astype(int)
    assert np.abs(seen - np.asarray(scene()).astype(int)).mean() < 8
