"""A training set looked over: counts, faults by column, and pictures of what the annotation says."""

from __future__ import annotations

import base64
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

from mldm_plugin.errors import DataError
from mldm_plugin.prepare.engines import in_processes
from mldm_plugin.prepare.inspection import Findings, Look, inspect
from mldm_plugin.prepare.paths import readable
from mldm_plugin.prepare.picture import SUFFIXES
from mldm_plugin.prepare.remarks import RESOLUTION, Remark, Remarks, face_sizes_at, verdict
from mldm_plugin.prepare.review import notes
from mldm_plugin.prepare.stored import parts
from mldm_plugin.records.files import write_bytes, write_text

SHOWN = 48  # sound rows on the sheet, evenly over the data set; chosen: a screenful
FAULTY_SHOWN = 24  # rows with faults, shown besides
TOLD = 20  # rows named for each kind of fault
WIDE, TALL, COLUMNS, LINE, GAP = 516, 256, 3, 16, 6  # of the contact sheet's pairs, in pixels


@dataclass
class Spread:
    """How a number is spread over the rows, as counts between `edges`; the last bin has no end."""

    title: str
    edges: Sequence[float]
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = [0] * len(self.edges)

    def add(self, value: float) -> None:
        self.counts[max(sum(value >= edge for edge in self.edges) - 1, 0)] += 1

    def bars(self) -> list[tuple[str, int, float]]:
        """Label, count and height in [0, 1] of each bin."""
        most = max(self.counts) or 1
        labels = [_span(a, b) for a, b in zip(self.edges, self.edges[1:], strict=False)] + [f"{self.edges[-1]:g}+"]
        return [(label, count, count / most) for label, count in zip(labels, self.counts, strict=True)]


def _span(start: float, end: float) -> str:
    """A bin's label; one that holds a single whole number is called by it."""
    single = isinstance(start, int) and end - start == 1
    return f"{start:g}" if single else f"{start:g}-{end:g}"


