"""What the commands convert: each lists its sources, tells what is known of all of them, and how to convert one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mldm_plugin import __version__
from mldm_plugin.errors import DataError, WeightsError
from mldm_plugin.perceptual.weights import fetch
from mldm_plugin.prepare import folder as own_folder
from mldm_plugin.prepare.convert import Recipe
from mldm_plugin.prepare.engines import usable_cores
from mldm_plugin.prepare.source import FindFaces, FindPeople, Source

NETWORKS = {"maskrcnn": "mask_rcnn", "selfie": "mediapipe_selfie"}  # of --masks, and their weights

Facts = Mapping[str, Any]  # plain JSON, kept with the list of sources


@dataclass(frozen=True)
class Plan:
    """One conversion, not begun.

    Args:
        command: what was asked for, as plain JSON; how it is known again when it goes on.
        sources: lists the pictures, with a scratch folder at hand, and the facts that hold for all of them.
        recipe: from these facts, how one picture is converted.
        most_workers: as many processes as it makes sense to start; None is one a core.
    """

    command: Mapping[str, Any]
    sources: Callable[[Path], tuple[Facts, Iterable[Source]]]
    recipe: Callable[[Facts], Recipe]
    most_workers: int | None = None


def coco(
    images: Path,
    instances: Path,
    *,
    captions: Path | None = None,
    keypoints: Path | None = None,
    min_person_area: float | None = None,
    target_count: int | None = None,
    faces: str = "auto",
) -> Plan:
    """Pictures of COCO that show people: those of at least an area, or as many as are wanted.

    Raises:
        DataError: `images` is no folder. That it holds other pictures, that `faces` needs what the annotation does not
            have, and faults of the files are found when it is listed.
    """
    from mldm_plugin.prepare.coco import Coco, CocoFiles
    from mldm_plugin.prepare.people import CocoPeople

    if not images.is_dir():
        raise DataError(f"--images {images} is not a folder: name the one with the pictures of {instances}.")

    def sources(scratch: Path) -> tuple[Facts, Iterable[Source]]:
        found = Coco(CocoFiles(instances, images, captions, keypoints), scratch / "coco.sqlite")
        has_keypoints, detector = found.has("keypoints"), _detector(faces, annotated=found.has("face_box"))
        if faces == "keypoints" and not has_keypoints:
            raise DataError("--faces keypoints: the annotation has no keypoints; give --keypoints F.json too.")
        least = found.threshold(target_count) if target_count else min_person_area or 0.0
        _require_pictures(found.sources(least), images, instances)
        _tell(_kept(found.count(), found.areas(), least))
        if captions is None:
            _tell("no --captions: every caption will be empty")
        return {"keypoints": has_keypoints, "faces": detector}, found.sources(least)

    return Plan(
        command=_command(
            "coco",
            images=str(images.resolve()),
            files={str(path.resolve()): _identity(path) for path in (instances, captions, keypoints) if path},
            min_person_area=min_person_area,
            target_count=target_count,
            faces=faces,
        ),
        sources=sources,
        recipe=lambda facts: _recipe(CocoPeople(facts["keypoints"]), facts),
    )


def folder(
    photos: Path,
    *,
    caption: str | None = None,
    masks: str = "auto",
    faces: str = "auto",
    leave_out: Sequence[str] = (),
    held_out: int = 0,
) -> Plan:
    """Somebody's own photos; `masks` is `auto`, `maskrcnn`, `selfie`, `none` or a folder of label pictures.

    What `leave_out` and `held_out` are, `mldm_plugin.prepare.folder.sources` says.

    Raises:
        DataError: `masks` is not a folder.
        WeightsError: the network's weights cannot be had.
    """
    given = None if masks in ("auto", *NETWORKS, "none") else Path(masks)
    if given is not None and not given.is_dir():
        known = ", ".join(("auto", *NETWORKS, "none"))
        raise DataError(f"--masks {masks} is none of {known}, nor a folder with label pictures.")
    if given is None and masks != "none":
        masks = _network(masks)

    def sources(scratch: Path) -> tuple[Facts, Iterable[Source]]:
        listed = list(own_folder.sources(photos, caption, given, leave_out, held_out))
        return {"faces": _detector(faces, annotated=False), "columns": own_folder.types(listed)}, listed

    def recipe(facts: Facts) -> Recipe:
        return _recipe(_people_of_photos(masks), facts)

    return Plan(
        command=_command(
            "folder",
            folder=str(photos.resolve()),
            contents=own_folder.digest(photos, given),
            caption=caption,
            masks=masks if given is None else str(given.resolve()),
            faces=faces,
            leave_out=sorted(leave_out),
            held_out=held_out,
        ),
        sources=sources,
        recipe=recipe,
        most_workers=_networks_at_once() if masks in NETWORKS else None,
    )


def celebamask_hq(data_set: Path, *, faces: str = "auto") -> Plan:
    """CelebAMask-HQ as it is handed out."""
    from mldm_plugin.prepare import celebamask_hq as celeba

    return Plan(
        command=_command("celebamask-hq", folder=str(data_set.resolve()), faces=faces),
        sources=lambda scratch: ({"faces": _detector(faces, annotated=True)}, celeba.sources(data_set)),
        recipe=lambda facts: _recipe(celeba.CelebAMaskHQ(), facts),
    )


def _require_pictures(listed: Iterable[Source], images: Path, instances: Path) -> None:
    """Raise DataError where none of the listed pictures is there, and some are listed."""
    missing = 0
    for source in listed:
        if Path(source.path).is_file():
            return
        missing += 1
    if missing:
        raise DataError(f"--images {images} has none of the pictures of {instances}: name another folder.")


def _kept(pictures: int, areas: Sequence[float], least: float) -> str:
    """How many pictures are kept, and why."""
    told = f"{pictures} pictures, {len(areas)} with people"
    if not least:
        return told
    return f"{told}, {sum(area >= least for area in areas)} of these at least {100 * least:.3g} % people"


def _people_of_photos(masks: str) -> FindPeople | None:
    if masks == "none":
        return None
    if masks == "maskrcnn":
        from mldm_plugin.prepare.mask_rcnn import MaskRCNN

        return MaskRCNN()
    if masks == "selfie":
        from mldm_plugin.prepare.selfie import SelfieSegmentation

        return SelfieSegmentation()
    from mldm_plugin.prepare.people import GivenMask

    return GivenMask()


def _network(masks: str) -> str:
    """Which network finds the people, told to the user; its weights are there then, before many processes ask.

    Mask R-CNN where its weights can be had, else selfie segmentation, which comes from a package.
    """
    if masks != "auto":
        fetch(NETWORKS[masks])
        return masks
    try:
        fetch(NETWORKS["maskrcnn"])
        _tell("masks: by Mask R-CNN (--masks maskrcnn)")
        return "maskrcnn"
    except WeightsError:
        fetch(NETWORKS["selfie"])
        _tell(
            "masks: by MediaPipe's selfie segmentation (--masks selfie), for Mask R-CNN's weights cannot be had: it "
            "sees people who are near, and those who touch as one"
        )
        return "selfie"


def _recipe(people: FindPeople | None, facts: Facts) -> Recipe:
    return Recipe(people, _resolved(facts["faces"], annotated=True)[0], facts.get("columns", {}))


def _networks_at_once() -> int:
    """One on a GPU; on a CPU each takes 2 GB and computes in the threads that others leave it."""
    import torch

    return 1 if torch.cuda.is_available() else max(usable_cores() // 4, 1)


def _detector(name: str, *, annotated: bool) -> str:
    """The name of the detector that is used, told to the user."""
    detector, line = _resolved(name, annotated)
    _tell(line)
    return "none" if detector is None else detector.name


def _resolved(name: str, annotated: bool) -> tuple[FindFaces | None, str]:
    from mldm_plugin.prepare.faces import resolve

    return resolve(name, annotated)


def _command(what: str, **asked: Any) -> dict[str, Any]:
    return {"data": what, "mldm_plugin": __version__, **asked}


def _identity(path: Path) -> list[int]:
    """By what a file is known to be the same: its size in bytes and when it was changed, in nanoseconds."""
    try:
        known = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): name a JSON file in COCO's format.") from error
    return [known.st_size, known.st_mtime_ns]


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
