"""`mldm evaluate`, the whole in its order: models, cases, pictures, measurements, statistics, report."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mldm_plugin.errors import DataError, MldmError
from mldm_plugin.evaluation import cases as casing
from mldm_plugin.evaluation.cases import Case, Photographs
from mldm_plugin.evaluation.claims import claim, stamp
from mldm_plugin.evaluation.conditional import ConditionAsker, encoders_of
from mldm_plugin.evaluation.judges import choose_judges, networks_of_losses
from mldm_plugin.evaluation.measuring import Metrics, make_metrics, measure
from mldm_plugin.evaluation.models import Model, Run, load_pipeline, parse_models, pictures_in, set_sampler, side_of
from mldm_plugin.evaluation.notes import Key, Notes
from mldm_plugin.evaluation.one_step import OneStep, measure_photographs
from mldm_plugin.evaluation.picture import Picture, PictureList, read_image
from mldm_plugin.evaluation.predicting import Asker
from mldm_plugin.evaluation.processes import Processes
from mldm_plugin.evaluation.results import write_results
from mldm_plugin.evaluation.sampling import Sampling, draw, picture_name
from mldm_plugin.plugins import Plugins
from mldm_plugin.prepare.stored import listed_pictures
from mldm_plugin.records.files import write_text

log = logging.getLogger(__name__)

REAL = "photographs"  # their name among the models


@dataclass(frozen=True)
class Asked:
    """What the command line asks for.

    Args:
        models: NAME=WHAT.
        out: folder of the report.
        base: pipeline of adapters.
        data: image folder with held-out photographs.
        prompts_from: file of prompts, or the name of a set that ships; None takes the captions of `data`.
        number: of prompts.
        photographs: how many are looked at in one step; 0 for none.
        person, train_data: folders of pictures for metrics that ask for them.
        judges: folder of networks that judge attributes and parts of faces, for metrics that ask for it.
        metrics: names; empty for all.
        sampling: how pictures are drawn.
        batch: pictures at a time; None for 1 on a CPU, 16 on a GPU.
        precision: of the pipelines.
    """

    models: Sequence[str]
    out: Path
    base: str | None = None
    data: Path | None = None
    prompts_from: str | None = None
    number: int = 200
    photographs: int = 32
    person: Path | None = None
    train_data: Path | None = None
    judges: Path | None = None
    metrics: Sequence[str] = ()
    sampling: Sampling = field(default_factory=Sampling)
    batch: int | None = None
    precision: torch.dtype = torch.float32


def evaluate(asked: Asked, plugins: Plugins, command: str = "") -> dict[str, Any]:
    """Draw, measure, compare, write the report. An evaluation that was stopped goes on where it was.

    Returns:
        what metrics.json holds; empty in all processes but the first.

    Raises:
        MldmError: nothing can be compared. A single model that fails is reported instead.
    """
    return Evaluation(asked, plugins).run(command)


class Evaluation:
    """One evaluation: what is compared on what."""

    def __init__(self, asked: Asked, plugins: Plugins) -> None:
        self.asked, self.plugins, self.processes = asked, plugins, Processes()
        self.models = parse_models(asked.models, asked.base)
        if not self.models:
            raise MldmError("nothing to evaluate: give --model NAME=WHAT at least once.")
        for name in asked.metrics:
            plugins.metrics[name]  # a name that nobody registered is found before hours of drawing
        _refuse_inside(asked)
        self.resolution = asked.sampling.resolution or _side(self.models)
        self.rows: list[str] = []  # of the photographs that are looked at in one step
        self.given = {name: _pictures_or_none(getattr(asked, name)) for name in ("person", "train_data")}
        self.photographs: Photographs | None = None
        runs = [run for model in self.models for run in model.runs]
        self.encoders = encoders_of(str(run.folder) for run in runs if run.reads_conditions)
        if asked.data is not None:
            self.photographs = casing.open_photographs(asked.data, self.resolution, conditions=self.encoders)
        self.cases = self.choose_cases()
        self.judges = choose_judges(network for model in self.models for network in networks_of_losses(model))
        self.failed: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.cautions: list[tuple[str, str]] = []
        self.share = (self.processes.rank, self.processes.number)

    def run(self, command: str) -> dict[str, Any]:
        """All of it, in order; on a CPU with one thread, for the last bits of a sum depend on the number of threads."""
        threads = torch.get_num_threads()
        if self.processes.device.type == "cpu":
            torch.set_num_threads(1)
        try:
            return self.in_order(command)
        finally:
            torch.set_num_threads(threads)

    def in_order(self, command: str) -> dict[str, Any]:
        """Draw, measure, compare, write."""
        self.processes.first(self.begin)
        self.each_run(self.draw)
        metrics = self.make_metrics() if self.cases else Metrics()
        metrics.missing |= self.missing
        if self.cases:  # else only photographs are looked at, in one step
            self.measure_photographs(metrics)
            self.each_run(partial(self.measure, metrics))
        for missing in self.processes.gather(metrics.missing):  # what failed in one process is whole in none
            metrics.drop(missing)
        return {} if self.processes.rank else write_results(self, metrics, command)

    def begin(self) -> None:
        """Make the folder, with the prompts and their keys, after which pictures made elsewhere can be named."""
        self.asked.out.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(asdict(case)) + "\n" for case in self.cases]
        write_text(self.asked.out / "prompts.jsonl", "".join(lines))

    def each_run(self, work: Callable[[Model, int, Run], None]) -> None:
        """Do something for every run; a model that fails leaves, and the report says why.

        Raises:
            MldmError: none is left.
        """
        for model in self.models:
            for number, run in enumerate(model.runs):
                error = self.processes.together(partial(work, model, number, run))
                if error is not None:
                    log.error(f"{model.name}: {error}")
                    self.failed[model.name] = error
                    break
        self.models = [model for model in self.models if model.name not in self.failed]
        if not self.models:
            raise MldmError("no model could be evaluated. " + " ".join(self.failed.values()))

    def choose_cases(self) -> list[Case]:
        """From a file, the captions of photographs, the names of pictures, or the set that ships."""
        asked, photographs = self.asked, self.photographs
        if asked.prompts_from is None and photographs is not None:
            return casing.cases_of_photographs(photographs, asked.number, asked.sampling.seed)
        runs = [run for model in self.models for run in model.runs]
        if asked.prompts_from is None and all(run.kind == "pictures" for run in runs):
            return casing.cases_of_pictures([path for run in runs for path in pictures_in(run)])
        name = asked.prompts_from or casing.SHIPPED[0]
        path = casing.shipped_prompts(name) if name in casing.SHIPPED else Path(name)
        return casing.with_photographs(casing.cases_of_file(path, asked.number), photographs)

    def folder(self, kind: str, model: Model, number: int) -> Path:
        """Where pictures or measurements of a run lie."""
        return self.asked.out / kind / model.name / str(number)

    def claim(self, folder: Path, how: dict[str, Any]) -> Path:
        """`claims.claim`, by one process for all."""
        self.processes.first(partial(claim, folder, how))
        return folder

    def how(self, run: Run) -> dict[str, Any]:
        """All that pictures of a run depend on, besides their cases."""
        beside = run.kind == "controlnet" or run.reads_conditions
        hints = stamp(self.asked.data) if beside else None
        precision, sampling = str(self.asked.precision), self.asked.sampling.told()
        return {"run": asdict(run), "digest": run.digest, "precision": precision, "sampling": sampling, "hints": hints}

    def draw(self, model: Model, number: int, run: Run) -> None:
        """Draw a run's pictures, and look at photographs through it in one step."""
        asked, sampling = self.asked, self.asked.sampling
        if run.kind == "pictures":
            self.files(model, number, run)  # named after the cases, or it is said now
            return
        how = self.how(run)
        pictures = self.claim(self.folder("pictures", model, number), how)
        beside = {"data": stamp(asked.data), "judges": asdict(self.judges), "resolution": self.resolution}
        once = self.claim(self.folder("one_step", model, number), {**how, "sampling": asked.sampling.seed, **beside})
        rows = []
        if self.photographs is not None and asked.photographs:
            chosen = casing.cases_of_photographs(self.photographs, asked.photographs, sampling.seed)
            rows = [case.row for case in chosen if case.row is not None]
        names = [picture_name(case, r) for r in range(sampling.repetitions) for case in self.cases]
        notes = Notes(once, self.share[0])
        self.rows = [f"{row:05d}" for row in rows]
        if all((pictures / name).is_file() for name in names) and all((row, 0) in notes.known for row in self.rows):
            return
        pipeline = load_pipeline(run, self.processes.device, asked.precision)
        own = pipeline.scheduler
        set_sampler(pipeline, sampling.sampler)
        batch = asked.batch or (16 if self.processes.device.type == "cuda" else 1)
        options: dict[str, Any] = {"photographs": self.photographs, "share": self.share, "title": model.name}
        draw(pipeline, self.cases, sampling, pictures, batch=batch, **options)
        pipeline.scheduler = own
        if self.photographs is not None and rows:
            try:
                one_step = OneStep(pipeline.vae, own, self.judges, pipeline.device)
            except MldmError as error:  # the pictures are there, and the report says what is missing
                self.missing["one_step"] = str(error)
                return
            title = f"{model.name}, one step"
            asker = (ConditionAsker if run.kind == "conditional" else Asker)(pipeline)
            measure_photographs(one_step, asker, self.photographs, rows, notes, share=self.share, title=title)

    def make_metrics(self) -> Metrics:
        """The metrics that can be measured here, and why others cannot."""
        asked, photographs = self.asked, self.photographs
        real = None if photographs is None else real_pictures(photographs)
        given: dict[str, Any] = {"photographs": real, "judges": asked.judges, **self.given}
        metrics = make_metrics(self.plugins, asked.metrics, given)
        compare = [name for name in metrics.of_sets if not getattr(metrics.ready[name], "alone", False)]
        for name in compare if photographs is None else ():
            metrics.missing[name] = "it compares with photographs: give --data"
            del metrics.ready[name]
        return metrics

    def measure_photographs(self, metrics: Metrics) -> None:
        """What sets of pictures are compared with."""
        photographs = self.photographs
        if photographs is None or not metrics.of_sets:
            return
        notes = Notes(self.claim(self.asked.out / "measured" / REAL, self.beside()), self.share[0])
        real = [((f"{row:05d}", 0), partial(photograph, photographs, row)) for row in range(len(photographs))]
        sets = metrics.only(metrics.of_sets)
        measure(real, sets, notes, share=self.share, title=f"{REAL}, measured")
        metrics.drop(sets.missing)

    def beside(self) -> dict[str, Any]:
        """All that measurements depend on, besides the pictures and the metrics."""
        folders = {name: stamp(getattr(self.asked, name)) for name in ("data", "person", "train_data")}
        return {**folders, "resolution": self.resolution}

    def measure(self, metrics: Metrics, model: Model, number: int, run: Run) -> None:
        """Measure the pictures of a run."""
        how = {**self.how(run), **self.beside()}
        notes = Notes(self.claim(self.folder("measured", model, number), how), self.share[0])
        title = f"{model.name}, measured"
        measure(self.pictures(model, number, run), metrics, notes, share=self.share, title=title)

    def pictures(self, model: Model, number: int, run: Run) -> list[tuple[Key, Callable[[], Picture]]]:
        """The pictures of a run by case and repetition, each read when it is asked for."""
        files = self.files(model, number, run)
        of_case: dict[str, list[Callable[[], Picture]]] = {}
        for _, case, path in files:
            of_case.setdefault(case.key, []).append(partial(_read, path, case))
        return [(key, partial(self.picture, path, case, key[1], of_case[case.key])) for key, case, path in files]

    def picture(self, path: Path, case: Case, repetition: int, repetitions: Sequence[Callable[[], Picture]]) -> Picture:
        """A drawn picture beside the photograph that its prompt is the caption of, if there is one."""
        photo = None
        if self.photographs is not None and case.row is not None:
            photo = partial(photograph, self.photographs, case.row)
        return Picture(read_image(path), case, photo=photo, repetition=repetition, repetitions=repetitions)

    def files(self, model: Model, number: int, run: Run) -> list[tuple[Key, Case, Path]]:
        """The files of a run's pictures.

        Raises:
            DataError: a folder of pictures of which none is named after a case.
        """
        if run.kind != "pictures":
            folder, repetitions = self.folder("pictures", model, number), range(self.asked.sampling.repetitions)
            return [((case.key, r), case, folder / picture_name(case, r)) for r in repetitions for case in self.cases]
        by_key = {case.key: case for case in self.cases}
        found: list[tuple[Key, Case, Path]] = []
        for path in pictures_in(run):
            key, _, repetition = path.stem.rpartition("-")
            if path.stem in by_key:
                found.append(((path.stem, 0), by_key[path.stem], path))
            elif key in by_key and repetition.isdecimal():
                found.append(((key, int(repetition)), by_key[key], path))
        if not found:
            raise DataError(
                f"no picture of {run.what} is named after a prompt, as {self.cases[0].key}.png (prompts.jsonl)."
            )
        return found


