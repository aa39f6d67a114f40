"""Figures 3 to 6 of "Conditioning Diffusion Models via Attributes and Semantic Masks for Face Generation".

What stands in one group of lines is drawn from the same noise, but for the samples of Figure 6.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from tqdm import tqdm

from mldm_plugin.conditions.pipeline import ATTRIBUTES, MASK
from mldm_plugin.data.batch import Example
from mldm_plugin.errors import DataError, MldmError
from mldm_plugin.evaluation.cases import Photographs
from mldm_plugin.evaluation.conditional import coloured
from mldm_plugin.faces.edits import BESIDE_MASK, CHANGED, LOOKED_AT, edits_with, turned
from mldm_plugin.faces.model import FacesModel, noise_for
from mldm_plugin.faces.sheet import Cell, Line

NEEDS = {3: (ATTRIBUTES,), 4: (MASK,), 5: (ATTRIBUTES, MASK), 6: ()}
ROWS = {3: (0, 1, 2), 4: (0, 1, 2), 5: (0,), 6: (0, 1)}  # held-out faces that are shown unasked
WORDS = {ATTRIBUTES: "attributes", MASK: "mask"}


@dataclass(frozen=True)
class Drawing:
    """How faces are drawn.

    Args:
        steps: of DDIM.
        guidance: 1 draws as trained.
        seed: of all noise.
        samples: of each condition in Figure 6.
    """

    steps: int = 50
    guidance: float = 1.0
    seed: int = 0
    samples: int = 6


@dataclass
class Figure:
    """One figure.

    Args:
        number: 3 to 6, of the paper.
        models: one; for Figure 6 several may be compared.
        photographs: held-out faces, with the conditions that the models know.
        drawing: how.
        rows: numbers of the faces; none for the first.
        attributes: that are changed; none for those of `edits`, as far as the model knows them.

    Attributes:
        blind: names of models that drew without a condition, which they never did in training.

    Raises:
        MldmError: a model that does not know what the figure changes, or a face that is not there.
    """

    number: int
    models: Sequence[FacesModel]
    photographs: Photographs
    drawing: Drawing
    rows: Sequence[int] = ()
    attributes: Sequence[str] = ()
    bar: tqdm = field(init=False)
    blind: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        if self.number != 6 and len(self.models) > 1:
            raise MldmError(f"figure {self.number} is of one RUN, {len(self.models)} came; figure 6 compares several.")
        for need in NEEDS[self.number]:
            if need not in self.model.encoders:
                knows = " and ".join(self.model.encoders) or "no condition"
                raise MldmError(
                    f"figure {self.number} changes {WORDS[need]}, and {self.model.name} draws from {knows}: give a run "
                    f"with --condition {' '.join(NEEDS[self.number])}."
                )
        last = len(self.photographs) - 1
        self.rows = list(self.rows) or [row for row in ROWS[self.number] if row <= last]
        if bad := [row for row in self.rows if not 0 <= row <= last]:
            raise DataError(f"--row {bad[0]}: the held-out faces have numbers 0 to {last}.")
        self.bar = tqdm(desc=f"figure {self.number}", unit="face")

    @property
    def model(self) -> FacesModel:
        return self.models[0]

    def lines(self) -> list[Line]:
        """All of it, drawn."""
        makers = {3: self.attributes_changed, 4: self.masks_edited, 5: self.both_changed, 6: self.diversity}
        with self.bar:
            return [line for row in self.rows for line in makers[self.number](row)]

    def attributes_changed(self, row: int) -> Iterator[Line]:
        """A face, then the same noise with each attribute turned over by itself."""
        versions = self._versions(self._given(row)[ATTRIBUTES], CHANGED)
        cells = [Cell(self._face({ATTRIBUTES: value}, self._noise(row)), said) for said, value in versions.items()]
        yield Line(f"noise {row + 1}", cells, begins=True)

    def masks_edited(self, row: int) -> Iterator[Line]:
        """Masks of a face, each changed in one way, over what is drawn of them from the same noise."""
        masks = self._masks(row)
        yield self._line_of_masks(masks)
        faces = [Cell(self._face({MASK: mask}, self._noise(row))) for mask in masks.values()]
        yield Line(f"face {row}", [self._photograph(row), *faces])

    def both_changed(self, row: int) -> Iterator[Line]:
        """Masks of a face side by side, and below them a line for each change of its attributes, all from one noise."""
        masks = self._masks(row)
        yield self._line_of_masks(masks)
        versions = self._versions(self._given(row)[ATTRIBUTES], BESIDE_MASK)
        for number, (said, value) in enumerate(versions.items()):
            faces = [Cell(self._face({ATTRIBUTES: value, MASK: mask}, self._noise(row))) for mask in masks.values()]
            yield Line(said, [self._photograph(row) if number == 0 else Cell(), *faces])

    def diversity(self, row: int) -> Iterator[Line]:
        """Faces of one condition from ever new noise, more of the face being told from line to line."""
        example, shown = self._look(row), [self._photograph(row)]
        if MASK in example.conditions:
            shown.append(Cell(coloured(example.conditions[MASK][0]), "its mask", exact=True))
        for number, (title, model, names) in enumerate(self._told_of()):
            given = {name: example.conditions[name] for name in names if name in example.conditions}
            cells = [shown[number] if number < len(shown) else Cell()]
            for sample in range(self.drawing.samples):
                noise = noise_for(self.drawing.seed, f"{row}", sample)
                cells.append(Cell(self._face(given, noise, model, eta=1.0)))
            yield Line(title, cells, begins=number == 0)

    def _told_of(self) -> list[tuple[str, FacesModel, Sequence[str]]]:
        """Title, model and conditions of each line of Figure 6: of one model each choice of its conditions."""
        if len(self.models) > 1:
            return [(model.name, model, tuple(model.encoders)) for model in self.models]
        known = list(self.model.encoders)
        chosen = [some for number in range(len(known) + 1) for some in combinations(known, number)]
        return [(" and ".join(WORDS.get(n, n) for n in some) or "unconditional", self.model, some) for some in chosen]

    def _versions(self, value: Tensor, unasked: Sequence[str]) -> dict[str, Tensor]:
        """Words → attributes: as they are, then each change."""
        names: list[str] = getattr(self.model.encoders[ATTRIBUTES], "names", [])
        wanted = self.attributes or [name for name in unasked if name in names]
        changed = [turned(value, names, name) for name in wanted]
        return {"as it is": value, **{said: other for other, said in changed}}

    def _masks(self, row: int) -> dict[str, Tensor]:
        """Words → mask: as it is, then each edit."""
        own = self._given(row)[MASK]
        edits = edits_with(self.model.encoders[MASK], self._others, own)
        return {said: edit(own) for said, edit in edits.all().items()}

    @cached_property
    def _others(self) -> list[Tensor]:
        """Masks that parts may be taken from."""
        looked_at = [self._look(row).conditions for row in range(min(len(self.photographs), LOOKED_AT))]
        return [given[MASK] for given in looked_at if MASK in given]

    @staticmethod
    def _line_of_masks(masks: Mapping[str, Tensor]) -> Line:
        return Line("", [Cell(), *(Cell(coloured(m[0]), said, exact=True) for said, m in masks.items())], begins=True)

    def _face(
        self, given: Mapping[str, Tensor], noise: torch.Generator, model: FacesModel | None = None, eta: float = 0.0
    ) -> Image.Image:
        model = model or self.model
        if not model.drops and model.encoders.keys() - given.keys():
            self.blind.add(model.name)
        face = model.draw(given, noise, self.drawing.steps, self.drawing.guidance, eta)
        self.bar.update()
        return face

    def _noise(self, row: int) -> torch.Generator:
        """Anew for each picture: a generator that was drawn from goes on elsewhere."""
        return noise_for(self.drawing.seed, f"{row}")

    def _look(self, row: int) -> Example:
        return self.photographs.look(row)

    def _given(self, row: int) -> Mapping[str, Tensor]:
        """Conditions of a held-out face, all that the figure changes."""
        found = self._look(row).conditions
        if lacking := [need for need in NEEDS[self.number] if need not in found]:
            raise DataError(f"held-out face {row} has no {WORDS[lacking[0]]}: choose another --row.")
        return found

    def _photograph(self, row: int) -> Cell:
        return Cell(to_pil_image(self._look(row).pixel_values / 2 + 0.5), "held-out face")
