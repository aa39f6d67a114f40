"""COCO data sets of noise pictures and random masks, in every form that COCO knows: quick to make, true in format."""

import json
import math

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

PERSON, DOG = 1, 18


def star(rng, width, height):
    """A polygon around some point of the picture, in part outside of it."""
    angles = np.sort(rng.uniform(0, 2 * math.pi, rng.integers(3, 12)))
    radii = rng.uniform(0.05, 0.5, len(angles)) * min(width, height)
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    points = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1)
    return [round(float(v), 2) for v in points.ravel()]


def segmentation(rng, kind, width, height):
    if kind == "polygons":
        return [star(rng, width, height) for _ in range(rng.integers(1, 3))]
    run = coco_masks.merge(coco_masks.frPyObjects([star(rng, width, height)], height, width))
    if kind == "compressed":
        return {"size": [height, width], "counts": run["counts"].decode()}
    from mldm_plugin.prepare.coco_format import decompressed

    return {"size": [height, width], "counts": decompressed(run["counts"].decode()).tolist()}


def annotation(rng, number, image, width, height):
    crowd = rng.random() < 0.1
    kind = "runs" if crowd else rng.choice(["polygons", "compressed"])
    one = {
        "id": number,
        "image_id": image,
        "category_id": int(rng.choice([PERSON, PERSON, PERSON, DOG])),
        "iscrowd": int(crowd),
        "area": 10.0,
        "bbox": [0.0, 0.0, 5.0, 5.0],
        "segmentation": segmentation(rng, kind, width, height),
    }
    if not crowd and rng.random() < 0.7:
        points = np.stack([rng.uniform(0, width, 17), rng.uniform(0, height, 17), rng.integers(0, 3, 17)], axis=1)
        one["keypoints"] = [round(float(v), 1) if k % 3 < 2 else int(v) for k, v in enumerate(points.ravel())]
        x, y = rng.uniform(0, width * 0.7), rng.uniform(0, height * 0.7)
        one |= {"face_box": [x, y, width * 0.2, height * 0.2], "face_valid": bool(rng.random() < 0.8)}
    return one


def make_coco(folder, count, *, seed=0, size=(96, 80), suffix=".jpg", keypoints=True):
    """Write pictures/, instances.json and captions.json; returns the content of instances.json."""
    rng = np.random.default_rng(seed)
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    images, annotations, captions = [], [], []
    for i in range(count):
        width, height = (int(side + rng.integers(0, 20)) for side in size)
        identity, name = 1000 - i if count < 1000 else i + 1, f"{i:06d}{suffix}"
        noise = np.kron(rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8), np.ones((8, 8, 1)))
        Image.fromarray(noise[:height, :width].astype(np.uint8)).save(pictures / name)
        images.append({"id": identity, "file_name": name, "width": width, "height": height})
        for _ in range(rng.integers(0, 5)):
            annotations.append(annotation(rng, len(annotations) + 1, identity, width, height))
            if not keypoints:
                annotations[-1].pop("keypoints", None)
        for k in range(rng.integers(1, 4)):
            captions.append({"id": len(captions) + 1, "image_id": identity, "caption": f" caption {k} of {name}\n"})
    order = rng.permutation(len(annotations))
    content = {
        "info": {"description": "noise"},
        "images": images,
        "annotations": [annotations[k] for k in order],
        "categories": [{"id": DOG, "name": "dog"}, {"id": PERSON, "name": "person"}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return content


def check_masks(instances, out):
    """Every label map is the union of pycocotools' own masks, and each label its own mask but where others lie."""
    coco = COCO(instances)
    by_name = {image["file_name"].rsplit(".", 1)[0]: image for image in coco.dataset["images"]}
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    for row in rows:
        image = by_name[row["file_name"].removeprefix("images/").rsplit(".", 1)[0]]
        people = [a for a in coco.dataset["annotations"] if a["image_id"] == image["id"] and a["category_id"] == PERSON]
        masks = np.stack([coco.annToMask(a).astype(bool) for a in people])
        with Image.open(out / row["mask_file_name"]) as opened:
            assert opened.mode == "L"
            labels = np.array(opened)
        np.testing.assert_array_equal(labels > 0, masks.any(axis=0))
        assert row["person_count"] == sum(not a["iscrowd"] for a in people)  # a crowd is no person
        assert row["crowds"] == [k for k, a in enumerate(people, 1) if a["iscrowd"]]
        assert row["person_area"] == pytest.approx(masks.any(axis=0).mean(), abs=1e-6)
        alone = masks.sum(axis=0) == 1
        for k, mask in enumerate(masks, 1):
            assert not (labels == k)[~mask].any()
            np.testing.assert_array_equal((labels == k)[alone], mask[alone])
        if (labels > 0).any():
            check_overlaps(people, masks, labels)
    return len(rows)


def check_overlaps(people, masks, labels):
    """Where masks overlap, nobody hides somebody smaller, and a crowd hides nobody."""
    areas = masks.sum(axis=(1, 2))
    for k, mask in enumerate(masks):
        for j, other in enumerate(masks):
            if people[k]["iscrowd"] > people[j]["iscrowd"] or (
                people[k]["iscrowd"] == people[j]["iscrowd"] and areas[k] > areas[j]
            ):
                assert not (labels[mask & other] == k + 1).any()
