"""Pictures and their rows in one zip file: small enough to be carried to another machine, read whole into memory."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from mldm_plugin.errors import DataError
from mldm_plugin.people_mini.record import Record, Sample

ROWS = "rows.jsonl"
READERS = 8  # threads that decode pictures


def write_archive(path: Path, samples: Iterable[Sample], quality: int | None = None) -> int:
    """Write samples into a new archive and return how many; a half-written file never has its name.

    Args:
        path: of the archive.
        samples: in their order.
        quality: of WebP; None keeps every pixel.
    """
    kept = {"lossless": True} if quality is None else {"quality": quality}
    return _write(path, ((sample.record, _encoded(sample.picture, kept)) for sample in samples))


def join_archives(path: Path, parts: Iterable[Path]) -> int:
    """One archive out of several; pictures keep their bytes."""
    return _write(path, (row for part in parts for row in _encoded_rows(part)))


def read_archive(path: Path) -> Iterator[Sample]:
    """The samples of an archive, in the order in which they were written.

    Raises:
        DataError: the file is no such archive.
    """
    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(_decoded, _encoded_rows(path))


def _decoded(row: tuple[Record, bytes]) -> Sample:
    record, encoded = row
    return Sample(record, Image.open(io.BytesIO(encoded)).convert("RGB"))


def _write(path: Path, rows: Iterable[tuple[Record, bytes]]) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    lines = []
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as out:
        for record, encoded in rows:
            out.writestr(f"{record.name}.webp", encoded)
            lines.append(json.dumps(asdict(record), ensure_ascii=False))
        out.writestr(zipfile.ZipInfo(ROWS), "\n".join(lines), zipfile.ZIP_DEFLATED, 9)
    part.replace(path)
    return len(lines)


def _encoded(picture: Image.Image, options: dict[str, Any]) -> bytes:
    encoded = io.BytesIO()
    picture.save(encoded, "WEBP", method=4, **options)
    return encoded.getvalue()


def _encoded_rows(path: Path) -> Iterator[tuple[Record, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for line in archive.read(ROWS).decode().splitlines():
                record = Record(**json.loads(line))
                yield record, archive.read(f"{record.name}.webp")
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} was expected to be an archive of pictures and rows, but cannot be read as one ({error}); "
            "write it anew with `python -m mldm_plugin.people_mini draw` or `photos`."
        ) from error
