"""kohya's description of a data set (--dataset_config), written for a training set of ours, and read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mldm_plugin.announce import announce
from mldm_plugin.errors import DataError
from mldm_plugin.prepare.stored import listed_rows
from mldm_plugin.records.files import write_text


def write_dataset(folder: Path, out: Path, *, resolution: int, batch: int, repeats: int) -> int:
    """Write `out` and, beside it, the captions as kohya's metadata: NAME.captions.json.

    Args:
        folder: with a metadata.jsonl.
        out: the TOML file.
        resolution: area of kohya's buckets, as the side of a square.
        batch: pictures a step.
        repeats: how often an epoch shows each picture.

    Returns:
        how many pictures it describes.

    Raises:
        DataError: the folder lists no pictures.
    """
    rows = listed_rows(folder)
    if not rows:
        raise DataError(f"{folder} lists no pictures: expected a metadata.jsonl, as `mldm data` writes it.")
    captions = out.with_name(f"{out.stem}.captions.json").resolve()
    told = {str(top / row["file_name"]): {"caption": _first(row.get("text", ""))} for top, row in rows}
    write_text(captions, json.dumps(told, ensure_ascii=False, indent=1) + "\n")
    lines = [
        "[[datasets]]",
        f"resolution = {resolution}",
        f"batch_size = {batch}",
        "enable_bucket = true",
        "",
        "  [[datasets.subsets]]",
        f"  image_dir = {_quoted(str(folder.resolve()))}",
        f"  metadata_file = {_quoted(str(captions))}",
        f"  num_repeats = {repeats}",
    ]
    write_text(out, "\n".join(lines) + "\n")
    return len(rows)


def read_dataset(path: Path) -> tuple[Path, str | None]:
    """The folder of pictures that a TOML file of kohya's names, and the words for those without a caption.

    Regularisation pictures are passed over, which is told: nothing here is trained on them.

    Raises:
        DataError: it cannot be read, names no folder or several, or keeps captions where they are not read.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as TOML ({error}).") from error
    subsets = [subset for one in _tables(path, told, "datasets") for subset in _tables(path, one, "subsets")]
    named = [subset for subset in subsets if "image_dir" in subset]
    folders = {str(subset["image_dir"]): subset for subset in named if not subset.get("is_reg")}
    if len(folders) != 1:
        raise DataError(
            f"{path} names {len(folders)} folders (image_dir), expected one: put them into one folder as subfolders, "
            "10_anna and 5_ben, and name that."
        )
    if passed := [str(subset["image_dir"]) for subset in named if subset.get("is_reg")]:
        announce(f"note: regularisation pictures are not trained on here: {', '.join(passed)}")
    [(name, subset)] = folders.items()
    folder = path.parent / name
    if "metadata_file" in subset and not listed_rows(folder):
        raise DataError(
            f"{path} keeps captions in {subset['metadata_file']}, which is not read: write each into NAME.txt beside "
            "its picture, and take metadata_file out."
        )
    words = subset.get("class_tokens")
    return folder, str(words) if words else None


def _tables(path: Path, told: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = told.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise DataError(f"{path}: {name} is {str(found)[:40]}, expected tables, [[datasets]] and [[datasets.subsets]].")
    return found


def _first(text: Any) -> str:
    return (text[0] if text else "") if isinstance(text, list) else str(text)


def _quoted(text: str) -> str:
    """A basic string of TOML, which JSON's are but for one escape that none of its writers uses."""
    return json.dumps(text, ensure_ascii=False)
