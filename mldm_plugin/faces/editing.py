"""The editing page: a mask that is painted, attributes that are turned over, and the face that comes of them.

What is asked for is a number of a held-out face, or a face of conditions; never a path, and nothing is written.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from mldm_plugin.conditions.celeba import COLOURS
from mldm_plugin.conditions.pipeline import ATTRIBUTES, MASK
from mldm_plugin.data.batch import Example
from mldm_plugin.errors import DataError
from mldm_plugin.evaluation.cases import Photographs
from mldm_plugin.faces.edits import parts_of
from mldm_plugin.faces.model import FacesModel
from mldm_plugin.page.server import Answer, Body, LocalServer, RefusedError, as_json

MOST_STEPS, MOST_GUIDANCE, MOST_SEED = 1000, 30.0, 2**32 - 1
_FACE = re.compile(r"/faces/(\d{1,9})(?:/(picture|labels))?")


class EditServer(LocalServer):
    """Serves the page of one model until it is shut down.

    Args:
        model: that draws; one face at a time.
        photographs: held-out faces to begin from; None for none.
        steps: of DDIM, until the page says otherwise.
        port: 0 for any that is free.
    """

    what, folder, name, title = "page", "faces/page", "edit", "mldm faces edit"

    def __init__(self, model: FacesModel, photographs: Photographs | None, steps: int = 25, port: int = 0) -> None:
        super().__init__(port)
        self.model, self.photographs, self.steps = model, photographs, steps

    def read(self, path: str) -> Answer:
        """What the model knows, or a held-out face: its attributes, its picture, the labels of its mask."""
        if path == "/model":
            return as_json(self.told())
        found = _FACE.fullmatch(path)
        if found is None or self.photographs is None or int(found[1]) >= len(self.photographs):
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is no such face.")
        with self.lock:
            example = self.photographs.look(int(found[1]))
        if found[2] == "picture":
            return _png(to_pil_image(example.pixel_values / 2 + 0.5))
        if found[2] == "labels":
            if MASK not in example.conditions:
                raise DataError("this face has no mask.")
            return "application/octet-stream", example.conditions[MASK].numpy().tobytes()
        return as_json(_in_words(example))

    def write(self, path: str, body: Body) -> Answer:
        """A face of the conditions that the page sends."""
        if path != "/face":
            raise RefusedError(HTTPStatus.NOT_FOUND, "only a face can be drawn.")
        asked = body.value()
        steps = _whole(asked, "steps", 1, MOST_STEPS)
        seed = _whole(asked, "seed", 0, MOST_SEED)
        guidance: Any = asked.get("guidance")
        is_number = isinstance(guidance, int | float) and not isinstance(guidance, bool)
        if not is_number or not 0 <= guidance <= MOST_GUIDANCE:  # as a NaN is not, either
            raise DataError(f"guidance is {guidance!r}, expected a number from 0 to {MOST_GUIDANCE:g}.")
        given = self.conditions_of(asked)
        with self.lock:
            return _png(self.model.draw(given, torch.Generator().manual_seed(seed), steps, float(guidance)))

    def conditions_of(self, asked: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the page gives of attributes and mask; what is null, is absent.

        Raises:
            DataError: a condition that the model does not know, or cannot read.
        """
        given = {}
        for name in (ATTRIBUTES, MASK):
            if (value := asked.get(name)) is None:
                continue
            if name not in self.model.encoders:
                raise DataError(f"this model knows no {name}.")
            encoder = self.model.encoders[name]
            given[name] = encoder.read(self._labels(value) if name == MASK else value)
        return given

    def told(self) -> dict[str, Any]:
        """What the page is made from."""
        encoders = self.model.encoders
        mask, attributes = encoders.get(MASK), encoders.get(ATTRIBUTES)
        names = [] if mask is None else ["nothing", *parts_of(mask)]
        return {
            "name": self.model.name,
            "side": self.model.side,
            "steps": self.steps,
            "drops": self.model.drops,
            "attributes": None if attributes is None else getattr(attributes, "names", []),
            "parts": None if mask is None else [[name, COLOURS[k % len(COLOURS)]] for k, name in enumerate(names)],
            "resolution": getattr(mask, "resolution", self.model.side),
            "faces": 0 if self.photographs is None else len(self.photographs),
        }

    def _labels(self, value: Any) -> np.ndarray:
        """A mask of base64, a byte a pixel, row by row."""
        side = getattr(self.model.encoders[MASK], "resolution", self.model.side)
        try:
            content = base64.b64decode(value, validate=True)
        except (TypeError, ValueError, binascii.Error) as error:
            raise DataError(f"the mask is no base64: {error}") from error
        if len(content) != side * side:
            raise DataError(f"the mask has {len(content)} pixels, expected {side} times {side}.")
        return np.frombuffer(content, np.uint8).reshape(side, side)


def _in_words(example: Example) -> dict[str, Any]:
    """What the page is told of a held-out face."""
    attributes = example.conditions.get(ATTRIBUTES)
    return {
        "attributes": None if attributes is None else attributes.int().tolist(),
        "masked": MASK in example.conditions,
    }


def _whole(asked: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = asked.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise DataError(f"{name} is {value!r}, expected a whole number from {least} to {most}.")
    return value


def _png(picture: Any) -> Answer:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return "image/png", stream.getvalue()
