"""`mldm doctor`: what this environment holds, and what in it does not go together."""

from __future__ import annotations

import click


@click.command()
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Versions, GPU, weights and plugins of this environment; exit status 1 if something conflicts."""
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
