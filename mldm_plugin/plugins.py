"""Finding and loading plugins: one fresh pluggy manager and one table of names per call."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import pluggy
from pydantic import BaseModel, ConfigDict, create_model

from mldm_plugin import hookspecs
from mldm_plugin.errors import PluginError, nearest

ENTRY_POINT_GROUP = "mldm"
BUILT_IN = "mldm"


@dataclass
class Table:
    """Names that plugins registered, what they stand for, and which plugin brought them."""

    kind: str
    reserved: frozenset[str] = frozenset()
    entries: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    built_in: set[str] = field(default_factory=set)

    def registrar(self, origin: str) -> Callable[[str, Any], None]:
        """The `register` that one plugin is handed."""

        def register(name: str, entry: Any) -> None:
            if name in self.reserved:
                raise PluginError(
                    f"{origin} registers a {self.kind} {name!r}, a name with a meaning of its own: rename it."
                )
            if not name or set(name) & set("/. ="):  # a name is a key of logs and presets: face/gated, losses.face
                raise PluginError(
                    f"{origin} registers a {self.kind} {name!r}: rename it, without '/', '.', '=' and blanks."
                )
            if name in self.entries:
                raise PluginError(
                    f"{self.kind} {name!r} is registered by {self.origins[name]} and again by {origin}: "
                    "rename one of them."
                )
            self.entries[name] = entry
            self.origins[name] = origin

        return register

    def of_users(self) -> list[str]:
        """Names that no built-in plugin brought."""
        return [name for name, origin in self.origins.items() if origin not in self.built_in]

    def __getitem__(self, name: str) -> Any:
        if name not in self.entries:
            raise PluginError(f"unknown {self.kind} {name!r}: {nearest(name, self.entries)}")
        return self.entries[name]


@dataclass
class Plugins:
    """The plugins of one run."""

    manager: pluggy.PluginManager
    losses: Table = field(default_factory=lambda: Table("loss", frozenset({"loss", "ldm", "lr", "step"})))
    base_weightings: Table = field(default_factory=lambda: Table("base weighting", frozenset({"none"})))
    presets: Table = field(default_factory=lambda: Table("preset"))
    metrics: Table = field(default_factory=lambda: Table("metric"))
    condition_encoders: Table = field(default_factory=lambda: Table("condition"))

    def names(self) -> list[str]:
        """The names of the loaded plugins, built-in ones first."""
        return [name for name, _ in self.manager.list_name_plugin()]


def load_plugins(names: Sequence[str] = ()) -> Plugins:
    """The built-in plugins and those in `names`.

    Args:
        names: each an entry point of group `mldm`, a dotted module, or a path to a .py file. `mldm` is the
            built-in set, which is always there.

    Raises:
        PluginError: a plugin that is not found, does not import, implements no hook or an unknown one, or
            registers a name twice.
    """
    manager = pluggy.PluginManager("mldm")
    manager.add_hookspecs(hookspecs)
    for package in ("mldm_plugin.hooks", "mldm_plugin.hooks.metrics", "mldm_plugin.hooks.conditions"):
        for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
            if not info.ispkg:  # a metric may be called as a loss is
                name = f"{package}.{info.name}".removeprefix("mldm_plugin.hooks.")
                name = name if manager.has_plugin(info.name) else info.name
                manager.register(importlib.import_module(f"{package}.{info.name}"), name)
    built_in = {name for name, _ in manager.list_name_plugin()}
    for name in dict.fromkeys(names):
        if name != BUILT_IN:
            _register(manager, name)
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        known = ", ".join(n for n, _ in inspect.getmembers(hookspecs) if hasattr(manager.hook, n))
        raise PluginError(f"{error} Known hooks: {known}.") from error
    plugins = Plugins(manager)
    plugins.losses.built_in = built_in
    _fill(plugins)
    return plugins


def installed_plugins() -> dict[str, str]:
    """Entry points of group `mldm` in this environment: name → module."""
    return {e.name: e.value for e in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}


def options_model(factory: Callable[..., Any]) -> type[BaseModel]:
    """A pydantic model of the options of a loss: the keyword arguments of its constructor.

    Unknown keys are refused; values are checked against the annotations.
    """
    parameters = inspect.signature(factory).parameters.values()
    if any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters):
        raise PluginError(
            f"{factory.__name__} takes *args or **kwargs: name its options, so that presets can be checked."
        )
    function = vars(factory).get("__init__", factory) if isinstance(factory, type) else factory
    hints = get_type_hints(function, include_extras=True)
    fields: Any = {p.name: (hints.get(p.name, Any), ... if p.default is p.empty else p.default) for p in parameters}
    return create_model(factory.__name__, __config__=ConfigDict(extra="forbid"), **fields)


def _register(manager: pluggy.PluginManager, name: str) -> None:
    plugin = _import(name)
    before = {id(p) for p in manager.get_plugins()}
    if id(plugin) in before:
        return
    try:
        manager.register(plugin, f"{name} (plugin)" if manager.has_plugin(name) else name)
    except pluggy.PluginValidationError as error:
        raise PluginError(f"plugin {name!r} does not fit its hook: {' '.join(str(error).split())}") from error
    if not manager.get_hookcallers(plugin):
        raise PluginError(
            f"plugin {name!r} implements no hook: mark a function such as register_losses(register) with "
            "@hookimpl from mldm_plugin."
        )


def _import(name: str) -> Any:
    try:
        if name.endswith(".py"):
            return _import_file(Path(name))
        for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP, name=name):
            return entry_point.load()
        return importlib.import_module(name)
    except PluginError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and name.split(".")[0] == error.name.split(".")[0]:
            raise PluginError(
                f"plugin {name!r} is no entry point of group 'mldm', no module and no .py file: "
                f"{nearest(name, [BUILT_IN, *installed_plugins()])}"
            ) from error
        raise PluginError(f"plugin {name!r} does not import: {error}. Install what it needs.") from error
    except (Exception, SystemExit) as error:
        raise PluginError(f"plugin {name!r} does not import: {type(error).__name__}: {error}") from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise PluginError(f"plugin file {path} does not exist.")
    module_name = f"mldm_plugin_file_{path.stem}_{zlib.crc32(str(path.resolve()).encode()):08x}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"plugin file {path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling look the module up by its name
    spec.loader.exec_module(module)
    return module


def _fill(plugins: Plugins) -> None:
    tables = {
        "register_losses": plugins.losses,
        "register_base_weightings": plugins.base_weightings,
        "register_presets": plugins.presets,
        "register_metrics": plugins.metrics,
        "register_condition_encoders": plugins.condition_encoders,
    }
    for hook_name, table in tables.items():
        # One plugin at a time, so that the table knows who brought each name.
        for implementation in getattr(plugins.manager.hook, hook_name).get_hookimpls():
            arguments = {"register": table.registrar(implementation.plugin_name)}
            try:
                implementation.function(**{n: arguments[n] for n in implementation.argnames})
            except PluginError:
                raise
            except Exception as error:
                raise PluginError(
                    f"plugin {implementation.plugin_name!r} failed in {hook_name}: {type(error).__name__}: {error}"
                ) from error
