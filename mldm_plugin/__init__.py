"""Masked LDM losses for existing diffusion trainers.

The public names are imported when first used, so that `import mldm_plugin` and `mldm --help` need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mldm_plugin.conditions.encoder import ConditionEncoder
    from mldm_plugin.engine.host_loss import read_host_loss
    from mldm_plugin.engine.report import LossReport
    from mldm_plugin.engine.stack import LossStack
    from mldm_plugin.engine.step import DiffusionStep
    from mldm_plugin.errors import MldmError
    from mldm_plugin.hookspecs import hookimpl
    from mldm_plugin.plugins import load_plugins
    from mldm_plugin.preset import load_preset

__version__ = "0.1.0"
__all__ = [
    "ConditionEncoder",
    "DiffusionStep",
    "LossReport",
    "LossStack",
    "MldmError",
    "hookimpl",
    "load_plugins",
    "load_preset",
    "read_host_loss",
]

_HOMES = {
    "ConditionEncoder": "conditions.encoder",
    "DiffusionStep": "engine.step",
    "LossReport": "engine.report",
    "LossStack": "engine.stack",
    "MldmError": "errors",
    "hookimpl": "hookspecs",
    "load_plugins": "plugins",
    "load_preset": "preset",
    "read_host_loss": "engine.host_loss",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
