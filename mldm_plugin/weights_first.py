"""Weights before anything else: a run that lacks one ends before its model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mldm_plugin.perceptual.weights.cache import fetch, ready

if TYPE_CHECKING:
    from mldm_plugin.plugins import Plugins
    from mldm_plugin.preset import Preset


def needed(preset: Preset, plugins: Plugins) -> list[str]:
    """The weights that the losses of a preset will ask for, by their names in `mldm weights list`.

    A loss class says them by `weight_files(options)`, with its options filled in; one that does not is passed over. A
    loss of weight 0 is never built.
    """
    names: list[str] = []
    for name, settings in preset.losses.items():
        said = getattr(plugins.losses[name], "weight_files", None)
        if settings.weight > 0 and said is not None:
            names += said(settings.options)
    return list(dict.fromkeys(names))


def fetch_needed(preset: Preset, plugins: Plugins) -> None:
    """Fetch those of `needed` that this machine lacks.

    Raises:
        WeightsError: as `fetch`.
    """
    for name in needed(preset, plugins):
        if ready(name) is None:
            fetch(name)
