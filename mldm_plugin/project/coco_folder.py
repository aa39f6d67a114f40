"""A folder that holds COCO's annotations, which are made into a training set by a command of their own."""

from __future__ import annotations

import shlex
from pathlib import Path

INSTANCES = "instances"
FURTHER = {"captions": "--captions", "person_keypoints": "--keypoints"}


def how_to_convert(folder: Path) -> str:
    """The command that makes a training set of a COCO data set; empty where the folder is none.

    A data set is an instances*.json in the folder or its `annotations/`, as COCO and `mldm data synthetic` lay it out;
    pictures lie in `images/`, in a folder named as the file is (instances_train2017.json: `train2017/`), or beside it.
    """
    if not folder.is_dir() or (folder / "metadata.jsonl").is_file():
        return ""
    found = [file for place in (folder, folder / "annotations") for file in sorted(place.glob(f"{INSTANCES}*.json"))]
    if not found:
        return ""
    instances = found[0]
    rest = instances.name.removeprefix(INSTANCES)
    named = [folder / name for name in (rest.removesuffix(".json").strip("_"), "images") if name]
    images = next((place for place in named if place.is_dir()), folder)
    words = ["mldm", "data", "coco", "--images", str(images), "--instances", str(instances)]
    for name, flag in FURTHER.items():
        further = instances.with_name(f"{name}{rest}")
        words += [flag, str(further)] if further.is_file() else []
    made = folder.resolve().with_name(f"{folder.resolve().name}-people")
    return shlex.join([*words, "--out", str(made)])
