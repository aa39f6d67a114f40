"""`mldm doctor`: what this environment holds, and what in it does not go together; or whether a run did anything."""

from __future__ import annotations

from pathlib import Path

import click

from mldm_plugin.cli import options


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@options.base
@options.data
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="F.png",
    help="Draw how far each layer moved, and the pictures with their masks.",
)
@click.pass_context
def doctor(ctx: click.Context, run: Path | None, base: str | None, data: Path | None, out: Path | None) -> None:
    """Did the training RUN do anything? Without RUN: does this environment hold together?

    RUN is the folder of a run, a LoRA (diffusers' or kohya's) or a ControlNet. You are told whether its layers moved,
    by how much of their base, which losses were applied to how many pictures, and whether masks are missing, empty or
    inverted. What a run's own records do not say can be given: --base, --data.

    Without RUN: versions, GPU, weights and plugins of this environment, and what conflicts.

    Exit status 1 if something is wrong.
    """
    if run is not None:
        _examine(ctx, run, base, data, out)
        return
    if base or data or out:
        raise click.UsageError("--base, --data and --out go with a RUN: mldm doctor RUN --base MODEL.")
    _environment(ctx)


def _examine(ctx: click.Context, path: Path, base: str | None, data: Path | None, out: Path | None) -> None:
    from mldm_plugin.doctor.drawing import draw, save
    from mldm_plugin.doctor.report import examine
    from mldm_plugin.doctor.run import find_run

    answer = examine(find_run(path, base, data))
    for line in answer.lines():
        click.echo(line)
    if out is not None:
        picture = draw(answer.changes, answer.data)
        if picture is None:
            click.echo(f"{out} was not drawn: there are neither layers nor pictures to show")
        else:
            save(picture, out)
            click.echo(f"look at {out}")
    if answer.wrong:
        ctx.exit(1)


def _environment(ctx: click.Context) -> None:
    from mldm_plugin.cli import environment

    for title, lines in (
        ("versions", environment.versions()),
        ("devices", environment.devices()),
        ("weights", environment.weights()),
        ("plugins", environment.plugins()),
    ):
        click.echo(title)
        for line in lines:
            click.echo(f"  {line}")
    conflicts = environment.conflicts()
    click.echo("conflicts" + ("" if conflicts else ": none"))
    for conflict in conflicts:
        click.echo(click.wrap_text(conflict.what, 100, "  ", "  "))
        for command in conflict.mend:
            click.echo(f"      {command}")
    click.echo(environment.verdict(conflicts))
    if conflicts:
        ctx.exit(1)
