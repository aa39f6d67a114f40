"""Whether a run is done, and whether its photographs are still those that it was made from."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from mldm_plugin.errors import MldmError
from mldm_plugin.evaluation.claims import stamp
from mldm_plugin.prepare.folder import pictures_in
from mldm_plugin.project.run_file import GIVEN
from mldm_plugin.project.scale import OwnPhotos
from mldm_plugin.records.files import write_text
from mldm_plugin.reproduce.commands import FINAL

DONE = ".done"  # in the folder: a digest of all that the page was made of
PHOTOS = ".photos.json"  # in the folder: names, sizes and times of the photographs that masks were made for
REPORT = "report"


def is_finished(scale: OwnPhotos) -> bool:
    """Whether the page is there, of this run.yaml, these prompts, masks and weights."""
    mark, page = scale.out / DONE, scale.out / REPORT / "report.html"
    return mark.is_file() and page.is_file() and mark.read_text(encoding="utf-8") == _digest(scale)


def mark_finished(scale: OwnPhotos) -> None:
    """Write down what the page was made of."""
    write_text(scale.out / DONE, _digest(scale))


def keep_names(scale: OwnPhotos) -> None:
    """Write down which photographs there are, unless that was done before; a training set is looked after elsewhere."""
    file = scale.out / PHOTOS
    if scale.run.masks != GIVEN and not file.is_file():
        write_text(file, json.dumps(_photographs(scale)))


def changed_photographs(scale: OwnPhotos) -> str:
    """What was added, taken away or changed since the masks were made, and what to do; empty where nothing was."""
    file = scale.out / PHOTOS
    if not file.is_file():
        return ""
    before, now = json.loads(file.read_text(encoding="utf-8")), _photographs(scale)
    found = {
        "added": sorted(now.keys() - before.keys()),
        "gone": sorted(before.keys() - now.keys()),
        "changed": sorted(name for name in now.keys() & before.keys() if now[name] != before[name]),
    }
    told = "; ".join(f"{word}: {', '.join(names)}" for word, names in found.items() if names)
    if not told:
        return ""
    return (
        f"the photographs in {scale.photos} are not those that this run was made from ({told}). It goes on with "
        f'copies of those; to learn what is there now: mldm start {scale.photos} --who "{scale.run.who}" --out ANEW'
    )


def _photographs(scale: OwnPhotos) -> dict[str, Any]:
    """Name → size and time."""
    try:
        paths = pictures_in(scale.photos)
    except MldmError:
        return {}
    states = {path: path.stat() for path in paths if path.is_file()}
    top = scale.photos.resolve()
    return {path.relative_to(top).as_posix(): [s.st_size, s.st_mtime_ns] for path, s in states.items()}


def _digest(scale: OwnPhotos) -> str:
    """Names, sizes and times of files, not what they hold: that takes a moment however large they are."""
    prompts = scale.out / scale.run.prompts
    weights = sorted(file for name in FINAL for file in (scale.out / "runs").glob(f"*/{name}"))
    told = {
        "run": scale.run.model_dump(),
        "prompts": prompts.read_text(encoding="utf-8") if prompts.is_file() else None,
        "people": stamp(scale.people),
        "weights": [[str(f.relative_to(scale.out)), f.stat().st_size, f.stat().st_mtime_ns] for f in weights],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
