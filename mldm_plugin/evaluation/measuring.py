"""What each metric says of each picture, written down picture by picture."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mldm_plugin.errors import MldmError
from mldm_plugin.evaluation.notes import Key, Notes
from mldm_plugin.evaluation.picture import Picture
from mldm_plugin.plugins import Plugins

log = logging.getLogger(__name__)

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

    Attributes: as for `PictureMetric`.
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

    @property
    def of_sets(self) -> list[str]:
        return [name for name, metric in self.ready.items() if isinstance(metric, SetMetric)]

    @property
    def of_pictures(self) -> list[str]:
        return [name for name, metric in self.ready.items() if not isinstance(metric, SetMetric)]


def make_metrics(plugins: Plugins, wanted: Sequence[str], given: Mapping[str, Sequence[Picture] | None]) -> Metrics:
    """The metrics that are asked for, or all: what cannot be had (weights, pictures of a person) is said, not raised.

    Args:
        wanted: names; empty for all that are registered.
        given: pictures that a constructor may ask for by the name of its argument, None where they are not there.

    Raises:
        PluginError: a name that nobody registered.
    """
    metrics = Metrics()
    for name in wanted or plugins.metrics.entries:
        factory: Callable[..., Any] = plugins.metrics[name]
        asked = inspect.signature(factory).parameters
        lacking = [one for one in given if one in asked and given[one] is None]
        if lacking:
            metrics.missing[name] = f"it needs pictures of --{lacking[0].replace('_', '-')}"
            continue
        try:
            metrics.ready[name] = factory(**{one: given[one] for one in given if one in asked})
        except MldmError as error:
            metrics.missing[name] = str(error)
        except Exception as error:  # of a metric that somebody else wrote
            metrics.missing[name] = f"it cannot be made ({type(error).__name__}: {error})"
    return metrics


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
    own = [(key, make) for key, make in pictures[share[0] :: share[1]] if notes.lacks(key, metrics.ready)]
    for key, make in tqdm(own, desc=title, disable=share[0] != 0 or not own, unit="picture"):
        picture = make()
        values = {name: _measured(name, picture, metrics) for name in notes.lacks(key, metrics.ready)}
        found = {name: value for name, value in values.items() if name in metrics.ready}
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
            return None if value is None else float(value)
    except Exception as error:  # of a metric that somebody else wrote: the others go on
        log.warning(f"metric {name} failed on picture {picture.case.key}: {type(error).__name__}: {error}")
        metrics.missing[name] = f"it failed on picture {picture.case.key} ({type(error).__name__}: {error})"
        del metrics.ready[name]
        return None
