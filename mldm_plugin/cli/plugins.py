"""`mldm plugins`: who is loaded, who is installed, and which hooks each implements."""

from __future__ import annotations

from typing import Any

import click

from mldm_plugin.cli import options


@click.command()
@options.loss_plugin
def plugins(names: tuple[str, ...]) -> None:
    """The built-in and the installed plugins, and the hooks that each implements."""
    from mldm_plugin.plugins import ENTRY_POINT_GROUP, installed_plugins, load_plugins

    built_in = load_plugins()
    click.echo("built-in: always loaded, --loss-plugin mldm")
    for name in built_in.names():
        click.echo(f"  {name}: {_hooks(built_in, name)}")
    installed = installed_plugins()
    click.echo(f"installed: entry points of group {ENTRY_POINT_GROUP!r}" + ("" if installed else ": none"))
    for name, module in installed.items():
        click.echo(f"  {name} ({module}): {hooks_or_fault(name)}")
    for name in names:
        click.echo(f"given\n  {name}: {_hooks(load_plugins([name]), name)}")


def hooks_or_fault(name: str) -> str:
    """The hooks of an installed plugin, or why it does not load."""
    from mldm_plugin.errors import MldmError
    from mldm_plugin.plugins import load_plugins

    try:
        return _hooks(load_plugins([name]), name)
    except MldmError as error:
        return f"does not load: {error}"


def _hooks(loaded: Any, name: str) -> str:
    plugin = loaded.manager.get_plugin(name)
    if plugin is None:  # a module that is loaded under another name, such as a built-in one
        return "loaded already"
    return ", ".join(sorted(caller.name for caller in loaded.manager.get_hookcallers(plugin) or ()))
