"""`mldm train`: what run.yaml says is carried out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mldm_plugin.errors import MldmError

if TYPE_CHECKING:
    from mldm_plugin.project.scale import OwnPhotos
    from mldm_plugin.reproduce.run import Reproduction


@click.command()
@click.argument("run_file", type=click.Path(path_type=Path, exists=True), metavar="RUN.YAML")
@click.option("--jobs", type=click.IntRange(1), help="Trainings at a time (default: a core each; with a GPU 1).")
@click.option("--dry-run", is_flag=True, help="Print every command, run none.")
def train(run_file: Path, jobs: int | None, dry_run: bool) -> None:
    """Carry run.yaml out: masks and boxes, trainings, pictures of each from the same noise, a page that compares them.

    RUN.YAML is the file that `mldm start` wrote, or its folder. Stopped, the same command goes on where it was.
    """
    from mldm_plugin.preset import load_preset
    from mldm_plugin.project.finished import changed_photographs, is_finished
    from mldm_plugin.project.run_file import read_run
    from mldm_plugin.project.scale import OwnPhotos
    from mldm_plugin.reproduce.run import Reproduction, claim

    folder, run = _folder(run_file), read_run(run_file)
    scale = OwnPhotos(folder.absolute(), run)
    whole = Reproduction(scale.recipe(), scale, seeds=1, prompts=0, jobs=jobs or 1)
    if dry_run:
        click.echo(whole.plan())
        if scale.lacks():
            click.echo(f"note: {scale.lacks()}")
        return
    if changed := changed_photographs(scale):
        click.echo(f"note: {changed}", err=True)
    if is_finished(scale):
        _say_done(folder)
        return
    if lacks := scale.lacks():
        raise MldmError(lacks)
    if run.plugins == ["mldm"]:  # else their own presets would have to be loaded; the trainers tell
        load_preset(scale.recipe().arms[-1].preset or "", run.set)
    claim(scale, whole.recipe.name)  # what does not fit is said before torch is imported
    _carry_out(whole, scale, jobs)
    click.echo(f"the LoRA: {scale.training(whole.recipe.arms[-1], 0, None).folder}")
    click.echo(f"more pictures: mldm sample {folder}")


def _folder(run_file: Path) -> Path:
    """Where everything is made: the folder that was given, or that of the file.

    Raises:
        MldmError: another file than run.yaml.
    """
    from mldm_plugin.project.run_file import NAME

    if run_file.is_dir():
        return run_file
    if run_file.name == NAME:
        return run_file.parent
    if run_file.suffix in (".yaml", ".yml"):
        raise MldmError(f"{run_file}: call it {NAME}, in a folder of its own; everything that is made goes beside it.")
    beside = run_file.parent / NAME
    known = f"mldm train {beside}" if beside.is_file() else f"mldm train FOLDER/{NAME}"
    raise MldmError(f"{run_file} is not what `mldm start` wrote to be trained; did you mean: {known}")


def _carry_out(whole: Reproduction, scale: OwnPhotos, jobs: int | None) -> None:
    from mldm_plugin.project.finished import keep_names, mark_finished
    from mldm_plugin.reproduce.commands import processes_here

    try:
        keep_names(scale)
        whole.jobs = jobs or processes_here()
        whole.expected = _expected(scale, whole.jobs)
        whole.run()
    except KeyboardInterrupt:
        click.echo(err=True)  # the bar's line, or that of ^C, ends here
        raise MldmError("stopped; the same command goes on from there.") from None
    mark_finished(scale)


def _expected(scale: OwnPhotos, jobs: int) -> Callable[[], Mapping[int, str]]:
    """How long trainings and evaluation take, by their steps, measured when it is first asked for."""

    @cache
    def measure() -> Mapping[int, str]:
        from mldm_plugin.project.cost import about, minutes_here

        prompts = (scale.out / scale.run.prompts).read_text(encoding="utf-8").split("\n")
        minutes = minutes_here(scale.run, sum(bool(line.strip()) for line in prompts), jobs)
        if minutes is None:
            return {}
        trainings = list(minutes.trainings.values())
        return {
            2: about(max(trainings) if jobs > 1 else sum(trainings)),
            3: f"{about(minutes.pictures)} of pictures, {about(minutes.judging)} of judging",
        }

    return measure


def _say_done(folder: Path) -> None:
    """Where the page is, and what came out."""
    from mldm_plugin.evaluation.conclusion import in_a_line
    from mldm_plugin.project.finished import REPORT

    results = json.loads((folder / REPORT / "metrics.json").read_text(encoding="utf-8"))
    for sentence in in_a_line(results):
        click.echo(sentence)
    click.echo(f"done: {folder / REPORT / 'report.html'}")
    click.echo(f"more pictures: mldm sample {folder}; to judge anew, remove {folder / REPORT}")
