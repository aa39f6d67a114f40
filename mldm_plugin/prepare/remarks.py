"""What a training set that was looked over is like, in sentences: what is wrong, worth a look, or fine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from mldm_plugin.prepare.inspection import Findings

Grade = Literal["wrong", "worth a look", "fine"]
RESOLUTION = 512  # pixels that the presets train at: the --resolution of Stable Diffusion 1.x
# Pixels of a face. Chosen: four of the latent's, of which the decoder makes no features that could be compared.
SMALL_FACE = 32  # at the training's resolution
SMALL_PERSON = 0.005  # part of a picture; chosen: a person of 36 x 36 pixels in 512 x 512
MOST = 0.99  # of a picture; chosen: more is a mask that leaves nothing out
# Masks that look inverted, from which on they all are taken to be: chosen, so that no odd picture or two suffice.
ENOUGH = 4


@dataclass(frozen=True)
class Remark:
    """A sentence, its grade, and some of the rows that it is about."""

    grade: Grade
    text: str
    names: tuple[str, ...] = ()


@dataclass
class Tally:
    """Counts of a kind of thing, and the names of the first rows that have it."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str, count: int = 1) -> None:
        self.count += count
        if count and len(self.names) < 20:
            self.names.append(name)


class Remarks:
    """Gathers from row to row what there is to say at the end.

    Args:
        resolution: pixels of the shorter side in training.
    """

    def __init__(self, resolution: int = RESOLUTION) -> None:
        self._resolution = resolution
        self._pictures = self._masked = self._people = self._faces = 0
        self._boxed = False
        self._small, self._small_faces, self._small_people = Tally(), Tally(), Tally()
        self._hidden, self._nobody, self._crowds, self._faceless = Tally(), Tally(), Tally(), Tally()
        self._maskless, self._inverted, self._everywhere = Tally(), Tally(), Tally()

    def add(self, found: Findings) -> None:
        """Count one row in."""
        if found.size is not None:
            self._pictures += 1
            self._small.add(found.name, int(min(found.size) < self._resolution))
        if found.people is not None:
            self._masked += 1
            self._people += found.people
            self._nobody.add(found.name, int(found.people == 0))
            self._small_people.add(found.name, sum(area < SMALL_PERSON for area in found.people_areas))
            self._hidden.add(found.name, found.hidden)
            self._crowds.add(found.name, found.crowds)
            self._inverted.add(found.name, int(looks_inverted(found)))
            self._everywhere.add(found.name, int((found.person_area or 0) > MOST))
        elif found.size is not None:
            self._maskless.add(found.name)
        if found.face_sizes is not None:
            self._boxed = True
            self._faces += len(found.face_sizes)
            sizes = face_sizes_at(found, self._resolution)
            self._small_faces.add(found.name, sum(size < SMALL_FACE for size in sizes))
            self._faceless.add(found.name, max((found.people or 0) - len(found.face_sizes), 0))

    def of(self, faulty: int, rows: int, rejected: int, thrown_out: int) -> list[Remark]:
        """All of them, the gravest first.

        Args:
            faulty: rows with faults, of `rows`.
            rejected: pictures that could not be used when the set was made.
            thrown_out: pictures that a review took out.
        """
        said = [*self._wrong(faulty, rows), *self._of_pictures(rejected, thrown_out), *self._of_masks()]
        said += [*self._of_people(), *self._of_faces()]
        order = ("wrong", "worth a look", "fine")
        return sorted(said, key=lambda remark: order.index(remark.grade))

    @staticmethod
    def _wrong(faulty: int, rows: int) -> Iterator[Remark]:
        if faulty:
            yield Remark(
                "wrong", f"{part_of(faulty, rows, 'row has', 'rows have')} faults: a trainer would stop at them."
            )
        elif rows:
            yield Remark("fine", "Every row can be read, and its columns fit each other.")
        else:
            yield Remark("wrong", "There is no row at all.")

    def _of_pictures(self, rejected: int, thrown_out: int) -> Iterator[Remark]:
        if self._small.count:
            few = part_of(self._small.count, self._pictures, "picture is", "pictures are")
            text = f"{few} smaller than the {self._resolution} px of training: enlarged, they teach blur."
            yield Remark("worth a look", text, tuple(self._small.names))
        elif self._pictures:
            yield Remark("fine", f"Every picture has the {self._resolution} px of training.")
        if rejected:
            was = "picture was" if rejected == 1 else "pictures were"
            yield Remark("worth a look", f"{rejected} {was} rejected when the set was made (rejected.jsonl says why).")
        if thrown_out:
            yield Remark("fine", f"{thrown_out} {_s(thrown_out, 'picture')} thrown out in a review.")

    def _of_masks(self) -> Iterator[Remark]:
        if not self._masked:
            if self._pictures:
                yield Remark("worth a look", "No picture has a mask: losses on people have nothing to look at.")
            return
        if self._maskless.count:
            few = part_of(self._maskless.count, self._masked + self._maskless.count, "picture has", "pictures have")
            text = f"{few} no mask: losses on people pass over them."
            yield Remark("worth a look", text, tuple(self._maskless.names))
        if self._inverted.count:
            few = part_of(self._inverted.count, self._masked, "mask looks", "masks look")
            text = f"{few} inverted: people fill more of the border than of the middle."
            surely = self._inverted.count >= max(ENOUGH, self._masked / 2)
            yield Remark("wrong" if surely else "worth a look", text, tuple(self._inverted.names))
        if self._everywhere.count:
            few = part_of(self._everywhere.count, self._masked, "mask is", "masks are")
            text = f"{few} people from edge to edge: as if there were no mask."
            yield Remark("worth a look", text, tuple(self._everywhere.names))

    def _of_people(self) -> Iterator[Remark]:
        if not self._masked:
            return
        said = []
        if self._nobody.count:
            few = part_of(self._nobody.count, self._masked, "mask shows", "masks show")
            said.append(Remark("worth a look", f"{few} nobody.", tuple(self._nobody.names)))
        people = f"{self._people} {'person' if self._people == 1 else 'people'}"
        if self._hidden.count:
            more = f"{self._hidden.count} more {'has' if self._hidden.count == 1 else 'have'}"
            text = f"Besides the {people} in the masks, {more} no pixel: hidden by others, or lost."
            said.append(Remark("worth a look", text, tuple(self._hidden.names)))
        if self._small_people.count:
            few = part_of(self._small_people.count, self._people, "person is", "people are")
            text = f"{few} less than {SMALL_PERSON:.1%} of the picture."
            said.append(Remark("worth a look", text, tuple(self._small_people.names)))
        of_all = f"{people} in {self._masked} {_s(self._masked, 'picture')} with a mask, nobody lost."
        yield from said or [Remark("fine", of_all)]
        if self._crowds.count:
            text = f"{self._crowds.count} {_s(self._crowds.count, 'crowd')}: masked, not counted as people."
            yield Remark("fine", text, tuple(self._crowds.names))

    def _of_faces(self) -> Iterator[Remark]:
        if not self._boxed:
            if self._pictures:
                yield Remark("worth a look", "No row has face boxes: the face loss has nothing to look at.")
            return
        if self._faceless.count and self._masked:
            few = part_of(self._faceless.count, self._people, "person has", "people have")
            text = f"{few} no face box: turned away, or not found."
            yield Remark("worth a look", text, tuple(self._faceless.names))
        if self._small_faces.count:
            few = part_of(self._small_faces.count, self._faces, "face is", "faces are")
            text = f"{few} less than {SMALL_FACE} px wide at {self._resolution} px: too small for the face loss."
            yield Remark("worth a look", text, tuple(self._small_faces.names))
        elif self._faces:
            yield Remark("fine", f"Every face has {SMALL_FACE} px or more at {self._resolution} px.")


