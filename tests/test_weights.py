"""Weights are found, fetched, checked and read; a file from the internet runs no code."""

import dataclasses
import hashlib
import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from email.message import Message

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual import weights
from mldm_plugin.perceptual.weights import (
    WEIGHT_FILES,
    WeightFile,
    cache_folder,
    fetch,
    fill,
    load_state_dict,
    locate,
)

CONTENT = b"some weights" * 100


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a hub folder of nobody's."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MLDM_WEIGHTS", str(folder))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return folder


@pytest.fixture
def entry(cache, tmp_path, monkeypatch):
    """An entry `tiny` in the table, whose address is a file on this disk."""
    source = tmp_path / "source.bin"
    source.write_bytes(CONTENT)
    file = WeightFile(
        name="tiny",
        file_name="tiny.bin",
        url=source.as_uri(),
        licence="none",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
    )
    monkeypatch.setitem(WEIGHT_FILES, "tiny", file)
    return file


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def put(monkeypatch, **changes):
    file = dataclasses.replace(WEIGHT_FILES["tiny"], **changes)
    monkeypatch.setitem(WEIGHT_FILES, "tiny", file)
    return file


def answer_with(monkeypatch, body, length=None, content_type="application/octet-stream"):
    """Let every download answer with `body`."""
    reply = io.BytesIO(body)
    reply.headers = Message()
    reply.headers["Content-Type"] = content_type
    if length is not None:
        reply.headers["Content-Length"] = str(length)
    monkeypatch.setattr("urllib.request.urlopen", lambda request, timeout: reply)
    return reply


def test_the_table_is_complete_and_its_import_is_cheap():
    assert set(WEIGHT_FILES) == {"vgg16", "vggface2_resnet50", "vggface2_inception", "scrfd_10g", "mask_rcnn"}
    for name, file in WEIGHT_FILES.items():
        assert file.name == name
        assert file.url.startswith("https://")
        assert file.licence
        assert file.sha256 is None or len(file.sha256) == 64
        assert file.member is None or file.size is not None  # the size bounds what is unpacked
    assert WEIGHT_FILES["vgg16"].sha256.startswith("397923af")  # torchvision's file names end in it
    assert len({f.file_name for f in WEIGHT_FILES.values()}) == len(WEIGHT_FILES)
    code = "import sys, mldm_plugin.perceptual.weights; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_torchvisions_files_are_those_that_it_names():
    from torchvision.models import VGG16_Weights
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_V2_Weights

    assert WEIGHT_FILES["vgg16"].url == VGG16_Weights.IMAGENET1K_V1.url
    assert WEIGHT_FILES["mask_rcnn"].url == MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1.url
    assert WEIGHT_FILES["mask_rcnn"].sha256.startswith("73cbd019")


@pytest.mark.parametrize("call", [locate, fetch, load_state_dict])
def test_an_unknown_name_gets_the_nearest(cache, call):
    with pytest.raises(WeightsError, match=r"'vggface_resnet50'.*'vggface2_resnet50'"):
        call("vggface_resnet50")


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("MLDM_WEIGHTS", raising=False)
    assert cache_folder() == tmp_path / "mldm"
    monkeypatch.setenv("MLDM_WEIGHTS", "~/faces")
    assert cache_folder().is_absolute()
    assert cache_folder().name == "faces"


def test_locate_also_finds_torchvisions_download(cache, tmp_path):
    assert locate("vgg16") is None
    theirs = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"")
    assert locate("vgg16") == theirs
    ours = cache / theirs.name
    ours.parent.mkdir()
    ours.write_bytes(b"")
    assert locate("vgg16") == ours


def test_locate_also_finds_what_the_package_of_the_file_keeps(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("scrfd_10g") is None
    theirs = tmp_path / ".insightface" / "models" / "buffalo_l" / "det_10g.onnx"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"not the network")
    assert locate("scrfd_10g") == theirs
    with pytest.raises(WeightsError, match=r"buffalo_l/det_10g\.onnx is not the file.*15 bytes, expected 16923827"):
        fetch("scrfd_10g")


