"""Opening a data set, and looking it over before training starts."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets import load_dataset

from mldm_plugin.data.batch import Example
from mldm_plugin.data.training_set import TrainingSet
from mldm_plugin.errors import DataError

HELD_OUT = ("validation", "test")  # splits that nobody trains on
SPLITS = ("train", *HELD_OUT)


def open_rows(
    name: str | None,
    *,
    config: str | None = None,
    folder: str | None = None,
    cache: str | None = None,
    at_most: int | None = None,
    seed: int | None = None,
    every_file: bool = False,
) -> datasets.Dataset:
    """The rows of split `train` of a Hub data set, or of a folder; at most `at_most`, shuffled by `seed`.

    A folder's splits are those of `splits_of`. With `every_file` all other folders of pictures are one split, whatever
    their subfolders are called; parquet files are read as they are named.

    Raises:
        DataError: it cannot be opened, or has no such split.
    """
    splits = _open_splits(name, config, folder, cache, every_file, "train")
    if "train" not in splits:
        raise DataError(f"the data set {name or folder} has no split 'train', only {', '.join(splits)}.")
    rows = splits["train"]
    if at_most is not None:
        rows = rows.shuffle(seed=seed).select(range(min(at_most, len(rows))))
    return rows


def open_held_out(folder: str, cache: str | None = None) -> tuple[datasets.Dataset, str]:
    """The rows of a folder's split `validation`, else `test`, else whichever it has, and the name of that split.

    Raises:
        DataError: it cannot be opened.
    """
    splits = _open_splits(None, None, folder, cache, False)
    split = next((name for name in HELD_OUT if name in splits), next(iter(splits)))
    return splits[split], split


def splits_of(folder: Path) -> dict[str, Path] | None:
    """The splits of an image folder: `train`, `validation` and `test` are its subfolders with a metadata.jsonl each.

    A folder with a metadata.jsonl of its own is one split, `train`, whatever its pictures are called; `datasets` would
    take test_001.jpg and test/ out of it. None where it is for `datasets` to say: parquet files, or no metadata.jsonl.

    Raises:
        DataError: one metadata.jsonl for pictures in train/ and in validation/ or test/, which are held out or not.
    """
    if any(folder.rglob("*.parquet")):
        return None
    if found := {name: folder / name for name in SPLITS if (folder / name / "metadata.jsonl").is_file()}:
        return found
    if not (folder / "metadata.jsonl").is_file():
        return None
    if (folder / "train").is_dir() and (held := next((s for s in HELD_OUT if (folder / s).is_dir()), None)):
        raise DataError(
            f"{folder} has one metadata.jsonl for train/ and {held}/: give each folder its own, with names from there, "
            f"to hold {held}/ out; or call the folders something else, to train on both."
        )
    return {"train": folder}


def trained_part(folder: Path) -> Path | None:
    """The folder that `open_rows` with `every_file` takes every picture of; None where `datasets` says what it takes.

    >>> trained_part(Path("people"))
    PosixPath('people')
    """
    splits = splits_of(folder)
    if splits is None:
        return None if any(folder.rglob("*.parquet")) else folder
    return splits.get("train")


def _open_splits(
    name: str | None, config: str | None, folder: str | None, cache: str | None, every_file: bool, only: str = ""
) -> Any:
    """The splits by name; `only` one, if there is one of that name."""
    place = Path(str(folder))
    splits = splits_of(place) if name is None else None
    if name is None and splits is None and every_file and trained_part(place) == place:
        splits = {"train": place}
    if splits is not None and only in splits:
        splits = {only: splits[only]}
    try:
        if name is not None:
            return load_dataset(name, config, cache_dir=cache, data_dir=folder)
        with _without_bars():
            if splits is None:
                return load_dataset(folder, cache_dir=cache)
            files = {split: f"{glob.escape(str(part))}/**" for split, part in splits.items()}
            return load_dataset("imagefolder", data_files=files, cache_dir=cache)
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), "")
        raise DataError(
            f"the data set {name or folder} cannot be opened ({type(error).__name__}: {first_line}); a folder "
            "needs pictures and a metadata.jsonl (docs/quickstart.md)."
        ) from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """A folder on this machine is read in seconds; `datasets` would show four bars of a download meanwhile."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def check_rows(training_set: TrainingSet, indices: Iterable[int]) -> list[str]:
    """Check annotations, sizes and file types of these rows from metadata and file headers alone.

    Returns:
        The names of pictures with a face box that is left out, because the crop leaves less than half of it.

    Raises:
        DataError: the first fault found, naming the file.
    """
    return [name for index in indices if (name := training_set.check_row(index)) is not None]


def find_examples(training_set: TrainingSet, *, person: bool, face: bool, keypoints: bool = False) -> list[Example]:
    """The first pictures that together show a person, a face and keypoints after framing, as far as asked for.

    Draws nothing. With neither asked for, it is the first picture.

    Raises:
        DataError: there is no such picture in the whole data set.
    """
    wanted = {"person": person, "face": face, "keypoint": keypoints}
    found: list[Example] = []
    for index in range(len(training_set)):
        if found and not any(wanted.values()):
            return found
        if wanted == {"person": False, "face": True, "keypoint": False} and len(training_set.stored_boxes(index)) == 0:
            continue
        example = training_set.look(index)
        has = {"person": _shows_person(example), "face": _shows_face(example), "keypoint": _shows_keypoints(example)}
        if not any(wanted.values()) or any(has[what] and wanted[what] for what in wanted):
            found.append(example)
            wanted = {what: wanted[what] and not has[what] for what in wanted}
    if missing := " or ".join(what for what in wanted if wanted[what]):
        columns = training_set.columns
        raise DataError(
            f"no {missing} anywhere in the {len(training_set)} pictures of the data set (columns {columns.mask!r}, "
            f"{columns.boxes!r}, {columns.keypoints!r}), but a loss of the preset needs one: annotate the data set, or "
            "set that loss's weight to 0."
        )
    return found


def _shows_person(example: Example) -> bool:
    return example.person_mask is not None and bool(example.person_mask.any())


def _shows_face(example: Example) -> bool:
    return example.face_boxes is not None and len(example.face_boxes) > 0


def _shows_keypoints(example: Example) -> bool:
    return example.keypoints is not None and bool((example.keypoints[..., 2] > 0).any())
