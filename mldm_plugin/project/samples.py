"""Pictures of a finished run, with it and without it from the same noise, and the card that goes with its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from mldm_plugin import __version__
from mldm_plugin.errors import MldmError
from mldm_plugin.evaluation.cases import Case, cases_of_file, key_of
from mldm_plugin.evaluation.claims import claim
from mldm_plugin.evaluation.judges import networks_in, preset_of
from mldm_plugin.evaluation.models import LORA, Model, Run, load_pipeline, parse_models, set_sampler
from mldm_plugin.evaluation.sampling import Sampling, draw, picture_name
from mldm_plugin.people_mini import PIPELINE
from mldm_plugin.perceptual.weights.table import weight_file
from mldm_plugin.project.places import beside
from mldm_plugin.project.run_file import NAME, read_run
from mldm_plugin.project.scale import OwnPhotos
from mldm_plugin.project.sheet import draw_sheet

WITHOUT, WITH = "without", "with"
GRID, CARD = "grid.png", "README.md"
MOST_PROMPTS = 10_000


@dataclass(frozen=True)
class Finished:
    """What pictures are drawn of.

    Args:
        models: `without` the run, the plain training where there is one, `with` it.
        prompts: a file, where the run has one.
        guidance: scale, None for the pipeline's own.
        weights: of the run.
        labels: what the rows of the sheet are called, by model.
    """

    models: list[Model]
    prompts: Path | None
    guidance: float | None
    weights: Path
    labels: dict[str, str]


def open_finished(run: Path, base: str | None) -> Finished:
    """A folder that `mldm train` filled, or the run folder of a trainer.

    Raises:
        MldmError: it has no weights yet, or its base is not known.
    """
    if not (run / NAME).is_file():
        models = parse_models([f"{WITH}={run}"], base)
        if models[0].runs[0].kind not in ("lora", "controlnet"):
            raise MldmError(f"{run} is no finished run: it has no {NAME} and no weights; give the folder of a run.")
        kind = "ControlNet" if models[0].runs[0].kind == "controlnet" else "LoRA"
        absent = ", conditions absent" if models[0].runs[0].reads_conditions else ""
        return Finished(_with_base(models), None, None, run, {WITHOUT: f"no {kind}", WITH: f"with {kind}{absent}"})
    told = read_run(run)
    trained = {name: run / "runs" / f"{folder}-s0" for name, folder in (("plain", "plain"), (WITH, "mldm"))}
    if not (trained[WITH] / LORA).is_file():
        raise MldmError(f"{trained[WITH]} has no weights yet: mldm train {run / NAME}")
    there = {name: folder for name, folder in trained.items() if (folder / LORA).is_file()}
    models = parse_models([f"{name}={folder}" for name, folder in there.items()], base or OwnPhotos(run, told).model)
    prompts = Path(beside(run, told.prompts))
    labels = {WITHOUT: "no LoRA", "plain": "plain loss", WITH: "Masked LDM"}
    found = prompts if prompts.is_file() else None
    return Finished(_with_base(models), found, told.guidance, trained[WITH], labels)


def _with_base(models: list[Model]) -> list[Model]:
    [run] = models[-1].runs
    if run.takes_hints:
        raise MldmError(
            f"{run.what} was trained with hints: mldm evaluate --model NAME={run.what} --data DIR draws them."
        )
    if run.never_without:
        raise MldmError(
            f"{run.what} was trained with conditions in every picture (--condition_dropout 0), and a prompt has none: "
            f"mldm evaluate --model NAME={run.what} --data DIR draws it with those of photographs."
        )
    return [*([Model(WITHOUT, [Run(run.base, "pipeline")])] if run.base is not None else []), *models]


def choose_cases(prompts: Sequence[str], file: Path | None) -> list[Case]:
    """The prompts that were typed, else those of a file.

    Raises:
        MldmError: there are none.
    """
    if prompts:
        return [Case(key_of(number, text, 1, None), text, 1) for number, text in enumerate(prompts)]
    if file is None:
        raise MldmError('nothing to draw: give --prompt "a photo of …" or --prompts-from FILE.')
    return cases_of_file(file, MOST_PROMPTS)


def draw_samples(finished: Finished, cases: Sequence[Case], sampling: Sampling, out: Path) -> Path:
    """Draw every case by every model into out/NAME/, those that are not there, and the grid of the first pictures.

    Returns:
        the grid.

    Raises:
        MldmError: a pipeline that does not load, or a ControlNet that was trained with hints.
    """
    import torch

    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    how: dict[str, Any] = {name: value for name, value in asdict(sampling).items() if name != "repetitions"}
    how["precision"] = dtype
    for model in finished.models:
        [run] = model.runs
        folder = claim(
            out / model.name, {"run": asdict(run), "digest": run.digest, "precision": dtype, "sampling": how}
        )
        if all((folder / picture_name(case, k)).is_file() for case in cases for k in range(sampling.repetitions)):
            continue
        pipeline = load_pipeline(run, "cuda" if on_gpu else "cpu", dtype)
        set_sampler(pipeline, sampling.sampler)
        draw(pipeline, cases, sampling, folder, batch=4 if on_gpu else 1, title=model.name)
        del pipeline  # before the next one is loaded: a card may hold one, not two
    names = [picture_name(case, 0) for case in cases]
    rows = {finished.labels[m.name]: [out / m.name / name for name in names] for m in finished.models}
    draw_sheet(rows, [case.text for case in cases], out / GRID)
    return out / GRID


def write_card(out: Path, finished: Finished, cases: Sequence[Case], grid: Path, sampling: Sampling) -> Path:
    """README.md, a model card as the Hub reads it: what it is, the grid, how it was made, what licences it rests on."""
    from huggingface_hub import ModelCard, ModelCardData

    [run] = finished.models[-1].runs
    data = ModelCardData(
        base_model=None if _is_here(run.base) else run.base,
        library_name="diffusers",
        tags=["text-to-image", run.kind, "mldm-plugin"],
        license="other",
        instance_prompt=cases[0].text,
    )
    rows = "\n".join(f"| {name} | {value} |" for name, value in _facts(finished, sampling).items())
    names = ", ".join(f"*{finished.labels[model.name]}*" for model in finished.models)
    text = (
        f"---\n{data.to_yaml()}\n---\n\n# {out.resolve().parent.name}\n\n"
        f"![The same prompts and noise, without and with these weights]({grid.name})\n\n"
        f"Rows: {names}; each column is one prompt, from the same noise.\n\n"
        f"| | |\n|---|---|\n{rows}\n\n"
        "It was made from photographs of a person. Publish it with that person's consent, and say of pictures that "
        "they are drawn.\n"
    )
    card = out / CARD
    ModelCard(text).save(card)
    return card


def _facts(finished: Finished, sampling: Sampling) -> dict[str, str]:
    [run] = finished.models[-1].runs
    base = Path(run.base).name if run.base and _is_here(run.base) else run.base  # a folder here says nothing elsewhere
    facts = {"base": f"{'people-mini' if run.base == str(PIPELINE) else base}, under its own licence"}
    found = preset_of(finished.weights)
    if found is not None:
        preset = yaml.safe_load(found.read_text(encoding="utf-8")) or {}
        losses = preset.get("losses") or {}
        facts["losses"] = ", ".join(
            f"{name} λ = {one['weight']}, T = {one['max_timestep']}" for name, one in losses.items()
        )
        facts["networks of the losses"] = "; ".join(
            f"{name}: {weight_file(name).terms}" for name in sorted(networks_in(found.read_text(encoding="utf-8")))
        )
    guidance = "the pipeline's" if sampling.guidance is None else f"{sampling.guidance:g}"
    facts["pictures"] = f"{sampling.sampler}, {sampling.steps} steps, guidance {guidance}, seed {sampling.seed}"
    facts["trained with"] = f"mldm-plugin {__version__}"
    return {name: value for name, value in facts.items() if value}


def _is_here(pipeline: str | None) -> bool:
    return pipeline is not None and Path(pipeline).exists()