def test_fetch_downloads_once(entry, cache, tmp_path):
    path = fetch("tiny")
    assert path == cache / "tiny.bin"
    assert path.read_bytes() == CONTENT
    assert names_in(cache) == ["tiny.bin"]
    (tmp_path / "source.bin").unlink()
    assert fetch("tiny") == path


def test_without_a_network_the_error_names_file_address_and_place(entry, cache, tmp_path):
    (tmp_path / "source.bin").unlink()
    with pytest.raises(WeightsError) as caught:
        fetch("tiny")
    message = str(caught.value)
    assert "\n" not in message
    for part in ("tiny.bin", entry.url, str(cache / "tiny.bin"), "MLDM_WEIGHTS", "weights: random"):
        assert part in message
    assert names_in(cache) == []


def test_the_page_for_a_browser_is_named_where_there_is_one(entry, cache, tmp_path, monkeypatch):
    put(monkeypatch, page="https://example.org/view")
    (tmp_path / "source.bin").unlink()
    with pytest.raises(WeightsError, match=r"Download https://example\.org/view elsewhere"):
        fetch("tiny")


def archive_of(**members):
    """A zip archive; an underscore in a name stands for its dot."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return stream.getvalue()


def test_one_member_of_an_archive_is_taken(entry, cache, monkeypatch, tmp_path):
    put(monkeypatch, member="inner.bin")
    stream = io.BytesIO(archive_of(readme_txt=b"hello", inner_bin=CONTENT))
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("../../escaped", b"out")
    answer_with(monkeypatch, stream.getvalue())
    path = fetch("tiny")
    assert path == cache / "tiny.bin"
    assert path.read_bytes() == CONTENT
    assert names_in(cache) == ["tiny.bin"]
    assert {p.name for p in tmp_path.iterdir()} == {"cache", "source.bin"}


DEFLATED = archive_of(inner_bin=CONTENT)
ENCRYPTED = bytearray(DEFLATED)
ENCRYPTED[6] |= 1
ENCRYPTED[DEFLATED.index(b"PK\x01\x02") + 8] |= 1


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (archive_of(other_bin=CONTENT), "the archive has no inner.bin"),
        (archive_of(inner_bin=CONTENT * 99), "has 118800 bytes, expected 1200"),
        (archive_of(inner_bin=CONTENT[:-5] + b"wrong"), "sha256 is"),
        (DEFLATED[:40] + b"\0\0\0\0" + DEFLATED[44:], "no whole zip archive"),
        (bytes(ENCRYPTED), "no whole zip archive.*encrypted"),
        (b"<html>sign in</html>", "no whole zip archive"),
    ],
)
def test_a_bad_archive_is_not_kept(entry, cache, monkeypatch, body, fault):
    put(monkeypatch, member="inner.bin", instead="there is another way")
    answer_with(monkeypatch, body)
    with pytest.raises(WeightsError, match=fault) as caught:
        fetch("tiny")
    assert str(caught.value).endswith(
        f"elsewhere and save its member inner.bin as {cache / 'tiny.bin'} (MLDM_WEIGHTS names another folder); "
        "there is another way."
    )
    assert names_in(cache) == []


@pytest.mark.parametrize(
    ("body", "length", "fault"),
    [
        (CONTENT[:-5], len(CONTENT), "broke after 1195 of 1200 bytes"),
        (CONTENT[:-5], None, "1195 bytes, expected 1200"),
        (CONTENT[:-5] + b"wrong", None, "sha256 is"),
        (b"", None, "empty"),
        (b"\n<!DOCTYPE html><title>Virus scan warning", None, "web page"),
    ],
)
def test_a_bad_download_is_not_kept(entry, cache, monkeypatch, body, length, fault):
    answer_with(monkeypatch, body, length)
    with pytest.raises(WeightsError, match=fault):
        fetch("tiny")
    assert names_in(cache) == []


def test_a_web_page_is_refused_even_where_no_hash_is_known(entry, cache, monkeypatch):
    put(monkeypatch, sha256=None, size=None)
    answer_with(monkeypatch, b"<html>sign in</html>")
    with pytest.raises(WeightsError, match="click in a browser"):
        fetch("tiny")
    assert names_in(cache) == []


def test_an_interrupted_download_leaves_nothing(entry, cache, monkeypatch):
    reply = answer_with(monkeypatch, CONTENT)

    def interrupt(count):
        raise KeyboardInterrupt

    reply.read = interrupt
    with pytest.raises(KeyboardInterrupt):
        fetch("tiny")
    assert names_in(cache) == []


def test_a_folder_that_cannot_be_made(entry, tmp_path, monkeypatch):
    (tmp_path / "plain file").write_text("")
    monkeypatch.setenv("MLDM_WEIGHTS", str(tmp_path / "plain file"))
    with pytest.raises(WeightsError, match="plain file"):
        fetch("tiny")


def test_a_bad_file_put_there_by_hand_is_named_and_left_alone(entry, cache):
    cache.mkdir()
    (cache / "tiny.bin").write_bytes(CONTENT + b"!")
    with pytest.raises(WeightsError, match=r"tiny\.bin.*1201 bytes, expected 1200.*Delete it"):
        fetch("tiny")
    assert (cache / "tiny.bin").exists()


# Reading


def place(monkeypatch, cache, name):
    """An entry `tiny` of file name `name`, unchecked; returns where its file is looked for."""
    cache.mkdir(exist_ok=True)
    monkeypatch.setitem(WEIGHT_FILES, "tiny", WeightFile("tiny", name, "file:///nowhere", "none"))
    return cache / name


TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.0, -1.0])}


def test_reads_pth_and_safetensors(cache, monkeypatch):
    torch.save(TENSORS, place(monkeypatch, cache, "tiny.pth"))
    torch.testing.assert_close(load_state_dict("tiny"), TENSORS)
    save_file(TENSORS, place(monkeypatch, cache, "tiny.safetensors"))
    torch.testing.assert_close(load_state_dict("tiny"), TENSORS)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_reads_pickles_of_numpy_arrays(cache, monkeypatch, protocol):
    arrays = OrderedDict((k, v.numpy()) for k, v in TENSORS.items())
    arrays["big endian"] = np.array([1.5, 2.5], dtype=">f4")
    arrays["scalar"] = np.float32(3)
    place(monkeypatch, cache, "tiny.pkl").write_bytes(pickle.dumps(arrays, protocol))
    read = load_state_dict("tiny")
    assert list(read) == list(arrays)
    torch.testing.assert_close({k: read[k] for k in TENSORS}, TENSORS)
    assert read["big endian"].tolist() == [1.5, 2.5]
    assert read["scalar"].item() == 3


def test_reads_arrays_of_every_shape_and_kind_of_number(cache, monkeypatch):
    arrays = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": np.zeros((0, 3), np.float32),
        "point": np.array(7, np.int64),
        "half": np.ones(2, np.float16),
        "truth": np.array([True, False]),
    }
    place(monkeypatch, cache, "tiny.pkl").write_bytes(pickle.dumps(arrays, 4))
    for key, tensor in load_state_dict("tiny").items():
        np.testing.assert_array_equal(tensor.numpy(), arrays[key], strict=True)


def test_reads_an_ordered_dict_of_pairs(cache, monkeypatch):
    pickled = pickle.dumps([["a", np.zeros(2)]], 0)
    pairs = b"ccollections\nOrderedDict\n(" + pickled[:-1] + b"tR."
    place(monkeypatch, cache, "tiny.pkl").write_bytes(pairs)
    assert list(load_state_dict("tiny")) == ["a"]


def test_reads_a_pickle_that_python_2_wrote(cache, monkeypatch):
    data = np.array([[1.0, -2.0]], dtype="<f4").tobytes()
    python_2 = (
        b"\x80\x02}U\x06weightcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01K\x02\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89U" + bytes([len(data)]) + data + b"tbs."
    )
    place(monkeypatch, cache, "tiny.pkl").write_bytes(python_2)
    assert load_state_dict("tiny")["weight"].tolist() == [[1.0, -2.0]]


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_a_file_runs_no_code(cache, monkeypatch, tmp_path, suffix):
    path = place(monkeypatch, cache, "tiny" + suffix)
    content = {"weight": np.zeros(2), "evil": Evil(tmp_path / "was run")}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=r"tiny.*(mkdir|cannot be read)"):
        load_state_dict("tiny")
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (pickle.dumps(eval, 2), r"builtin.*\.eval"),
        (b"cos\nsystem\n(S'true'\ntR.", r"os\.system"),
        (b"cnumpy.core.multiarray\nfrombuffer\n.", r"multiarray\.frombuffer"),
        (b"c_codecs\nencode\n(Vx\nVrot13\ntR.", "codec 'rot13'"),
        (pickle.dumps([1, 2], 2), "a list, expected a dict"),
        (pickle.dumps({"a": "text"}, 2), "'a' is no array"),
        (pickle.dumps({"a": np.array([None, {}], dtype=object)}, 2), "array of kind 'O8'"),
        (pickle.dumps({"a": np.zeros(2, dtype=complex)}, 2), "array of kind 'c16'"),
        (pickle.dumps({"a": np.zeros(2, dtype=[("x", "f4")])}, 2), "array of kind 'V4'"),
        # An object array over raw bytes: whoever touches its element ends the interpreter.
        (b"(dVa\ncnumpy\nndarray\n((I1\ntVO\nVAAAAAAAA\ntRs.", r"numpy\.ndarray over raw bytes"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "cannot be read"),
        (b"(dVa\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntVb\ntRs.", "only numpy.ndarray is"),
        (b"(dVa\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntRs.", "'a' is no array"),
        (b"(dVa\ncnumpy.core.multiarray\nscalar\n(VO\nVAAAAAAAA\ntRs.", "array of kind 'O'"),
        (b"ccollections\nOrderedDict\n(Vab\ntR.", "an OrderedDict of a str"),
        (b"cnumpy\ndtype\n(dVx\nI1\nsb.", "it changes what"),
        (pickle.dumps({"a": np.zeros(9)}, 2)[:-20], "cannot be read"),
        (b"not a pickle", "cannot be read"),
    ],
)
def test_other_pickles_are_refused(cache, monkeypatch, pickled, reason):
    place(monkeypatch, cache, "tiny.pkl").write_bytes(pickled)
    with pytest.raises(WeightsError, match=reason) as caught:
        load_state_dict("tiny")
    assert "Delete it" in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_named(cache, monkeypatch, suffix):
    place(monkeypatch, cache, "tiny" + suffix).write_bytes(b"PK\x03\x04 no")
    with pytest.raises(WeightsError, match=rf"tiny\{suffix} cannot be read.*Delete it"):
        load_state_dict("tiny")


def test_fill_puts_all_weights_in():
    network = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    state = {k: v + 1 for k, v in network.state_dict().items() if "num_batches" not in k}
    assert fill(network, {**state, "fc.weight": torch.zeros(9)}, "tiny", ignore=["fc."]) is network
    for key, value in state.items():
        assert torch.equal(network.state_dict()[key], value)


def test_fill_names_all_that_does_not_fit_and_changes_nothing():
    network = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    state = {"0.weight": torch.ones(1, 2), "0.bias": torch.ones(7), "head": torch.ones(1)}
    with pytest.raises(WeightsError) as caught:
        fill(network, state, "tiny")
    message = str(caught.value)
    assert "missing: 1.weight, 1.bias" in message
    assert "unexpected: head" in message
    assert "0.bias (7,) instead of (1,)" in message
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_the_progress_bar_can_be_hidden(entry, capsys):
    weights.fetch("tiny", progress=False)
    assert capsys.readouterr().err == ""