def _read(path: Path, case: Case) -> Picture:
    return Picture(read_image(path), case)


def photograph(photographs: Photographs, row: int) -> Picture:
    """A held-out photograph, with the faces of its annotation."""
    example = photographs.look(row)
    return Picture(example.pixel_values, casing.case_of(photographs, row), known=example)


def real_pictures(photographs: Photographs) -> PictureList:
    """All of them, each read when it is looked at."""
    return PictureList([partial(photograph, photographs, row) for row in range(len(photographs))])


def pictures_of_folder(folder: Path) -> PictureList:
    """All pictures of a folder and what lies below it, one person in each; of a training set not its masks.

    Raises:
        DataError: no folder, or no picture in it.
    """
    from mldm_plugin.evaluation.models import PICTURES

    paths = listed_pictures(folder) or sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not paths:
        raise DataError(f"{folder} holds no pictures, expected a folder with .png, .jpg or .webp files.")
    return PictureList([partial(_read, path, Case(path.stem, "", 1)) for path in paths])


def _pictures_or_none(folder: Path | None) -> PictureList | None:
    return None if folder is None else pictures_of_folder(folder)


def _refuse_inside(asked: Asked) -> None:
    """Raises DataError where the report would lie among pictures that are read."""
    out = asked.out.resolve()
    for name in ("data", "person", "train_data"):
        folder = getattr(asked, name)
        if folder is not None and (out == folder.resolve() or folder.resolve() in out.parents):
            raise DataError(f"--out {asked.out} lies in --{name.replace('_', '-')} {folder}: choose another folder.")


def _side(models: Sequence[Model]) -> int:
    """The side that the first pipeline was made for, or that of the first picture of a folder."""
    run = models[0].runs[0]
    if run.kind == "pictures":
        return min(read_image(pictures_in(run)[0]).shape[-2:])
    return side_of(run.base or run.what)
