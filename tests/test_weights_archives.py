"""One file is taken out of an archive; an archive that is hostile or damaged is refused, and nothing of it stays."""

import bz2
import gzip
import io
import tarfile
import zipfile

import pytest
from weights_entries import tar_of, zip_of

from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual.weights.archives import LARGEST, take, take_bz2

CONTENT = b"some weights" * 100
NAME = "tiny-1.0/data/tiny.bin"


@pytest.fixture(params=["zip", "tar"])
def kind(request):
    return request.param


def archive_of(tmp_path, kind, files):
    (tmp_path / "in").mkdir(exist_ok=True)
    return {"zip": zip_of, "tar": tar_of}[kind](tmp_path / "in" / f"a.{kind}", files)


def take_one(tmp_path, path, kind, name=NAME, size=1200):
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    take(path, {name: (out / "taken", size)}, zipped=kind == "zip")
    return out / "taken"


def test_members_are_taken(tmp_path, kind):
    path = archive_of(tmp_path, kind, {"tiny-1.0/setup.py": b"raise", NAME: CONTENT, "tiny-1.0/other": b"o"})
    assert take_one(tmp_path, path, kind).read_bytes() == CONTENT
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["taken"]
    first, second = tmp_path / "first", tmp_path / "second"
    take(path, {"tiny-1.0/other": (first, None), NAME: (second, None)}, zipped=kind == "zip")
    assert (first.read_bytes(), second.read_bytes()) == (b"o", CONTENT)


@pytest.mark.parametrize(
    "name", ["../escaped", "a/../../escaped", "/tmp/escaped", "..\\escaped", "C:\\escaped", "C:/escaped"]
)
@pytest.mark.parametrize("first", [True, False])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, kind, name, first):
    files = {NAME: CONTENT}
    path = archive_of(tmp_path, kind, {name: b"out", **files} if first else {**files, name: b"out"})
    with pytest.raises(WeightsError, match="a path that leaves its folder") as caught:
        take_one(tmp_path, path, kind)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.parent.rglob("escaped"))


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"other": CONTENT}, f"has no {NAME}"),
        ({NAME: CONTENT * 99}, "has 118800 bytes, expected 1200"),
        ({NAME: CONTENT[:-1]}, "has 1199 bytes, expected 1200"),
    ],
)
def test_another_member_is_refused(tmp_path, kind, files, fault):
    with pytest.raises(WeightsError, match=fault):
        take_one(tmp_path, archive_of(tmp_path, kind, files), kind)


def test_a_link_is_no_file(tmp_path):
    path = tmp_path / "a.tar"
    (tmp_path / "secret").write_text("secret")
    for link in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        with tarfile.open(path, "w:gz") as archive:
            info = tarfile.TarInfo(NAME)
            info.type, info.linkname = link, str(tmp_path / "secret")
            archive.addfile(info)
        with pytest.raises(WeightsError, match="no file of its own"):
            take_one(tmp_path, path, "tar", size=None)


def test_a_header_of_ten_gigabytes_is_refused(tmp_path):
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo(NAME)
    info.size = 10 * 2**30
    path.write_bytes(gzip.compress(info.tobuf() + CONTENT))
    with pytest.raises(WeightsError, match=f"claims {10 * 2**30} bytes, expected at most {LARGEST}"):
        take_one(tmp_path, path, "tar", size=None)
    path = zip_of(tmp_path / "a.zip", {NAME: CONTENT})
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02") + 24  # the size in the central directory
    path.write_bytes(content[:at] + (0xF0000000).to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(WeightsError, match="claims 4026531840 bytes"):
        take_one(tmp_path, path, "zip", size=None)


def test_more_than_the_header_claims_is_never_unpacked(tmp_path):
    """A zip whose directory says 1200 bytes while the stream has 120 000."""
    path = zip_of(tmp_path / "a.zip", {NAME: CONTENT * 100})
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 24
    content[at : at + 4] = len(CONTENT).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(WeightsError):
        take_one(tmp_path, path, "zip")
    assert (tmp_path / "out" / "taken").stat().st_size <= len(CONTENT)


def test_damage_is_told_in_one_line(tmp_path, kind):
    whole = archive_of(tmp_path, kind, {NAME: CONTENT, "more": bytes(range(256)) * 50}).read_bytes()
    path = tmp_path / f"damaged.{kind}"
    at = {"zip": 58, "tar": 100}[kind]  # inside what is compressed
    for damaged in (b"", b"<html>sign in</html>", whole[: len(whole) // 2], whole[:at] + b"\0" * 4 + whole[at + 4 :]):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError) as caught:
            take_one(tmp_path, path, kind)
        assert "\n" not in str(caught.value)


def test_an_encrypted_member_is_refused(tmp_path):
    content = bytearray(zip_of(tmp_path / "a.zip", {NAME: CONTENT}).read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(WeightsError, match="no whole archive.*encrypted"):
        take_one(tmp_path, tmp_path / "a.zip", "zip")


def test_a_stored_zip_is_read_too(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(NAME, CONTENT)
    (tmp_path / "a.whl").write_bytes(stream.getvalue())
    assert take_one(tmp_path, tmp_path / "a.whl", "zip").read_bytes() == CONTENT


def test_bzip2(tmp_path):
    packed = tmp_path / "a.bz2"
    packed.write_bytes(bz2.compress(CONTENT))
    for size in (None, len(CONTENT)):
        take_bz2(packed, tmp_path / "out", size)
        assert (tmp_path / "out").read_bytes() == CONTENT
    with pytest.raises(WeightsError, match="more than 1199 bytes"):
        take_bz2(packed, tmp_path / "out", 1199)
    with pytest.raises(WeightsError, match="ends after 1200 of 1201 bytes"):
        take_bz2(packed, tmp_path / "out", 1201)
    packed.write_bytes(bz2.compress(CONTENT)[:-9])
    with pytest.raises(WeightsError, match="no whole bzip2 file"):
        take_bz2(packed, tmp_path / "out", len(CONTENT))
