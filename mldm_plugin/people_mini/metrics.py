"""A metric for drawn people: `mldm evaluate --loss-plugin mldm_plugin.people_mini.metrics`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from mldm_plugin import hookimpl
from mldm_plugin.people_mini import CLASSIFIER
from mldm_plugin.people_mini.attributes import DRAWING, attributes_of
from mldm_plugin.people_mini.classifier import QUESTIONS, answered, read_classifier

SIDE = 128  # of the pictures that the classifier learnt


class Attributes:
    """The share of the attributes that a drawing's caption says which the picture shows.

    A classifier trained on drawings answers; docs/people_mini.md has how often it is right.
    """

    title = "attributes of drawn people shown"
    better = "larger"
    asks = "captions of drawings"

    def __init__(self) -> None:
        self.network = read_classifier(CLASSIFIER, torch.device("cpu"))

    def __call__(self, picture: Any) -> float | None:
        """The share in [0, 1]; None for a caption that says none of the attributes that are asked about."""
        text = picture.case.text
        said = {q: a for q, a in attributes_of(text).items() if q in QUESTIONS and a in QUESTIONS[q]}
        if not text.startswith(DRAWING) or not said:
            return None
        small = F.interpolate(picture.image[None], (SIDE, SIDE), mode="bicubic", antialias=True).clamp(-1, 1)
        answers = answered(self.network, small)[0].tolist()
        shown = {q: QUESTIONS[q][answers[i]] for i, q in enumerate(QUESTIONS)}
        return sum(shown[q] == a for q, a in said.items()) / len(said)


@hookimpl
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("attributes", Attributes)
