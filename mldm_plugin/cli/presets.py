"""`mldm presets`: the presets there are, what is in them, and whether one is sound."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mldm_plugin.cli import options

if TYPE_CHECKING:
    from mldm_plugin.preset import Preset


@click.group()
def presets() -> None:
    """The presets: what a run optimises."""


@presets.command("list")
@click.option(
    "--group", type=click.Choice(["task", "study", "loss", "paper", "faces"]), help="Only those of one group."
)
@options.loss_plugin
def list_presets(group: str | None, names: tuple[str, ...]) -> None:
    """List the presets that can be named: by task, of our studies, of single losses, of the papers, of faces."""
    from mldm_plugin.preset import GROUPS, built_in_presets

    known = {name: built_in_presets(name) for name in GROUPS if group in (None, name)}
    if plugins := _plugins(names):
        known["plugins"] = {name: Path(path) for name, path in plugins.presets.entries.items()}
    for of_group in known.values():
        width = max(len(name) for name in of_group)
        for name, path in sorted(of_group.items()):
            first, *rest = click.wrap_text(summary(path), 96 - width).splitlines() or [""]
            click.echo(f"{name:<{width}}  {first}")
            for line in rest:
                click.echo(" " * (width + 2) + line)


@presets.command()
@click.argument("name")
@click.option("--resolved", is_flag=True, help="Every value that a run would have, defaults and --set included.")
@options.overrides
@options.loss_plugin
def show(name: str, resolved: bool, overrides: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Print the preset NAME, a name or a .yaml file, with its comments, and what each training script is given."""
    from mldm_plugin.errors import PresetError
    from mldm_plugin.preset import find_preset, load_preset
    from mldm_plugin.preset_flags import as_flags

    if resolved:
        click.echo(load_preset(name, overrides, plugins=_plugins(("mldm", *names))).dump(), nl=False)
        return
    if overrides:
        raise PresetError("--set changes the resolved preset: add --resolved.")
    plugins = _plugins(names)
    click.echo(_read(find_preset(name, plugins)), nl=False)
    for script, section in load_preset(name, plugins=plugins).training.items():
        click.echo(click.wrap_text(f"{script}.py is given {shlex.join(as_flags(section))}", 110, "# ", "#     "))


@presets.command()
@click.argument("name")
@options.overrides
@options.loss_plugin
def validate(name: str, overrides: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Check the preset NAME, a name or a .yaml file, and tell all its faults at once.

    Losses, their options, the weighting and the trainer's flags are checked. Weights are not fetched.
    """
    click.echo(f"{name} is sound: {describe(check(name, overrides, _plugins(('mldm', *names))))}")


@presets.command()
@click.argument("name")
@click.argument("dest", type=click.Path(path_type=Path))
@options.loss_plugin
def copy(name: str, dest: Path, names: tuple[str, ...]) -> None:
    """Copy the preset NAME to DEST, a new .yaml file or a folder, to change it there."""
    from mldm_plugin.cli.new_file import write_new
    from mldm_plugin.errors import PresetError
    from mldm_plugin.preset import find_preset

    source = find_preset(name, _plugins(names))
    target = dest / source.name if dest.is_dir() else dest
    if target.suffix not in (".yaml", ".yml"):
        raise PresetError(f"{target} would not be found as a preset: give it the ending .yaml, or name a folder.")
    write_new(target, _read(source))
    click.echo(f"wrote {target}; use it with --preset {target}")


def summary(path: Path) -> str:
    """What the comment at the head of a preset says it is: all of it up to the line `# Needs:`."""
    lines = []
    for line in _read(path).splitlines():
        if not line.startswith("#") or line.startswith("# Needs:"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def check(name: str, overrides: Sequence[str], plugins: Any) -> Preset:
    """The preset, with its losses and with the trainer's flags checked.

    Raises:
        PresetError: all faults of both.
    """
    from mldm_plugin.preset import load_preset
    from mldm_plugin.training.command_line import training_faults

    return load_preset(name, overrides, plugins=plugins, check_training=training_faults)


def describe(preset: Preset) -> str:
    """A preset in a line."""
    terms = []
    for name, loss in preset.losses.items():
        if loss.weight == 0:
            terms.append(f"{name} off")
            continue
        reach = "every t" if loss.max_timestep is None else f"t <= {loss.max_timestep}"
        how = ", detached" if loss.detach else ", balanced" if loss.balance else ""
        terms.append(f"{name} {loss.weight:g} at {reach}{how}")
    mix = f"{preset.combine} mix of the plain loss and " + "; ".join(terms) if terms else "the plain loss alone"
    return mix + ("" if preset.base.weighting == "none" else f", weighted by {preset.base.weighting}")


def _plugins(names: Sequence[str]) -> Any:
    if not names:
        return None
    from mldm_plugin.plugins import load_plugins

    return load_plugins(names)


def _read(path: Path) -> str:
    from mldm_plugin.errors import PresetError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PresetError(f"preset {path} cannot be read: {error}") from error
