"""Thousands of damaged files for each reader: each is read or refused in one line, and none does anything else.

Two thousand in every run of the tests, for want of time; MLDM_MUTATIONS=10000 is what each reader has passed.
Networks of onnxruntime are not read by us: ten thousand damaged ones are refused before it sees them, in every run.
"""

import gzip
import hashlib
import io
import os
import pickle
import random
import resource
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save
from tflite_files import Sparse, tflite_file
from torch import Tensor
from weights_entries import CONTENT, TENSORS, dlib_file, graph_model, put

from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual.weights import WEIGHT_FILES, Address, Addresses, dlib_dat, readers, tensors
from mldm_plugin.perceptual.weights.archives import take, take_bz2
from mldm_plugin.perceptual.weights.readers import read_files
from mldm_plugin.prepare.faces import scrfd

MUTATIONS = int(os.environ.get("MLDM_MUTATIONS", "2000"))
MOST_MORE_MEMORY = 1 << 29  # bytes: no damaged header makes a reader ask for its ten gigabytes
# What Python reports before it does it; no reader has any business with these.
FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.mkdir", "os.remove", "os.rename"),
    *("os.rmdir", "os.symlink", "os.link", "os.chmod", "subprocess.Popen", "shutil.rmtree", "shutil.move"),
    *("socket.connect", "socket.bind", "exec", "code.__new__", "ctypes.dlopen", "builtins.input", "marshal.loads"),
)
watching = False
seen: list[str] = []


def watch(event: str, arguments: object) -> None:
    if watching and event in FORBIDDEN and not importing():
        seen.append(f"{event} {arguments!r}")


def importing() -> bool:
    """Whether some module of ours or torch's is being imported, which is code that was here before."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


sys.addaudithook(watch)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """`content` with one to three of the faults that disks, networks and people make."""
    out = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(out)) if out else 0
        kind = chance.randrange(7)
        if kind == 0 and out:
            out[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and out:
            out[at] = chance.choice((0, 1, 0x2E, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + chance.randint(1, 16)]
        elif kind == 4:
            out[at:at] = out[at : at + chance.randint(1, 64)]
        elif kind == 5:
            number = chance.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**33, 10 * 2**30, 2**63 - 1, 2**64 - 1))
            out[at : at + 8] = number.to_bytes(8, chance.choice(("little", "big")))
        else:
            out[at : at + chance.randint(1, 8)] = chance.randbytes(chance.randint(0, 8))
    return bytes(out)


def refused(read, content: bytes) -> str | None:
    """What the reader says; None where it takes the file. Any error but ours is a test that fails."""
    try:
        read(content)
    except WeightsError as error:
        return str(error)
    return None


def fuzz(content: bytes, read, mutations: int = MUTATIONS) -> int:
    """Let `read` read damaged files; returns how many it took for whole."""
    global watching
    chance = random.Random(0)
    read(content)  # what is imported on first use is imported now
    taken = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen.clear()
    for _ in range(mutations):
        mutated = damaged(content, chance)
        watching = True
        refusal = refused(read, mutated)
        watching = False
        taken += refusal is None
        assert "\n" not in (refusal or "")
    assert not seen, seen[:3]
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert more * (1 if sys.platform == "darwin" else 1024) < MOST_MORE_MEMORY
    return taken


class Code:
    """Runs a command when it is unpickled by anybody else."""

    def __reduce__(self):
        import os

        return os.mkdir, ("was run",)


def torch_file(content, new: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=new)
    return stream.getvalue()


def tiny_dlib(monkeypatch) -> bytes:
    """dlib's format with a network of a few numbers."""
    monkeypatch.setattr(dlib_dat, "LEVELS", ((2, 1), (3, 1)))
    monkeypatch.setattr(dlib_dat, "EMBEDDING", 4)
    shapes = [(2, 3, 7, 7), (2, 2, 3, 3), (2, 2, 3, 3), (3, 2, 3, 3), (3, 3, 3, 3)]
    state: dict[str, Tensor] = {"embedding.weight": torch.ones(4, 3)}
    for i, shape in enumerate(shapes):
        state |= {f"convolutions.{i}.weight": torch.ones(shape), f"convolutions.{i}.bias": torch.ones(shape[0])}
    return dlib_file(state, blocks_of_levels=(1, 1))


