"""`mldm sample`: pictures of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mldm_plugin.errors import MldmError

if TYPE_CHECKING:
    from mldm_plugin.project.samples import Finished


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="RUN")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="What is drawn. May be repeated.")
@click.option(
    "--prompts-from",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Prompts, one a line (default: those of the run).",
)
@click.option("--pictures", default=1, show_default=True, type=click.IntRange(1), help="Of each prompt.")
@click.option("--base", help="The pipeline that the weights go with (default: the one that was trained from).")
@click.option("--sampler", default="dpm++", show_default=True, help="dpm++, ddim, or a scheduler of diffusers.")
@click.option("--steps", default=30, show_default=True, type=click.IntRange(1), help="Of the sampler.")
@click.option("--guidance", type=float, help="Scale of guidance (default: the run's, else the pipeline's own).")
@click.option("--seed", default=0, show_default=True, help="Of the noise; the same with and without the weights.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder (default: RUN/samples).")
@click.option(
    "--export",
    type=click.Choice(["kohya", "diffusers"]),
    help="The LoRA for kohya's programs, ComfyUI and A1111, too; or, of a run of kohya's script, for diffusers.",
)
@click.option("--push-to-hub", metavar="NAME", help="Upload weights, grid and card to this private repository.")
def sample(
    run: Path,
    prompts: tuple[str, ...],
    file: Path | None,
    pictures: int,
    base: str | None,
    sampler: str,
    steps: int,
    guidance: float | None,
    seed: int,
    out: Path | None,
    export: str | None,
    push_to_hub: str | None,
) -> None:
    """Draw pictures with a finished run and without it, from the same noise: a grid, and a model card.

    RUN is a folder that `mldm train` filled, or the output folder of a trainer.
    """
    click.echo(f"opening {run} …")  # torch takes a while
    from mldm_plugin.evaluation.sampling import Sampling
    from mldm_plugin.project.samples import choose_cases, draw_samples, open_finished, write_card

    finished = open_finished(run, base)
    if (export or push_to_hub) and finished.models[-1].runs[0].reads_conditions:
        raise MldmError(f"{run} has conditions, which no other program reads: it is not exported or uploaded.")
    out = out or run / "samples"
    cases = choose_cases(prompts, file or finished.prompts)
    sampling = Sampling(sampler, steps, guidance if guidance is not None else finished.guidance, pictures, seed)
    rows = ", ".join(finished.labels[model.name] for model in finished.models)
    whence = "of --prompt" if prompts else f"of {file or finished.prompts}"
    click.echo(
        f"{len(cases)} prompt{'' if len(cases) == 1 else 's'} {whence}, {pictures} "
        f"picture{'' if pictures == 1 else 's'} of each from the same noise, by each of: {rows}"
    )
    grid = draw_samples(finished, cases, sampling, out)
    card = write_card(out, finished, cases, grid, sampling)
    if export:
        click.echo(f"for {export}: {_exported(finished, out, export)}")
    click.echo(f"the card: {card}")
    if push_to_hub:
        click.echo(f"uploaded: {_uploaded(finished, out, push_to_hub)}")
    click.echo(f"Look at {grid}")


def _exported(finished: Finished, out: Path, form: str) -> Path:
    from mldm_plugin.evaluation.models import LORA
    from mldm_plugin.project.export import export_diffusers, export_kohya

    file = finished.weights / LORA
    if not file.is_file():
        raise MldmError(f"{finished.weights} holds no {LORA}: only LoRAs are exported.")
    made = out / f"{finished.weights.resolve().parent.parent.name}-{form}.safetensors"
    if form == "kohya":
        export_kohya(file, made)
    else:
        [run] = finished.models[-1].runs
        export_diffusers(file, str(run.base), made)
    return made


def _uploaded(finished: Finished, out: Path, name: str) -> str:
    """Four files by their names, into a repository that is private where it is new; nothing else is uploaded."""
    from huggingface_hub import HfApi

    from mldm_plugin.evaluation.models import LORA
    from mldm_plugin.project.samples import CARD, GRID

    api = HfApi()
    repository = api.create_repo(name, exist_ok=True, private=True).repo_id
    named = [out / CARD, out / GRID]
    named += [finished.weights / name for name in (LORA, "diffusion_pytorch_model.safetensors", "config.json")]
    for file in named:
        if file.is_file():
            api.upload_file(path_or_fileobj=file, path_in_repo=file.name, repo_id=repository)
    return repository
