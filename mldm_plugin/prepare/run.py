"""From sources to a finished folder: shard by shard, over several processes, going on where it was."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from tqdm.auto import tqdm

from mldm_plugin.errors import DataError
from mldm_plugin.prepare.convert import Recipe, convert
from mldm_plugin.prepare.engines import ENGINES, usable_cores
from mldm_plugin.prepare.formats import FORMATS, SHARD_SIZES
from mldm_plugin.prepare.index import Index
from mldm_plugin.prepare.paths import readable
from mldm_plugin.prepare.plans import Plan
from mldm_plugin.prepare.source import RejectedError
from mldm_plugin.prepare.split_names import looks_like_split, tell_one_split
from mldm_plugin.prepare.workspace import Counts, Workspace, is_made, opened, recorded_counts


@dataclass(frozen=True)
class Output:
    """Where a data set goes, how it is stored, and who does the work.

    Args:
        out: the folder, which appears at the end as a whole.
        format: one of `FORMATS`.
        shard_size: pictures a shard; None is the format's own.
        engine: one of `ENGINES`.
        workers: processes, 0 for none but this one; None is one a core.
    """

    out: Path
    format: str = "imagefolder"
    shard_size: int | None = None
    engine: str = "processes"
    workers: int | None = None

    @property
    def shard(self) -> int:
        return self.shard_size or SHARD_SIZES[self.format]


@dataclass(frozen=True)
class Shard:
    """A unit of work as it is sent to another process: the sources from place `start` up to `stop` of the index."""

    number: int
    start: int
    stop: int
    recipe: Recipe
    format: str
    out: Path


def prepare(plan: Plan, output: Output) -> Counts:
    """Convert all sources of a plan; go on with what an interrupted run of it left, or find that it is done.

    Raises:
        DataError: the output belongs to another command, another run is at work, or there is nothing to convert.
    """
    output = replace(output, out=output.out.resolve())  # other processes may start elsewhere
    command = {**plan.command, "format": output.format, "shard_size": output.shard}
    if is_made(output.out, command):
        return told_again(output.out)
    with opened(output.out, command) as space:
        if is_made(output.out, command):  # by somebody else, until a moment ago
            return told_again(output.out)
        if not space.is_joined():
            if not space.index.exists():
                Index.write(space.index, *plan.sources(space.folder))
            index = Index(space.index)
            _convert_all(plan, output, space, index)
            _check_any(space)
        return space.publish(command, join)


def told_again(out: Path) -> Counts:
    """The counts of an output that is there already."""
    sys.stderr.write(f"{out} was made by this command before; remove it to make it anew.\n")
    return recorded_counts(out)


def _convert_all(plan: Plan, output: Output, space: Workspace, index: Index) -> None:
    total, recipe = len(index), plan.recipe(index.facts())
    shards = range((total + output.shard - 1) // output.shard)
    todo = [number for number in shards if not space.is_done(number)]

    jobs = [
        Shard(number, number * output.shard, (number + 1) * output.shard, recipe, output.format, output.out)
        for number in todo
    ]
    finished = total - sum(min(output.shard, total - number * output.shard) for number in todo)
    most = min(usable_cores(), plan.most_workers or usable_cores())
    workers = most if output.workers is None else output.workers
    with tqdm(total=total, initial=finished, desc="converting", unit="picture") as bar:
        for pictures in ENGINES[output.engine](convert_shard, jobs, workers):
            bar.update(pictures)
    missing = [number for number in shards if not space.is_done(number)]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(shards)} shards were not written to {space.folder}: is that folder the same on "
            "all machines of the cluster? Name an --out on a shared disk."
        )


def _check_any(space: Workspace) -> None:
    """Raise DataError, and leave nothing behind, where no picture could be used."""
    counts = Counts()
    for done in space.done():
        counts.add(done)
    if not counts.pictures:
        space.discard()
        reasons = f", for example {'; '.join(counts.left_out)}" if counts.left_out else ""
        raise DataError(f"none of {counts.rejected} pictures could be used, and nothing was written{reasons}.")


def convert_shard(shard: Shard) -> int:
    """Convert, write and note one shard. Returns how many pictures it had."""
    space = Workspace(shard.out)
    converted, rejected = [], []
    sources = Index(space.index).part(shard.start, shard.stop)
    for source in sources:
        try:
            converted.append(convert(source, shard.recipe))
        except RejectedError as error:
            rejected.append({"file": readable(source.path), "reason": str(error)})
    rows = FORMATS[shard.format](space.folder, shard.number, converted, shard.recipe.types)
    space.write_done(
        shard.number,
        {
            "pictures": len(converted),
            "people": sum(one.row.get("person_count", 0) for one in converted),
            "faces": sum(len(one.row.get("face_boxes", ())) for one in converted),
            "rows": rows,
            "rejected": rejected,
        },
    )
    return len(sources)


def join(space: Workspace) -> Counts:
    """Write metadata.jsonl of each split and rejected.jsonl; returns the counts."""
    counts, misleading = Counts(), set[str]()
    with ExitStack() as files:
        streams: dict[str, IO[str]] = {}

        def write(name: str, value: Any) -> None:
            if name not in streams:
                streams[name] = files.enter_context((space.folder / name).open("w", encoding="utf-8"))
            streams[name].write(json.dumps(value, ensure_ascii=False) + "\n")

        for done in space.done():
            counts.add(done)
            for split, row in done["rows"]:
                write(f"{split}/metadata.jsonl" if split else "metadata.jsonl", row)
                if looks_like_split(row["file_name"]):
                    misleading.add(split)
            for rejected in done["rejected"]:
                write("rejected.jsonl", rejected)
    for split in misleading:
        tell_one_split(space.folder / split)
    return counts