@dataclass
class Report:
    """What was found in all rows. `faults` and `notes` name the rows, up to `TOLD` of each kind."""

    folder: Path
    counts: Counter[str] = field(default_factory=Counter)
    faults: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    notes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    of_kind: Counter[Any] = field(default_factory=Counter)
    shown: list[Findings] = field(default_factory=list)
    resolution: int = RESOLUTION
    remarks: Remarks = field(init=False)
    digests: dict[bytes, str] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    spreads: list[Spread] = field(
        default_factory=lambda: [
            Spread("part of the picture that is people", [0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]),
            Spread("people in a picture", [0, 1, 2, 3, 4, 5, 6, 8, 12]),
            Spread("face size in training, pixels", [0, 16, 32, 48, 64, 96, 128, 192, 256]),
            Spread("shorter side of the picture, pixels", [0, 128, 256, 384, 512, 768, 1024]),
        ]
    )

    def __post_init__(self) -> None:
        self.remarks = Remarks(self.resolution)

    def add(self, found: Findings) -> None:
        """Count one row in."""
        self.counts["rows"] += 1
        self.remarks.add(found)
        for name in found.files:
            self.files.add(name)
        self.counts["rows with faults"] += bool(found.faults)
        self.counts["captions"] += found.captions
        for column, reason in found.faults:
            self._name(self.faults, (column, reason), found.name)
        for note in found.notes:
            self._name(self.notes, note, found.name)
        self._measure(found)
        if found.digest:
            first = self.digests.setdefault(found.digest, found.name)
            if first != found.name:
                self._name(self.notes, "the same picture is there twice", f"{found.name} = {first}")
        faulty = sum(bool(f.faults) for f in self.shown)
        if found.thumbnail and (faulty < FAULTY_SHOWN if found.faults else len(self.shown) - faulty < SHOWN):
            self.shown.append(found)

    def _name(self, told: dict[Any, list[str]], kind: Any, name: str) -> None:
        self.of_kind[kind] += 1
        if len(told[kind]) < TOLD:
            told[kind].append(name)

    def _measure(self, found: Findings) -> None:
        area, people, faces, sides = self.spreads
        if found.person_area is not None and found.people is not None:
            self.counts["rows with a mask"] += 1
            self.counts["rows with people"] += bool(found.people)
            self.counts["people"] += found.people
            area.add(found.person_area)
            people.add(found.people)
        if found.face_sizes is not None:
            self.counts["rows with face boxes"] += bool(found.face_sizes)
            self.counts["faces"] += len(found.face_sizes)
            for size in face_sizes_at(found, self.resolution):
                faces.add(size)
        if found.hands is not None:
            self.counts["rows with hands"] += bool(found.hands)
            self.counts["hands"] += found.hands
        if found.size is not None:
            sides.add(min(found.size))
            self.sizes.add(found.size)

    def look_for_strays(self) -> None:
        """Note pictures that lie in the folder of an imagefolder and that no row names."""
        if not self.files:
            return
        splits = [path.parent for path in self.folder.rglob("metadata.jsonl")]
        thrown_out = notes.thrown_out_files(self.folder)
        for path in sorted(self.folder.rglob("*")):
            ours = path in thrown_out or path.is_relative_to(self.folder / notes.FOLDER)
            if path.suffix.lower() in SUFFIXES.values() and not ours:
                names = {path.relative_to(top).as_posix() for top in splits if path.is_relative_to(top)}
                if not names & self.files:
                    self._name(self.notes, "no row names this file", readable(path.relative_to(self.folder).as_posix()))

    def said(self) -> list[Remark]:
        """What there is to say of it all."""
        rejected = sum(_lines_of(path) for path in self.folder.rglob("rejected.jsonl"))
        thrown_out = sum(note.thrown_out for note in notes.read(self.folder).values())
        rows, faulty = self.counts["rows"], self.counts["rows with faults"]
        said = self.remarks.of(faulty, rows, rejected, thrown_out)
        kinds = _ordered(self.notes, self.of_kind)
        more = [
            Remark("worth a look", f"{_capital(note)}: {count} {'time' if count == 1 else 'times'}.", tuple(names))
            for note, count, names in kinds
        ]
        place = sum(remark.grade != "fine" for remark in said)
        return said[:place] + more + said[place:]

    @property
    def sound(self) -> bool:
        return not any(remark.grade == "wrong" for remark in self.said())


