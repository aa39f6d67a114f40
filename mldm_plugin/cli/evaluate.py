"""`mldm evaluate`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from mldm_plugin.cli import options
from mldm_plugin.errors import MldmError

PROMPTS = 200
SAMPLING = ("sampler", "steps", "guidance", "repetitions", "seed", "resolution", "eta")
PRECISIONS = ("float32", "bfloat16", "float16")


@click.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME=WHAT",
    help="A pipeline (folder or Hub name; of train_conditional_ldm.py, too), a LoRA or ControlNet (run folder, "
    ".safetensors), or a folder of pictures. Repeat it; the first is compared with. The same NAME again, or *, adds "
    "training seeds.",
)
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="RUN",
    help="Each checkpoint of a run and its final weights as models, step-N and final, and which is the best. Only "
    "photographs are looked at in one step, unless --prompts is given.",
)
@click.option("--base", help="The pipeline that adapters go with (default: the one that a run was started from).")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Image folder with held-out photographs: captions, and if there masks, face_boxes, hints.",
)
@click.option(
    "--prompts-from",
    metavar="FILE|people",
    help="Prompts, one a line or JSON lines (default: captions of --data, else the set `people`).",
)
@click.option(
    "--prompts",
    "number",
    type=click.IntRange(0),
    help=f"How many prompts at most; 0 draws nothing (default: {PROMPTS}; with --checkpoints 0).",
)
@click.option("--repetitions", default=1, show_default=True, type=click.IntRange(1), help="Pictures of each prompt.")
@click.option(
    "--photographs",
    default=32,
    show_default=True,
    type=click.IntRange(0),
    help="Held-out photographs looked at in one step.",
)
@click.option(
    "--person",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Photographs of the person that a LoRA learnt.",
)
@click.option(
    "--train-data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Pictures that were trained on, to find copies of them.",
)
@click.option(
    "--judges",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="What `mldm faces judges` trained: judges of the attributes and parts of faces.",
)
@click.option("--metrics", default="", metavar="A,B", help="Only these (default: all that can be had).")
@click.option(
    "--sampler", default="dpm++", show_default=True, help="dpm++, ddim, or a scheduler of diffusers by its name."
)
@click.option("--steps", default=20, show_default=True, type=click.IntRange(1), help="Of the sampler.")
@click.option("--eta", default=0.0, type=click.FloatRange(0), help="Of ddim: 1 draws new noise in each step.")
@click.option("--guidance", type=float, help="Scale of guidance (default: the pipeline's own).")
@click.option("--seed", default=0, show_default=True, help="Of all noise, and of which prompts are taken.")
@click.option("--resolution", type=click.IntRange(8), help="Side of the pictures (default: the pipeline's own).")
@click.option("--batch", type=click.IntRange(1), help="Pictures at a time (default: 1 on a CPU, 16 on a GPU).")
@click.option(
    "--precision", type=click.Choice(PRECISIONS), default="float32", show_default=True, help="Of the pipelines."
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How many share the work; on a CPU each takes one core, and pictures are the same to the bit with any number.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the report.")
@options.loss_plugin
def evaluate(
    models: tuple[str, ...],
    checkpoints: Path | None,
    out: Path,
    names: tuple[str, ...],
    metrics: str,
    precision: str,
    processes: int,
    **given: Any,
) -> None:
    """Compare the people that models draw, on the same noise: OUT/report.html, metrics.json, metrics.csv, table.md.

    Stopped, the same command goes on where it was. Over several GPUs: accelerate launch -m mldm_plugin.cli evaluate …
    """
    if processes > 1 and os.environ.get("WORLD_SIZE", "1") == "1":  # else this is one of them
        from mldm_plugin.evaluation.spreading import spread

        if status := spread([sys.executable, "-m", "mldm_plugin.cli", *sys.argv[1:]], processes):
            raise click.exceptions.Exit(status)
        return
    import torch

    from mldm_plugin.evaluation.checkpoints import ranking
    from mldm_plugin.evaluation.conclusion import in_a_line
    from mldm_plugin.evaluation.evaluate import Asked, Sampling
    from mldm_plugin.evaluation.evaluate import evaluate as run
    from mldm_plugin.plugins import load_plugins

    of_run = _complete(given, checkpoints)
    sampling = Sampling(**{name: given.pop(name) for name in SAMPLING})
    wanted = [name.strip() for name in metrics.split(",") if name.strip()]
    how: Any = {"metrics": wanted, "sampling": sampling, "precision": getattr(torch, precision)}
    asked = Asked([*models, *of_run], out, **how, **given)
    results = run(asked, load_plugins(names), "mldm " + " ".join(sys.argv[1:]))
    if results:
        _tell(results)
        if of_run:
            click.echo(ranking(results, of_run))
        for sentence in in_a_line(results):
            click.echo(f"\n{sentence}")
        click.echo(f"Look at {out / 'report.html'}")


def _tell(results: dict[str, Any]) -> None:
    """The table, and what must be known beside it."""
    from mldm_plugin.evaluation.tables import as_text

    click.echo("\n" + as_text(results))
    for name, why in results["failed"].items():
        click.echo(f"failed: {name}: {why}")
    for strong, why in [*results["warnings"], *results["notes"]]:
        click.echo(f"mind: {strong} {why}")
    for why in dict.fromkeys(results["missing"].values()):
        names_of = ", ".join(name for name, reason in results["missing"].items() if reason == why)
        click.echo(f"not measured: {names_of}: {why}")


def _complete(given: dict[str, Any], run: Path | None) -> list[str]:
    """The models of --checkpoints; what was not given is taken from that run, or has its default."""
    from mldm_plugin.evaluation.checkpoints import models_of_run, settings_of_run

    if given["number"] is None:
        given["number"] = PROMPTS if run is None else 0
    if run is None:
        return []
    models = models_of_run(run)
    for name, value in settings_of_run(run).items():
        given[name] = given[name] or value
    if given["data"] is None:
        raise MldmError("--checkpoints needs photographs that are held out: give --data.")
    return models
