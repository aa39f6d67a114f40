"""`mldm report`: the page of a run."""

from __future__ import annotations

from pathlib import Path

import click

from mldm_plugin.cli import options


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="F.html",
    help="The page (default: report.html in RUN, beside its metrics.jsonl).",
)
@options.base
@options.data
@click.option(
    "--watch",
    type=click.IntRange(1),
    metavar="SECONDS",
    help="Write the page again every so often, while RUN trains; in a browser it follows. Ctrl-C ends it.",
)
def report(run: Path, out: Path | None, base: str | None, data: Path | None, watch: int | None) -> None:
    """Write the page of the training RUN: one HTML file that loads nothing from elsewhere.

    What was trained and from what, whether it did anything, its panels as a film, its losses, how strong each was, its
    pictures and masks, and the command that repeats it. RUN is the folder of a run of our trainers or of an attached
    script, trained or training, or a file of weights.
    """
    from mldm_plugin.run_page import write

    if watch is not None:
        write.watch(run, out, base, data, watch, lambda page: click.echo(f"look at {page}; Ctrl-C ends it"))
        return
    click.echo(f"look at {write.write_page(run, out, base, data)}")
