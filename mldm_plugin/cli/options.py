"""Options that several commands take."""

from __future__ import annotations

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