def look_over(folder: Path, workers: int, resolution: int = RESOLUTION) -> Report:
    """Look at every row of a training set.

    Args:
        resolution: pixels of the shorter side in training.

    Raises:
        DataError: `folder` is no training set.
    """
    work = parts(folder)
    total = sum(part.count for part in work)
    step = max(total // SHOWN, 1)
    found = Report(folder, resolution=resolution)
    with tqdm(total=total, desc="rows", unit="row") as bar:
        # Parts come back as they are ready; the report must not depend on that.
        waiting: dict[int, list[Findings]] = {}
        order = iter(range(len(work)))
        due = next(order, None)
        for number, findings in in_processes(
            _numbered, [(k, Look(part, step)) for k, part in enumerate(work)], workers
        ):
            waiting[number] = findings
            bar.update(len(findings))
            while due in waiting:
                for one in waiting.pop(due):
                    found.add(one)
                due = next(order, None)
    found.look_for_strays()
    return found


def check(folder: Path, report: Path, workers: int, resolution: int = RESOLUTION) -> Report:
    """`look_over`, and write `index.html` and `contact_sheet.png` into `report`.

    Raises:
        DataError: `folder` is no training set, or the report cannot be written.
    """
    found = look_over(folder, workers, resolution)
    try:
        report.mkdir(parents=True, exist_ok=True)
        write_bytes(report / "contact_sheet.png", _png(contact_sheet(found.shown)))
        write_text(report / "index.html", page(found))
    except OSError as error:
        raise DataError(f"the report cannot be written into {report} ({error}): name another --report.") from error
    return found


def _numbered(job: tuple[int, Look]) -> tuple[int, list[Findings]]:
    return job[0], inspect(job[1])


def contact_sheet(shown: Sequence[Findings]) -> Image.Image:
    """The thumbnails in rows of three, each a photo and its annotation, with name and numbers; faulty ones in red."""
    tiles = [one for one in shown if one.thumbnail]
    rows = max(-(-len(tiles) // COLUMNS), 1)
    columns = min(max(len(tiles), 1), COLUMNS)
    cell, row = WIDE + GAP, TALL + GAP + 2 * LINE
    sheet = Image.new("RGB", (columns * cell + GAP, rows * row + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for k, one in enumerate(tiles):
        left, top = GAP + k % columns * cell, GAP + k // columns * row
        with Image.open(io.BytesIO(one.thumbnail or b"")) as opened:
            opened.thumbnail((WIDE, TALL))
            draw.rectangle((left, top, left + WIDE - 1, top + TALL - 1), fill="#eeeeee")
            sheet.paste(opened, (left + (WIDE - opened.width) // 2, top + (TALL - opened.height) // 2))
        if one.faults:
            draw.rectangle((left - 2, top - 2, left + WIDE + 1, top + TALL + 1), outline="red", width=3)
        draw.text((left, top + TALL + 1), _short(one.name), fill="black", font=font)
        draw.text((left, top + TALL + LINE - 1), _numbers(one), fill="#666666", font=font)
    return sheet


def _short(name: str, most: int = 60) -> str:
    plain = name.encode("ascii", "replace").decode()
    return plain if len(plain) <= most else "..." + plain[3 - most :]


def _numbers(one: Findings) -> str:
    said = [] if one.size is None else [f"{one.size[0]}x{one.size[1]}"]
    if one.people is not None and one.person_area is not None:
        said.append(f"{one.people} {'person' if one.people == 1 else 'people'} {one.person_area:.0%}")
    if one.face_sizes is not None:
        said.append(f"{len(one.face_sizes)} {'face' if len(one.face_sizes) == 1 else 'faces'}")
    return ", ".join(said)


def page(found: Report) -> str:
    """The report as one HTML file with its pictures inside."""
    from jinja2 import Environment, StrictUndefined  # comes with torch

    template = resources.files("mldm_plugin.prepare").joinpath("check.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        report=found,
        faults=_ordered(found.faults, found.of_kind),
        said=found.said(),
        verdict=verdict(found.said()),
        tiles=[(one, base64.b64encode(one.thumbnail or b"").decode(), _numbers(one)) for one in found.shown],
    )


def _ordered(told: dict[Any, list[str]], counts: Counter[Any]) -> list[tuple[Any, int, list[str]]]:
    """The most frequent first."""
    return [(kind, counts[kind], told[kind]) for kind in sorted(told, key=lambda k: (-counts[k], str(k)))]


def lines(found: Report) -> Iterable[str]:
    """The report for a terminal."""
    yield ", ".join(f"{count} {what}" for what, count in found.counts.items() if count)
    yield from faults(found)
    said = found.said()
    for remark in said:
        yield told(remark)
    yield verdict(said)


def faults(found: Report) -> Iterable[str]:
    """A line for each kind of fault."""
    for (column, reason), count, names in _ordered(found.faults, found.of_kind):
        yield f"fault in {column}: {reason}: {count} row(s): {', '.join(names[:3])}"


def told(remark: Remark) -> str:
    """A remark for a terminal, with three of its rows."""
    return f"{remark.grade}: {remark.text} {', '.join(remark.names[:3])}".rstrip()


def _lines_of(path: Path) -> int:
    return sum(bool(line.strip()) for line in path.read_bytes().splitlines())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
