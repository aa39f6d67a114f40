"""`mldm start`: photographs of a person are looked at, and it is written down what is learnt from them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from mldm_plugin.errors import MldmError

if TYPE_CHECKING:
    from mldm_plugin.project.photos import Photo
    from mldm_plugin.project.plan import Decided


@click.command()
@click.argument("photos", type=click.Path(path_type=Path, exists=True), metavar="PHOTOS")
@click.option("--who", metavar="NAME", help='How captions call the person: a rare word and what it is, "anna woman".')
@click.option(
    "--model",
    default="people-mini",
    show_default=True,
    metavar="NAME[=PIPELINE]",
    help="people-mini (ships with this package), sd15, sdxl, sd3 or flux; with a folder or Hub name of that kind of "
    "your own behind it.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder (default: runs/NAME).")
@click.option(
    "--script",
    type=click.Path(exists=True, dir_okay=False),
    help="Train with this script of diffusers or kohya (sdxl_train_network.py) instead.",
)
@click.option(
    "--python",
    type=click.Path(exists=True, dir_okay=False),
    help="The interpreter of that script's own environment, where this package is installed, too.",
)
@click.option("--no-compare", is_flag=True, help="Do not train with the plain loss, too.")
@click.option("--force", is_flag=True, help="Write run.yaml anew.")
def start(
    photos: Path,
    who: str | None,
    model: str,
    out: Path | None,
    script: str | None,
    python: str | None,
    no_compare: bool,
    force: bool,
) -> None:
    """Look at photographs of a person, and write what is trained from them into OUT/run.yaml.

    PHOTOS is a folder of photographs, a training set with masks (mldm data), or kohya's dataset.toml; of a COCO data
    set it says the command that makes one. Nothing is trained yet, and the photographs are only read. Then:
    mldm train OUT/run.yaml.
    """
    from mldm_plugin.project.models import known_model
    from mldm_plugin.project.run_file import NAME, PROMPTS, write_run
    from mldm_plugin.records.files import write_text

    kind, _, pipeline = model.partition("=")
    known = known_model(kind)
    photos, who = _photos_and_who(photos, who)
    out = out or Path("runs") / folder_name(who)
    file = out / NAME
    _refuse(photos, file, force)
    from mldm_plugin.prepare.folder import pictures_in
    from mldm_plugin.prepare.stored import listed_pictures  # what is typed is checked before torch is imported
    from mldm_plugin.project.plan import decide, taken_words

    if kind == "people-mini" and (taken := taken_words(who)):
        raise MldmError(
            f"--who {who}: people-mini's captions have the word {taken[0]!r}; choose one that means nothing."
        )
    click.echo(f"reading {len(listed_pictures(photos) or pictures_in(photos))} photographs in {photos} …")
    from mldm_plugin.project.photos import look_at

    seen = look_at(photos)
    named = _here(pipeline) or (kind if kind == "people-mini" else known.pipeline)
    decided = decide(photos, seen, who, known, named, script=script, python=python, compare=not no_compare)
    out.mkdir(parents=True, exist_ok=True)
    write_run(file, decided.run, _title(decided, kind, file), decided.reasons)
    write_text(out / PROMPTS, "\n".join(decided.prompts) + "\n")
    for line in [*_report(seen, decided), *_next(file, decided, kind)]:
        click.echo(line)


def _refuse(photos: Path, file: Path, force: bool) -> None:
    """Raises MldmError for a run.yaml among the photographs, or one that is there."""
    out = file.parent
    if photos.resolve() in out.resolve().parents or photos.resolve() == out.resolve():
        raise MldmError(f"{out} would lie among the photographs: give an --out outside of {photos}.")
    if file.exists() and not force:
        raise MldmError(f"{file} is there already: train it (mldm train {file}), or write it anew with --force.")


def _photos_and_who(photos: Path, who: str | None) -> tuple[Path, str]:
    """The folder, and how the person is called: as it was given, as kohya's file says it, or as is answered."""
    if photos.is_file():
        from mldm_plugin.prepare.kohya_dataset import read_dataset

        photos, tokens = read_dataset(photos)
        who = who or tokens
    from mldm_plugin.project.coco_folder import how_to_convert

    if command := how_to_convert(photos):
        raise MldmError(f"{photos} is a COCO data set: `{command}` makes a training set of it, for `mldm start`.")
    if who is None and not sys.stdin.isatty():
        raise MldmError('who is it? Give --who, a rare word and what it is: --who "anna woman".')
    if who is None:
        who = str(click.prompt("Who is it? A rare word and what it is, such as: anna woman", type=str))
    if not who.strip() or not who.isprintable():
        raise MldmError(f'--who {who!r}: expected a rare word and what it is, on one line: --who "anna woman".')
    return photos, who.strip()