def looks_inverted(found: Findings) -> bool:
    """Whether a mask's people are most of the border and less of the middle, as the background is."""
    if found.on_border is None or found.in_middle is None:
        return False
    return found.on_border > max(found.in_middle, 0.5)


def face_sizes_at(found: Findings, resolution: int) -> list[float]:
    """The sizes of its faces, in pixels, when the picture's short side has `resolution`, as in training."""
    if found.face_sizes is None or found.size is None:
        return []
    return [size * resolution / min(found.size) for size in found.face_sizes]


def verdict(remarks: list[Remark]) -> str:
    """The headline."""
    wrong, look = (sum(remark.grade == grade for remark in remarks) for grade in ("wrong", "worth a look"))
    looks = f"{look} {'thing is' if look == 1 else 'things are'} worth a look"
    if wrong:
        return "Something is wrong" + (f", and {looks}." if look else ".")
    return f"Nothing is wrong, and {looks}." if look else "Nothing is wrong."


def part_of(count: int, whole: int, one: str, many: str) -> str:
    """`3 of 12 pictures are`; `All 12 pictures are`; `The picture is`."""
    noun, _, verb = many.rpartition(" ")
    if count == whole == 1:
        return f"The {one}"
    if count == whole:
        return f"All {whole} {noun} {verb}"
    return f"{count} of {whole} {noun} {one.rpartition(' ')[2] if count == 1 else verb}"


def _s(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"


def said_of(found: Findings) -> list[Remark]:
    """What there is to say of one row by itself."""
    one = Remarks()
    one.add(found)
    return one.of(faulty=0, rows=1, rejected=0, thrown_out=0)
