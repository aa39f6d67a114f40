"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path

import click

loss_plugin = click.option(
    "--loss-plugin",
    "names",
    multiple=True,
    metavar="NAME",
    help="A plugin beside the built-in one: an installed name, a dotted module or a .py file. May be repeated.",
)
overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A.B=C",
    help="Override one value, for example losses.face.weight=0.3. May be repeated.",
)
# Of a RUN that is looked at, what its own records do not say.
base = click.option(
    "--base", metavar="MODEL", help="What RUN was trained on: a pipeline's folder, a file, a name on the Hub."
)
data = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="What RUN was trained on: its pictures and masks.",
)