def _here(pipeline: str) -> str:
    """A pipeline's folder by its whole path, for run.yaml may lie elsewhere; a Hub name as it is."""
    return str(Path(pipeline).resolve()) if pipeline and Path(pipeline).exists() else pipeline


def folder_name(who: str) -> str:
    """A folder called as the person is, below where it is made.

    >>> [folder_name(who) for who in ("Anna woman", "../../anna", "a/b {c}", "!!!")]
    ['anna_woman', 'anna', 'a_b_c', 'run']
    """
    return "_".join(re.findall(r"\w[\w.-]*", who.lower())) or "run"


def _title(decided: Decided, kind: str, file: Path) -> str:
    run = decided.run
    return (
        f"{run.who}: a LoRA of {kind}, from the photographs in {run.photos}.\n"
        f"Written by `mldm start`; change what you like before you train, then: mldm train {quote(str(file))}\n"
        "A relative path is one from this file's folder."
    )


def _report(photos: list[Photo], decided: Decided) -> list[str]:
    """A row for each photograph, then what was noticed."""
    from mldm_plugin.project.photos import left_out, remarks

    out = {name: why for name, why in left_out(photos).items() if name in decided.run.leave_out}
    wide = max(len(photo.name) for photo in photos)
    lines = [f"{'':<{wide}}  {'pixels':>11}  {'faces':>5}  {'width':>6}  {'hands':>5}"]
    for photo in photos:
        face = photo.face_at(decided.resolution)
        width = "–" if face is None else f"{face:.0f}"
        size = f"{photo.size[0]}x{photo.size[1]}"
        why = f"  left out: {out[photo.name]}" if photo.name in out else ""
        why = "  kept back, to judge with" if photo.name in decided.kept_back else why
        lines.append(f"{photo.name:<{wide}}  {size:>11}  {len(photo.faces):>5}  {width:>6}  {photo.hands:>5}{why}")
    lines.append(f"width: of the largest face, in pixels, where the short side has {decided.resolution}")
    learnt = [photo for photo in photos if photo.name not in out]
    return [*lines, *(f"note: {remark}" for remark in remarks(learnt, decided.resolution))]


def _next(file: Path, decided: Decided, kind: str) -> list[str]:
    """What it will cost, and what comes next."""
    from mldm_plugin.project.cost import cost_here
    from mldm_plugin.reproduce.commands import processes_here

    run = decided.run
    trainings = "two trainings, one of them with the plain loss" if run.compare == "plain" else "one training"
    lines = [f"\n{file}: {run.steps} steps, {trainings}"]
    lines += [f"  {line}" for line in cost_here(run, kind, len(decided.prompts), processes_here())]
    if run.script and not (file.parent / run.script).is_file():
        from mldm_plugin.project.models import how_to_get

        lines.append(f"diffusers' script is not here yet: {how_to_get(str(file.parent / run.script))}")
    return [
        *lines,
        f"look into it, then:  mldm train {quote(str(file))}",
        f"each command of it:  mldm train {quote(str(file))} --dry-run",
    ]
