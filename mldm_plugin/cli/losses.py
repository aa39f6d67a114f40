"""`mldm losses`: the losses and base weightings, and what can be set in them."""

from __future__ import annotations

from typing import Any

import click

from mldm_plugin.cli import options


@click.command()
@options.loss_plugin
def losses(names: tuple[str, ...]) -> None:
    """The losses and base weightings, with their options."""
    from mldm_plugin.plugins import load_plugins
    from mldm_plugin.preset import LossSettings

    plugins = load_plugins(names)
    for title, table in (("Losses", plugins.losses), ("Base weightings", plugins.base_weightings)):
        click.echo(f"{title}\n")
        for name, factory in table.entries.items():
            _show(name, factory, _origin(plugins, table.origins[name]))
    click.echo("Every loss also takes\n")
    for name, field in LossSettings.model_fields.items():
        click.echo(f"    {_option(name, field.annotation, field.is_required(), field.default)}")
        _wrapped(field.description or "", 8)


def _show(name: str, factory: Any, origin: str) -> None:
    from mldm_plugin.cli.describe import describe_options, summary

    needs = getattr(factory, "needs", None)
    click.echo(f"  {name}  ({origin})")
    _wrapped(summary(factory), 4)
    if needs is not None:
        click.echo(f"    needs: {', '.join(sorted(needs)) or 'latents only'}")
    for option in describe_options(factory):
        click.echo(f"    {option.name}: {option.type} = {option.default}")
        _wrapped(option.meaning, 8)
    click.echo()


def _option(name: str, annotation: Any, required: bool, default: Any) -> str:
    from mldm_plugin.cli.describe import type_text, value_text

    return f"{name}: {type_text(annotation)} = {'required' if required else value_text(default)}"


def _origin(plugins: Any, plugin_name: str) -> str:
    module = getattr(plugins.manager.get_plugin(plugin_name), "__name__", "")
    return "built-in" if module.startswith("mldm_plugin.hooks.") else f"from {plugin_name}"


def _wrapped(text: str, indent: int) -> None:
    if text:
        click.echo(click.wrap_text(text, 100, " " * indent, " " * indent))
