"""Entries of the table of weights for tests: their files lie on this disk, in archives made here."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from mldm_plugin.perceptual.weights import (
    WEIGHT_FILES,
    Address,
    Addresses,
    Package,
    WeightFile,
    locate,
    tensors,
)

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.0, -1.0])}
CONTENT = save(TENSORS)
MEMBER = "tiny_weights-1.0/tiny_weights/tiny.st"
SETUP = "import pathlib\npathlib.Path(__file__).with_name('was run').touch()\npathlib.Path({mark!r}).touch()\n"


def needs_weights(*names: str) -> pytest.MarkDecorator:
    """Skips a test where weights are missing, with the command that fetches them."""
    try:
        missing = [name for name in names if locate(name) is None]
    except Exception as error:  # torch does not import: other tests say so
        return pytest.mark.skip(reason=str(error))
    return pytest.mark.skipif(bool(missing), reason=f"mldm weights fetch {' '.join(missing)}")


def sdist(folder: Path, mark: Path, content: bytes = CONTENT) -> Path:
    """tiny_weights-1.0.tar.gz with the weights, and a setup.py that makes the file `mark` if anybody runs it."""
    files = {
        "tiny_weights-1.0/PKG-INFO": b"Metadata-Version: 2.1\nName: tiny_weights\nVersion: 1.0\n",
        "tiny_weights-1.0/setup.py": SETUP.format(mark=str(mark)).encode(),
        MEMBER: content,
    }
    folder.mkdir(parents=True, exist_ok=True)
    return tar_of(folder / "tiny_weights-1.0.tar.gz", files)


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def zip_of(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def package(archive: Path, **changes: Any) -> Package:
    """The source that `archive` is, made by `sdist`."""
    content = archive.read_bytes()
    fields: dict[str, Any] = {
        "name": "tiny_weights",
        "version": "1.0",
        "archive": archive.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "members": ((MEMBER, len(CONTENT)),),
        "reader": "safetensors",
    }
    return Package(**{**fields, **changes})


def addresses(path: Path, **changes: Any) -> Addresses:
    """The file at `path`, of the tiny network's tensors, as a source."""
    fields: dict[str, Any] = {
        "url": path.as_uri(),
        "file_name": "tiny.st",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "size": len(CONTENT),
    }
    return Addresses("safetensors", (Address(**{**fields, **changes}),))


def put(monkeypatch: pytest.MonkeyPatch, *sources: Package | Addresses, name: str = "tiny", **changes: Any) -> None:
    """Put an entry into the table."""
    fields: dict[str, Any] = {"licence": "none", "digest": tensors.digest(TENSORS), **changes}
    monkeypatch.setitem(WEIGHT_FILES, name, WeightFile(name=name, sources=sources, **fields))


def unreachable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the entry `name` take any file that is put into the cache by hand, and reach none by itself."""
    file = WEIGHT_FILES[name]
    sources = tuple(
        replace(
            source,
            files=tuple(
                replace(a, url="file:///nowhere/x", page=None, sha256=None, size=None, packed=None)
                for a in source.files
            ),
        )
        for source in file.sources
        if isinstance(source, Addresses)
    )
    monkeypatch.setitem(WEIGHT_FILES, name, replace(file, sources=sources, digest=None))
