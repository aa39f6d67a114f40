"""`mldm new-loss NAME`: a working loss plugin and its test, to be changed into one's own."""

from __future__ import annotations

import importlib
import importlib.util
import keyword
import pkgutil
import re
from pathlib import Path

import click

from mldm_plugin.errors import MldmError

# The two files that are written, as the real modules beside this one.
TEMPLATE, TEMPLATE_CLASS = "template_loss", "TemplateLoss"
# Names that metrics.jsonl and the logs have for something else.
RESERVED = {"loss", "ldm", "lr", "step"}


@click.command("new-loss")
@click.argument("name")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    show_default="the current folder",
    help="Where to write.",
)
def new_loss(name: str, out: Path) -> None:
    """Write NAME.py, a working loss plugin, and test_NAME.py, its test."""
    from mldm_plugin.cli.new_file import refuse_existing, write_new

    loss, test = out / f"{name}.py", out / f"test_{name}.py"
    _refuse_bad_name(name)
    refuse_existing(loss)
    refuse_existing(test)
    _refuse_taken_name(name)
    write_new(loss, render("template_loss.py", name))
    try:
        write_new(test, render("template_loss_test.py", name))
    except MldmError:
        loss.unlink()
        raise
    click.echo(f"wrote {loss} and {test}")
    click.echo(f"  test it:  python -m pytest {test}")
    click.echo(f"  use it:   --loss-plugin mldm --loss-plugin {loss} --set losses.{name}.weight=0.1")


def render(template: str, name: str) -> str:
    """The text of a template for a loss called `name`."""
    text = Path(__file__).with_name(template).read_text(encoding="utf-8")
    return text.replace(TEMPLATE, name).replace(TEMPLATE_CLASS, class_name(name))


def class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _refuse_bad_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise MldmError(
            f"{name!r} cannot be the name of a loss: expected small letters, digits and _, a letter first, and no "
            "word of Python's, for example soft_edges."
        )


def _refuse_taken_name(name: str) -> None:
    if name in RESERVED:
        raise MldmError(f"{name!r} is what the logs call something else: choose another name.")
    built_in = importlib.import_module("mldm_plugin.hooks")
    if name in {module.name for module in pkgutil.iter_modules(built_in.__path__)}:
        raise MldmError(f"{name!r} is a built-in loss or weighting: choose another name.")
    if importlib.util.find_spec(name) is not None:
        raise MldmError(f"{name!r} is a module in this environment, which {name}.py would hide: choose another name.")