ARRAYS = {name: value.numpy() for name, value in TENSORS.items()}
FLAX = {"VGG16_0": {f"Conv_{i}": {"kernel": np.ones((1, 1, 1, 1), np.float32)} for i in range(13)}}
FILES = {
    "arrays": [pickle.dumps(ARRAYS, protocol) for protocol in (2, 4)],
    "flax_trunk": [pickle.dumps(FLAX, 3)],
    "torch": [torch_file(TENSORS, new=True)],
    "torchvision_trunk": [torch_file({"features.0.weight": torch.ones(2, 3)}, new=True)],
    "mtcnn": [torch_file(TENSORS, new=False)],  # torch's reader opens all three: here in its old format
    "safetensors": [save(TENSORS)],
}


TFLITE = tflite_file(
    (1, 4, 4, 3),
    [
        ("DENSIFY", [Sparse(np.eye(3, dtype=np.float16).reshape(3, 1, 1, 3))], (3, 1, 1, 3), {}),
        ("DEQUANTIZE", [1], (3, 1, 1, 3), {}),
        ("CONV_2D", [0, 2, np.ones(3, np.float32)], (1, 4, 4, 3), {0: 0, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1}),
        ("RESHAPE", [3, np.array([1, 48], np.int32)], (1, 48), {}),
    ],
)
FILES["tflite"] = [TFLITE]


@pytest.mark.parametrize(("reader", "content"), [(r, c) for r, contents in FILES.items() for c in contents])
def test_damaged_files_are_read_or_refused_and_nothing_else(tmp_path, reader, content):
    path = tmp_path / "file"

    def read(mutated):
        path.write_bytes(mutated)
        for value in read_files(reader, [path]).values():
            assert isinstance(value, Tensor)

    assert fuzz(content, read) < MUTATIONS
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_damaged_files_of_dlib_are_read_or_refused(tmp_path, monkeypatch):
    path = tmp_path / "file"

    def read(mutated):
        path.write_bytes(mutated)
        read_files("dlib", [path])

    fuzz(tiny_dlib(monkeypatch), read)


@pytest.mark.parametrize("damaged_file", [0, 1])
def test_damaged_graph_models_are_read_or_refused(tmp_path, monkeypatch, damaged_file):
    monkeypatch.setattr(readers, "FACERES", ("conv1", "conv_dw_1"))
    arrays: dict[str, np.ndarray] = {}
    for name, kernel in (("conv1", "convolution/merged_input"), ("conv_dw_1", "depthwise_kernel")):
        arrays[f"{name}/{kernel}"] = np.ones((1, 1, 2, 1), np.float16)
        arrays |= {f"{name}_bn/batchnorm_1/{part}": np.ones(2, np.float16) for part in ("mul", "sub")}
        arrays |= {f"{name}_relu/Cast": np.array(6, np.float16), f"{name}_relu/Const_1": np.array(0, np.int32)}
    files = graph_model(tmp_path, arrays)

    def read(mutated):
        files[damaged_file].write_bytes(mutated)
        for value in read_files("faceres", files).values():
            assert isinstance(value, Tensor)

    assert fuzz(files[damaged_file].read_bytes(), read) < MUTATIONS
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.bin", "tiny.json"]


