"""The hooks a plugin can implement. A hook is a name, named arguments and one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from mldm_plugin.engine.report import LossReport
    from mldm_plugin.engine.step import DiffusionStep

hookspec = pluggy.HookspecMarker("mldm")
hookimpl = pluggy.HookimplMarker("mldm")


@hookspec
def register_losses(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """Call `register(name, loss_class)` for each loss; a preset then asks for it by name."""


@hookspec
def register_base_weightings(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """Call `register(name, weighting_class)` for each weighting of the plain diffusion loss."""


@hookspec
def register_presets(register: Callable[[str, Path], None]) -> None:
    """Call `register(name, path)` for each preset file that the plugin brings."""


@hookspec
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """Call `register(name, metric_class)` for each metric of `mldm evaluate`."""


@hookspec
def register_condition_encoders(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """Call `register(name, encoder_class)` for each condition that a model can be given, a `ConditionEncoder`."""


@hookspec
def after_loss(step: DiffusionStep, report: LossReport) -> None:
    """Look at a finished step: the estimate, every term's value, weight and gate. Change nothing."""
