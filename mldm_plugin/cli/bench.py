"""`mldm bench`: what a step costs with the plugin, beside what it costs otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mldm_plugin.bench.sizes import DTYPES, SIZES, SUBJECTS
from mldm_plugin.cli.options import loss_plugin, overrides

FILE = click.Path(dir_okay=False, path_type=Path)


def _numbers(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> list[int]:
    """`--batch 1,8`, or `--batch 1 --batch 8`."""
    numbers = [word for value in values for word in value.split(",")]
    if not all(word.isdecimal() and int(word) for word in numbers):
        raise click.BadParameter(f"{','.join(numbers)} is not a list of whole numbers from 1 on, like 1,8.")
    return list(map(int, numbers))


@click.command()
@click.option(
    "--size",
    type=click.Choice(list(SIZES)),
    default="tiny",
    show_default=True,
    help="tiny: the proportions of Stable Diffusion 1.5 for a CPU, about a minute. sd15, sdxl: the true networks with "
    "random weights, for a GPU.",
)
@click.option(
    "--subject",
    type=click.Choice([*SUBJECTS, "all"]),
    default="all",
    show_default=True,
    help="Whole training steps, what comes after the network's output, or each loss alone.",
)
@click.option(
    "--batch", "batches", multiple=True, callback=_numbers, metavar="N,…", help="Images a step, for example 1,8."
)
@click.option(
    "--dtype", "dtypes", type=click.Choice(DTYPES), multiple=True, help="The trainer's precision. May be repeated."
)
@click.option("--resolution", type=click.IntRange(32), help="Side of the pictures; a multiple of 32.")
@click.option("--rounds", type=click.IntRange(1), help="How often each candidate is timed.")
@click.option("--preset", default="mldm", show_default=True, help="Whose losses are measured, a name or a YAML file.")
@overrides
@loss_plugin
@click.option("--count", is_flag=True, help="Only count operations: any size, in seconds, on any machine.")
@click.option("--json", "json_file", type=FILE, metavar="FILE", help="Write every sample, versions and device there.")
@click.option("--plot", "plot_file", type=FILE, metavar="FILE.png", help="Draw the steps as bars.")
@click.pass_context
def bench(
    ctx: click.Context,
    subject: str,
    names: tuple[str, ...],
    count: bool,
    json_file: Path | None,
    plot_file: Path | None,
    **options: Any,
) -> None:
    """Measure steps with the plugin and without, beside other ways to the same losses.

    All candidates run in one process and take turns; times are medians. Before anything is timed, candidates that
    should give the same loss and gradient are compared. Ctrl-C shows what there is.
    """
    from mldm_plugin.bench.plot import plot_steps
    from mldm_plugin.bench.run import Bench

    if options["resolution"] is not None and options["resolution"] % 32:
        raise click.UsageError(f"--resolution is {options['resolution']}, expected a multiple of 32.")
    if count and subject not in ("all", "step"):
        raise click.UsageError("--count counts whole steps: leave --subject out.")
    subjects = SUBJECTS if subject == "all" else (subject,)
    run = Bench(subjects=subjects, echo=click.echo, loss_plugins=names, **options)
    run.count() if count else run.measure()
    if json_file is not None:
        run.write(json_file)
    if plot_file is not None:
        plot_steps(run.sections, f"mldm bench --size {run.size}: mean step under uniform timesteps", plot_file)
    if run.interrupted:
        ctx.exit(130)