def test_damage_in_the_cache_is_always_noticed(tmp_path):
    """The digest in the table is of the tensors, so only a file of these very tensors is taken."""
    path = tmp_path / "file"
    tensors.write(TENSORS, path, {"name": "tiny"})
    known = tensors.digest(TENSORS)

    def read(mutated):
        path.write_bytes(mutated)
        found = tensors.read(path, known)
        torch.testing.assert_close(found, TENSORS, rtol=0, atol=0)

    fuzz(path.read_bytes(), read)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_damaged_archives_give_the_member_or_nothing(tmp_path, kind):
    name = "tiny-1.0/tiny.st"
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("tiny-1.0/setup.py", "raise SystemExit")
            archive.writestr(name, CONTENT)
    else:
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for member, content in (("tiny-1.0/setup.py", b"raise SystemExit"), (name, CONTENT)):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    whole = gzip.compress(stream.getvalue(), mtime=0) if kind == "tar.gz" else stream.getvalue()
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "out").mkdir()
    path, out = folder / "archive", tmp_path / "out" / "taken"

    def read(mutated):
        path.write_bytes(mutated)
        take(path, {name: (out, len(CONTENT))}, zipped=kind == "zip")
        assert out.stat().st_size == len(CONTENT)

    fuzz(whole, read)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] in (["archive", "taken"], ["taken", "archive"])


def test_damaged_bzip2_files_give_the_content_or_nothing(tmp_path):
    import bz2

    path, out = tmp_path / "file.bz2", tmp_path / "out"

    def read(mutated):
        path.write_bytes(mutated)
        take_bz2(path, out, len(CONTENT))
        assert out.stat().st_size == len(CONTENT)

    fuzz(bz2.compress(CONTENT), read)


def network_of_onnxruntime() -> bytes:
    """An ONNX file of one operator."""
    information = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 8, 8]) for name in "ab"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["a"], ["b"])], "g", information[:1], information[1:])
    return onnx.helper.make_model(graph).SerializeToString()


class Detector:
    """What insightface makes of a network; no more of it is asked here."""

    taskname = "detection"

    def prepare(self, *_, **options):
        pass


def test_damaged_networks_of_onnxruntime_never_reach_it(weights_cache, monkeypatch):
    """It is no reader of ours; what it makes of a hostile file nobody knows, so each load checks the digest first."""
    import insightface.model_zoo
    import onnxruntime

    reached = []

    def opened(path, *_, **options):
        reached.append(Path(path).read_bytes())
        return Detector()

    monkeypatch.setattr(insightface.model_zoo, "get_model", opened)
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    content = network_of_onnxruntime()
    sha256 = hashlib.sha256(content).hexdigest()
    address = Address("file:///nowhere/x", "det_10g.onnx", sha256, len(content))
    put(monkeypatch, Addresses("onnx", (address,)), name=scrfd.WEIGHTS, digest=None)
    weights_cache.mkdir()
    path = weights_cache / "det_10g.onnx"

    def read(mutated):
        path.write_bytes(mutated)
        reached.clear()
        scrfd.load_network.cache_clear()
        try:
            scrfd.load_network(0.5, 640)
        finally:
            assert reached == [content] * (mutated == content)

    assert fuzz(content, read, 10_000) < 100  # damage may write what was there
    scrfd.load_network.cache_clear()
    assert [p.name for p in weights_cache.iterdir()] == ["det_10g.onnx"]


def test_no_reader_is_left_out():
    """Of the table's readers each is one of the above."""
    fuzzed = {*FILES, "dlib", "faceres"}
    assert fuzzed == set(readers.READERS)
    assert fuzzed | {"onnx"} == {source.reader for file in WEIGHT_FILES.values() for source in file.sources}


@pytest.mark.parametrize("reader", ["arrays", "flax_trunk", "torch", "torchvision_trunk", "mtcnn"])
def test_code_is_refused_however_its_file_is_damaged(tmp_path, monkeypatch, reader):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file"
    content = {"a": ARRAYS["a.weight"] if reader in ("arrays", "flax_trunk") else TENSORS["a.weight"], "evil": Code()}
    written = pickle.dumps(content, 2) if reader in ("arrays", "flax_trunk") else torch_file(content, new=True)
    chance = random.Random(1)
    for mutated in [written, *(damaged(written, chance) for _ in range(500))]:
        path.write_bytes(mutated)
        assert "\n" not in (refused(lambda _: read_files(reader, [path]), mutated) or "")
        assert not (tmp_path / "was run").exists()
