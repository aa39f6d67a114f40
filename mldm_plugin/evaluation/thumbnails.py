"""The pictures of the report: which cases are shown, and how small."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

log = logging.getLogger(__name__)

SHOWN = 48  # cases of the gallery, evenly over all; chosen: what one scrolls through
EXTREMES = 48  # further cases, the worst and best of each metric
RANKS = 3  # of them in each direction of each metric and model
SIDE, QUALITY = 384, 88  # of an embedded picture; chosen: a lightbox of four on a laptop's screen
# Of an enlarged face or hand, how many of each of a picture, how much around the box.
CUT_SIDE, CUTS, MARGIN = 192, 3, 0.15
LARGEST = 24 << 20  # bytes of all pictures as text; chosen: a page that opens at once and goes through mail

Boxes = Sequence[Sequence[float]]
Row = dict[str, Any]


def shown_cases(results: dict[str, Any]) -> list[str]:
    """The keys of the gallery's cases, then those of the most extreme ones that are not among them."""
    gallery = gallery_cases(results)
    return [*gallery, *[key for key in extreme_cases(results) if key not in set(gallery)][:EXTREMES]]


def gallery_cases(results: dict[str, Any]) -> list[str]:
    """At most `SHOWN`, evenly over all."""
    keys = [case["key"] for case in results["cases"]]
    if len(keys) <= SHOWN:
        return keys
    return [keys[i * len(keys) // SHOWN] for i in range(SHOWN)]


def extreme_cases(results: dict[str, Any]) -> list[str]:
    """The cases in which a model is farthest from the first by some metric, the farthest of each metric first."""
    keys = [case["key"] for case in results["cases"]]
    names = [model["name"] for model in results["models"]]
    orders = [
        sorted((i for i, gap in enumerate(gaps) if gap is not None), key=lambda i, gaps=gaps: gaps[i])  # type: ignore[misc]
        for metric in results["metrics"]
        if metric["kind"] == "picture"
        for gaps in _gaps(metric["values"], names)
    ]
    found: dict[str, None] = {}
    for rank in range(RANKS):
        for order in orders:
            if rank < len(order):
                found |= {keys[order[rank]]: None, keys[order[-1 - rank]]: None}
    return list(found)


def _gaps(values: dict[str, Any], names: Sequence[str]) -> Iterator[list[float | None]]:
    """By case, of each model to the first; of a single model, its values."""
    first = values.get(names[0])
    if len(names) == 1 and first is not None:
        yield first
    for name in names[1:]:
        if first is not None and values.get(name) is not None:
            pairs = zip(values[name], first, strict=True)
            yield [None if a is None or b is None else a - b for a, b in pairs]


def embed(results: dict[str, Any], out: Path) -> dict[str, Any]:
    """The shown pictures as JPEG in base64, until `LARGEST` is reached.

    Returns:
        gallery: the keys of its cases; models: name → case → picture; photographs and conditions: case → picture;
        spent: whether there was no room for more.
    """
    photographs = results.get("photographs_of_cases") or {}
    keys, gallery = shown_cases(results), set(gallery_cases(results))
    conditions = results.get("conditions_of_cases") or {}
    found: dict[str, Any] = {"gallery": [], "models": {m["name"]: {} for m in results["models"]}}
    found |= {"photographs": {}, "conditions": {}}
    size, spent = 0, False
    for key in keys:
        row = {name: _embedded(path, faces, hands, out) for name, path, faces, hands in _of_models(results, key)}
        photo = photographs.get(key)
        photo = photo and _embedded(photo["path"], photo.get("faces") or [], [], out)
        mask = (conditions.get(key) or {}).get("path")
        mask = mask and _embedded(mask, [], [], out)
        size += sum(len(src) for one in (*row.values(), photo, mask) if one for src in (one["src"], *one["cuts"]))
        if size > LARGEST:
            spent = True
            break
        for name, picture in row.items():
            if picture:
                found["models"][name][key] = picture
        found["photographs"] |= {key: photo} if photo else {}
        found["conditions"] |= {key: mask} if mask else {}
        if key in gallery:
            found["gallery"].append(key)
    found["spent"] = spent
    found["person"] = [photo["src"] for path in results.get("person") or [] if (photo := _embedded(path, [], [], out))]
    return found


def _of_models(results: dict[str, Any], key: str) -> Iterator[tuple[str, str, Boxes, Boxes]]:
    for name, paths in results["pictures"].items():
        if key in paths:
            faces, hands = (((results.get(k) or {}).get(name) or {}).get(key) or [] for k in ("faces", "hands"))
            yield name, paths[key], faces, hands


def _embedded(path: str, faces: Boxes, hands: Boxes, out: Path) -> Row | None:
    """A picture, small, the boxes of its largest faces and hands in parts of its sides, and these enlarged, the faces
    first."""
    try:
        with Image.open(out / path) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        log.warning(f"the report leaves out {path}: {error}")
        return None
    width, height = picture.size
    sides = (width, height, width, height)
    largest = [*largest_first(faces)[:CUTS], *largest_first(hands)[:CUTS]]
    return {
        "src": _jpeg(picture, SIDE),
        "ratio": round(width / height, 4),
        "boxes": [[round(x / side, 4) for x, side in zip(box, sides, strict=True)] for box in largest],
        "faces": min(len(faces), CUTS),
        "cuts": [_jpeg(picture.crop(around(box, picture.size)), CUT_SIDE) for box in largest],
    }


def largest_first(boxes: Boxes) -> Boxes:
    """Boxes, by their areas."""
    return sorted(boxes, key=lambda box: -(box[2] - box[0]) * (box[3] - box[1]))


def around(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A square around a box with some of what is beside it, moved into the picture; in whole pixels."""
    side = max(box[2] - box[0], box[3] - box[1]) * (1 + 2 * MARGIN)
    whole = max(min(round(side), *size), 1)
    starts = [min(max(round((box[k] + box[k + 2] - whole) / 2), 0), length - whole) for k, length in enumerate(size)]
    return starts[0], starts[1], starts[0] + whole, starts[1] + whole


def _jpeg(picture: Image.Image, side: int) -> str:
    """At most `side` pixels wide and high, in base64."""
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=QUALITY, optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")
