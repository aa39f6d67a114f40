"""Somebody's own photos as sources: captions as kohya's trainers or diffusers' scripts keep them, masks if given."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mldm_plugin.errors import DataError
from mldm_plugin.prepare.paths import fault_of, readable
from mldm_plugin.prepare.source import Source
from mldm_plugin.prepare.workspace import RECORD

# What Pillow opens and people keep photos in; a file with another suffix is passed over.
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jfif", ".avif", ".heic"}
CAPTION_SUFFIXES = (".txt", ".caption")  # of kohya's trainers
_REPEATS = re.compile(r"(\d+)_(.*)")
# Columns that are written anew, or name files that are not carried over.
_OURS = {
    *("text", "image", "mask", "parts", "person_area", "person_count", "person_scores", "keypoints", "crowds"),
    *("face_boxes", "face_scores", "face_points", "face_sizes", "face_detector"),
}
_TYPES = {bool: "bool", int: "int64", float: "float64", str: "string"}  # pyarrow's names


def sources(
    folder: Path,
    caption: str | None = None,
    masks: Path | None = None,
    leave_out: Collection[str] = (),
    held_out: int = 0,
) -> Iterator[Source]:
    """The pictures below `folder` in the order of their names.

    A caption is the row's `text` where the folder has a metadata.jsonl, else that of `NAME.txt` or `NAME.caption`
    beside the picture, else what the folder's name says (`10_anna` is "anna", kohya's way; the number, how often an
    epoch shows the folder, becomes the column `num_repeats`), else `caption`.

    Args:
        folder: is only read.
        caption: for pictures that have none of their own.
        masks: a folder with a label picture NAME.png for each picture, folders inside as in `folder`.
        leave_out: names of pictures below `folder` that are passed over.
        held_out: how many go into the split `validation`, evenly over all, the others into `train`; 0 makes no splits.

    Raises:
        DataError: the folder has no pictures, a metadata.jsonl that is broken, pictures without a caption, a picture
            to leave out that is not there, or too few to hold so many out.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: name the folder with the photos.")
    folder = folder.resolve()
    metadata = _metadata(folder)
    paths = [folder / name for name in metadata] or pictures_in(folder, masks)
    if not paths:
        raise DataError(f"{folder} has no pictures ({', '.join(sorted(SUFFIXES))}).")
    paths = _without(paths, folder, leave_out)
    of_each = splits(len(paths), held_out)
    described = [_described(path, folder, metadata.get(path.relative_to(folder).as_posix(), {})) for path in paths]
    names = dict.fromkeys(name for _, columns in described for name in columns)
    without = [path.relative_to(folder) for path, (text, _) in zip(paths, described, strict=True) if text is None]
    if without and caption is None:
        raise DataError(
            f"{len(without)} of {len(paths)} pictures have no caption, the first is {without[0]}: write it into "
            f"{without[0].with_suffix('.txt')}, or give --caption for those that have none."
        )
    several = any(isinstance(text, list) for text, _ in described)
    for path, (text, columns), split in zip(paths, described, of_each, strict=True):
        relative = path.relative_to(folder)
        text = caption or "" if text is None else text
        yield Source(
            name=readable(relative.with_suffix("").as_posix()),
            path=str(path),
            text=[text] if several and isinstance(text, str) else text,
            mask=None if masks is None else _mask(masks, relative),
            columns={name: columns.get(name) for name in names},
            split=split,
            fault=fault_of(str(relative), folder),
        )


def _without(paths: list[Path], folder: Path, names: Collection[str]) -> list[Path]:
    left_out = {folder / name for name in names}
    if strangers := sorted(str(path.relative_to(folder)) for path in left_out.difference(paths)):
        raise DataError(f"--leave-out {strangers[0]}: there is no such picture in {folder}.")
    return [path for path in paths if path not in left_out]


