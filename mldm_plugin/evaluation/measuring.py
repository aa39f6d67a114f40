"""What each metric says of each picture, written down picture by picture."""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mldm_plugin.errors import MldmError, PluginError
from mldm_plugin.evaluation.notes import Key, Notes
from mldm_plugin.evaluation.picture import Picture
from mldm_plugin.plugins import Plugins

log = logging.getLogger(__name__)

NEEDED = {"judges": "it needs --judges, what `mldm faces judges` trains"}  # pictures otherwise
# Among the values of a picture: (k, 4) pixels of the faces and the hands that its metrics looked at.
BOXES = {"faces": "faces@boxes", "hands": "hands@boxes"}


class PictureMetric(Protocol):
    """A number for each picture.

    Attributes:
        title: a few words for a table.
        better: which way is good.
        asks: what a case must come with, for the report where none does.
        networks: a few words on each frozen network, beginning with its name; may be missing.
    """

    title: str
    better: Literal["smaller", "larger"]
    asks: str

    def __call__(self, picture: Picture) -> float | None:
        """The value; a failure (no face where one is asked for) is a value, too. None where nothing is asked."""


@runtime_checkable
class SetMetric(Protocol):
    """A number for a set of pictures beside the photographs.

    Attributes: as for `PictureMetric`, and two that may be missing: `alone`, whether photographs do not enter, and
    `parts`, called like `distance`: name → value of each part of what it looks at.
    """

    title: str
    better: Literal["smaller", "larger"]

    def features(self, picture: Picture) -> Tensor:
        """(k, d) float32: a row for the picture, or one for each of what is looked at in it."""

    def distance(self, made: Tensor, real: Tensor) -> float:
        """Of rows (n, d) of drawn pictures and (m, d) of photographs."""


@dataclass
class Metrics:
    """The metrics of an evaluation by name, and why others are not among them."""

    ready: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def only(self, names: Sequence[str]) -> Metrics:
        """Some of the metrics that are ready."""
        return Metrics({name: self.ready[name] for name in names})

    def drop(self, missing: Mapping[str, str]) -> None:
        """Take out metrics that failed somewhere."""
        for name, reason in missing.items():
            self.missing[name] = reason
            self.ready.pop(name, None)

    def label(self, name: str) -> str:
        """What values of a metric are written down under: its name, and what it is made of, so that none is stale."""
        metric = self.ready[name]
        source = inspect.getsourcefile(type(metric))
        text = Path(source).read_bytes() if source else b""
        words = [*getattr(metric, "networks", ()), metric.title]
        return f"{name}@{hashlib.sha256(text + repr(words).encode()).hexdigest()[:8]}"

    @property
    def of_sets(self) -> list[str]:
        return [name for name, metric in self.ready.items() if isinstance(metric, SetMetric)]

    @property
    def of_pictures(self) -> list[str]:
        return [name for name, metric in self.ready.items() if not isinstance(metric, SetMetric)]


def make_metrics(plugins: Plugins, wanted: Sequence[str], given: Mapping[str, Any]) -> Metrics:
    """The metrics that are asked for, or all: what cannot be had (weights, pictures of a person) is said, not raised.

    Args:
        wanted: names; empty for all that are registered.
        given: pictures, and the folder of judges, that a constructor may ask for by the name of its argument, None
            where they are not there.

    Raises:
        PluginError: a name that nobody registered.
    """
    metrics = Metrics()
    for name in wanted or plugins.metrics.entries:
        factory: Callable[..., Any] = plugins.metrics[name]
        asked = inspect.signature(factory).parameters
        lacking = [one for one in given if one in asked and given[one] is None]
        if lacking:
            metrics.missing[name] = NEEDED.get(lacking[0], f"it needs pictures of --{lacking[0].replace('_', '-')}")
            continue
        try:
            metric = factory(**{one: given[one] for one in given if one in asked})
            metrics.ready[name] = _checked(metric)
        except MldmError as error:
            metrics.missing[name] = str(error)
        except Exception as error:  # of a metric that somebody else wrote
            metrics.missing[name] = f"it cannot be made ({type(error).__name__}: {error})"
    return metrics


def _checked(metric: Any) -> Any:
    """The metric; raises PluginError for one that lacks what a table needs."""
    wanted = ("title", "better") if isinstance(metric, SetMetric) else ("title", "better", "asks")
    for name in wanted:
        if not isinstance(getattr(metric, name, None), str):
            raise PluginError(f"it has no text {name!r}: a metric has {', '.join(wanted)}.")
    if metric.better not in ("smaller", "larger"):
        raise PluginError(f"better is {metric.better!r}, expected 'smaller' or 'larger'.")
    return metric


def measure(
    pictures: Sequence[tuple[Key, Callable[[], Picture]]],
    metrics: Metrics,
    notes: Notes,
    *,
    share: tuple[int, int] = (0, 1),
    title: str = "",
) -> None:
    """Measure what is not yet written down, each process its share of the pictures.

    A metric that fails on a picture is left out from then on, with the reason in `metrics.missing`.
    """
    labels = {name: metrics.label(name) for name in metrics.ready}
    own = [(key, make) for key, make in pictures[share[0] :: share[1]] if notes.lacks(key, labels.values())]
    for key, make in tqdm(own, desc=title, disable=share[0] != 0 or not own, unit="picture"):
        picture = make()
        lacking = set(notes.lacks(key, labels.values()))
        values = {n: _measured(n, picture, metrics) for n in labels if labels[n] in lacking and n in metrics.ready}
        found = {labels[name]: value for name, value in values.items() if name in metrics.ready}
        for kind in vars(picture).keys() & BOXES:  # some metric asked for them
            found[BOXES[kind]] = np.array([one.box.tolist() for one in getattr(picture, kind)]).reshape(-1, 4)
        notes.add(key, found)


def _measured(name: str, picture: Picture, metrics: Metrics) -> float | np.ndarray | None:
    metric = metrics.ready[name]
    try:
        with torch.no_grad():
            if isinstance(metric, SetMetric):
                return metric.features(picture).detach().float().cpu().numpy()
            value = metric(picture)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"it gave {value}")
            return None if value is None else float(value)
    except Exception as error:  # of a metric that somebody else wrote: the others go on
        log.warning(f"metric {name} failed on picture {picture.case.key}: {type(error).__name__}: {error}")
        metrics.missing[name] = f"it failed on picture {picture.case.key} ({type(error).__name__}: {error})"
        del metrics.ready[name]
        return None
