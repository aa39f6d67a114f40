"""The three ways a data set is stored. Each writes the pictures of one shard and can be written over.

imagefolder   images/NAME.jpg, masks/NAME.png, metadata.jsonl: read by diffusers' scripts and by ours
parquet       train-00000.parquet, …: pictures inside, columns as `datasets` names them; read by ours, too
webdataset    train-00000.tar, …: NAME.jpg, NAME.mask.png, NAME.json, NAME.txt, for loaders of one's own
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mldm_plugin.prepare.convert import Converted

# Pictures a shard: the unit of work, of going on after an interruption and, but for imagefolder, of a file. Chosen:
# files of some 100 MB as loaders like them; for an imagefolder little enough to lose.
SHARD_SIZES = {"imagefolder": 32, "parquet": 512, "webdataset": 512}

Types = Mapping[str, str]  # pyarrow's names of the types of further columns, where one shard's rows may not show them
Lines = list[tuple[str, dict[str, Any]]]  # of metadata.jsonl, each with its split; none where rows lie in the shard


def write_imagefolder(folder: Path, shard: int, pictures: Sequence[Converted], types: Types) -> Lines:
    """Write the files and return the lines of metadata.jsonl."""
    lines = []
    for one in pictures:
        top = folder / one.source.split
        line = {"file_name": _put(top, "images", one.source.name + one.suffix, one.picture), "text": one.row["text"]}
        for column, drawing in one.drawings.items():
            kind = "masks" if column == "mask" else column
            line[f"{column}_file_name"] = _put(top, kind, f"{one.source.name}.png", drawing)
        lines.append((one.source.split, line | one.row))
    return lines


def _put(top: Path, kind: str, name: str, content: bytes) -> str:
    path = top / kind / name
    try:
        path.write_bytes(content)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return f"{kind}/{name}"


def write_parquet(folder: Path, shard: int, pictures: Sequence[Converted], types: Types) -> Lines:
    """Write one file a split; pictures are {bytes, path} under the names that `datasets` gives an imagefolder's."""
    import pyarrow as pa
    from pyarrow import parquet

    for split, ones in _by_split(pictures):
        rows = [_pictures_inside(one) | one.row for one in ones]
        schema = _schema(rows, types)
        path = _shard_path(folder, split, shard, ".parquet")
        parquet.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")
    return []


def _pictures_inside(one: Converted) -> dict[str, Any]:
    pictures = {"image": {"bytes": one.picture, "path": Path(one.source.name).name + one.suffix}}
    for column, drawing in one.drawings.items():
        pictures[column] = {"bytes": drawing, "path": f"{Path(one.source.name).name}.png"}
    return pictures


def _schema(rows: Sequence[dict[str, Any]], further: Types) -> Any:
    """The columns of a shard, alike whatever its rows lack: a list that is empty in all of them has its type, too."""
    import pyarrow as pa

    number, numbers = pa.float64(), pa.list_(pa.float64())
    picture = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    types: dict[str, Any] = {
        "image": picture,
        "mask": picture,
        "parts": picture,
        "text": pa.list_(pa.string()) if isinstance(rows[0]["text"], list) else pa.string(),
        "person_area": number,
        "person_count": pa.int64(),
        "person_scores": numbers,
        "crowds": pa.list_(pa.int64()),
        "keypoints": pa.list_(numbers),
        "face_boxes": pa.list_(numbers),
        "face_scores": numbers,
        "face_points": pa.list_(numbers),
        "face_sizes": numbers,
        "face_detector": pa.string(),
    }
    types |= {name: pa.type_for_alias(alias) for name, alias in further.items()}
    columns = list(dict.fromkeys(name for row in rows for name in row))
    others = pa.Table.from_pylist([{name: row.get(name) for name in columns if name not in types} for row in rows])
    schema = pa.schema([(name, types[name] if name in types else others.schema.field(name).type) for name in columns])
    pictures = {name: {"_type": "Image"} for name in columns if types.get(name) is picture}
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": pictures}})}) if pictures else schema


def write_webdataset(folder: Path, shard: int, pictures: Sequence[Converted], types: Types) -> Lines:
    """Write one tar a split; what it holds depends on the pictures alone, not on when or by whom it was written."""
    for split, ones in _by_split(pictures):
        with tarfile.open(_shard_path(folder, split, shard, ".tar"), "w", format=tarfile.PAX_FORMAT) as tar:
            for one in ones:
                for suffix, content in _members(one).items():
                    entry = tarfile.TarInfo(_key(one.source.name) + suffix)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return []


def _key(name: str) -> str:
    """The name without dots, at the first of which readers of such files cut; two names never become the same."""
    return name.replace("%", "%25").replace(".", "%2E")


def _members(one: Converted) -> dict[str, bytes]:
    text = one.row["text"]
    first = text if isinstance(text, str) else next(iter(text), "")
    return {
        one.suffix: one.picture,
        **{f".{column}.png": drawing for column, drawing in one.drawings.items()},
        ".json": json.dumps(one.row, ensure_ascii=False).encode(),
        ".txt": first.encode(),
    }


def _by_split(pictures: Sequence[Converted]) -> Iterator[tuple[str, list[Converted]]]:
    splits: dict[str, list[Converted]] = {}
    for one in pictures:
        splits.setdefault(one.source.split, []).append(one)
    yield from splits.items()


def _shard_path(folder: Path, split: str, shard: int, suffix: str) -> Path:
    path = folder / split / f"{split or 'train'}-{shard:05d}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


FORMATS: dict[str, Callable[[Path, int, Sequence[Converted], Types], Lines]] = {
    "imagefolder": write_imagefolder,
    "parquet": write_parquet,
    "webdataset": write_webdataset,
}