def splits(count: int, held_out: int) -> list[str]:
    """The split of each picture, in their order.

    >>> splits(5, 2)
    ['train', 'validation', 'train', 'validation', 'train']
    """
    if not held_out:
        return [""] * count
    if held_out >= count:
        raise DataError(f"--held-out {held_out} of {count} pictures leaves none to train on.")
    chosen = {(2 * k + 1) * count // (2 * held_out) for k in range(held_out)}
    return ["validation" if number in chosen else "train" for number in range(count)]


def pictures_in(folder: Path, masks: Path | None = None) -> list[Path]:
    """All picture files below the folder but hidden ones, the masks, and training sets that were made there.

    Args:
        folder: resolved here.
        masks: a folder that may lie inside.

    Raises:
        DataError: it is no folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: name the folder with the photos.")
    folder = folder.resolve()
    inside = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
    if masks is not None:
        inside = [path for path in inside if not path.is_relative_to(masks.resolve())]
    made = [record.parent for record in folder.rglob(RECORD)]
    inside = [path for path in inside if not any(path.is_relative_to(output) for output in made)]
    return [path for path in inside if not any(_passed_over(part) for part in path.relative_to(folder).parts)]


def _passed_over(part: str) -> bool:
    return part.startswith(".") or part.endswith(".partial")


def digest(folder: Path, masks: Path | None) -> str:
    """Of the names, sizes and times of all files, by which a folder is known to be the same."""
    found = hashlib.sha256()
    for top in [top for top in (folder, masks) if top and top.is_dir()]:
        for path in sorted(top.rglob("*")):
            parts = path.relative_to(top).parts
            if path.is_file() and not any(_passed_over(part) for part in parts):
                state = path.stat()
                found.update(os.fsencode(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\0"))
    return found.hexdigest()


def types(sources: Iterable[Source]) -> dict[str, str]:
    """pyarrow's names of the types of the further columns that hold texts, numbers or truth values.

    Raises:
        DataError: a column holds both.
    """
    kinds: dict[str, set[type]] = {}
    for source in sources:
        for name, value in source.columns.items():
            if value is not None:
                kinds.setdefault(name, set()).add(type(value))
    for name, found in kinds.items():
        if len(found) > 1 and found != {int, float}:
            told = ", ".join(sorted(kind.__name__ for kind in found))
            raise DataError(f"column {name!r} of metadata.jsonl holds values of several kinds ({told}): make them one.")
    return {
        name: "float64" if float in found else _TYPES[next(iter(found))]
        for name, found in kinds.items()
        if found <= _TYPES.keys()
    }


def _described(path: Path, folder: Path, row: Mapping[str, Any]) -> tuple[str | list[str] | None, dict[str, Any]]:
    """The caption, if there is one, and the further columns."""
    columns = {name: value for name, value in row.items() if _carried(name)}
    named = _REPEATS.fullmatch(path.parent.name) if path.parent != folder else None
    if named:
        columns["num_repeats"] = int(named[1])
    if row.get("text"):
        return row["text"], columns
    for suffix in CAPTION_SUFFIXES:
        beside = path.with_suffix(suffix)
        if beside.is_file():
            return _read_caption(beside), columns
    return (named[2].replace("_", " ").strip() or None) if named else None, columns


def _carried(name: str) -> bool:
    return name not in _OURS and not name.endswith("file_name")


def _read_caption(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the caption {path} cannot be read ({error}): store it as UTF-8.") from error


def _mask(masks: Path, relative: Path) -> str | None:
    path = masks.resolve() / relative.with_suffix(".png")
    return str(path) if path.is_file() else None


def _metadata(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of metadata.jsonl by file name; empty where there is no such file.

    Raises:
        DataError: a line that is not an object with a file name of a picture in the folder.
    """
    path = folder / "metadata.jsonl"
    rows: dict[str, dict[str, Any]] = {}
    if not path.is_file():
        return rows
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name = row["file_name"]
            json.dumps(row, ensure_ascii=False).encode()  # half characters cannot be written again
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: expected an object with a file_name ({error!r}).") from error
        if reason := fault_of(name, folder) or _text_fault(row.get("text", "")):
            raise DataError(f"{path}, line {number}: {reason}.")
        if not (folder / name).is_file():
            raise DataError(f"{path}, line {number}: there is no file {name!r} in the folder.")
        name = PurePosixPath(name).as_posix()
        if name in rows:
            raise DataError(f"{path}, line {number}: {name!r} is named a second time.")
        rows[name] = row
    left = sorted({name for row in rows.values() for name in row if not _carried(name)} - {"file_name", "text"})
    if left:
        sys.stderr.write(f"not carried over from {path}, written anew or not at all: {', '.join(left)}\n")
    return rows


def _text_fault(text: Any) -> str | None:
    fine = isinstance(text, str) or (isinstance(text, list) and text and all(isinstance(t, str) for t in text))
    return None if fine else f"text is {text!r}, expected a caption or a list of captions"
