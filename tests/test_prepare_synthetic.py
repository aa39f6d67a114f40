"""The drawn people: the same each time, valid COCO, and every annotation agrees with what the pixels show."""

import contextlib
import io
import json
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mldm_plugin.errors import DataError
from mldm_plugin.prepare.synthetic.annotation import annotate
from mldm_plugin.prepare.synthetic.canvas import Layer, Light
from mldm_plugin.prepare.synthetic.caption import captions
from mldm_plugin.prepare.synthetic.curve import Frame
from mldm_plugin.prepare.synthetic.dataset import draw, write_synthetic
from mldm_plugin.prepare.synthetic.face import Face
from mldm_plugin.prepare.synthetic.hand import GESTURES, paint_hand
from mldm_plugin.prepare.synthetic.head import EYE, MOUTH_Y, Head
from mldm_plugin.prepare.synthetic.look import draw_look
from mldm_plugin.prepare.synthetic.palette import SKIN
from mldm_plugin.prepare.synthetic.part import KEYPOINTS, Part
from mldm_plugin.prepare.synthetic.picture import draw_plan, paint
from mldm_plugin.prepare.synthetic.silhouette import box_of, compressed, polygons, run_lengths, visible_masks

COUNT, SIZE = 30, 128
LIGHT = Light(-0.6, -0.8, (1.0, 0.96, 0.9), (0.6, 0.55, 0.6))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("drawn") / "set", COUNT, 4, SIZE, progress=False)


@pytest.fixture(scope="module")
def coco(folder):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(folder / "instances.json"))


@pytest.fixture(scope="module")
def people(coco):
    """Pairs of a person's annotation and their mask."""
    found = coco.loadAnns(coco.getAnnIds(catIds=[1], iscrowd=False))
    return [(person, decoded(coco, person)) for person in found]


def decoded(coco, annotation):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return coco.annToMask(annotation).astype(bool)


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def points(person):
    return {n: person["keypoints"][3 * i : 3 * i + 3] for i, n in enumerate(KEYPOINTS)}


def inside(box, x, y, slack=0.01):
    return box[0] - slack <= x <= box[0] + box[2] + slack and box[1] - slack <= y <= box[1] + box[3] + slack


# The folder


def test_same_bytes_for_any_number_of_workers(tmp_path):
    one = write_synthetic(tmp_path / "one", 5, 7, 64, workers=1, progress=False)
    two = write_synthetic(tmp_path / "two", 5, 7, 64, workers=2, progress=False)
    assert files(one) == files(two)


def test_a_larger_data_set_begins_with_the_smaller(tmp_path):
    few = write_synthetic(tmp_path / "few", 2, 7, 64, progress=False)
    more = write_synthetic(tmp_path / "more", 4, 7, 64, progress=False)
    for name, content in files(few / "images").items():
        assert (more / "images" / name).read_bytes() == content
    for name, key in (
        ("instances.json", "annotations"),
        ("instances.json", "images"),
        ("captions.json", "annotations"),
    ):
        short, long = (json.loads((f / name).read_text())[key] for f in (few, more))
        assert long[: len(short)] == short
        assert len(long) > len(short)


def test_seeds_and_indices_draw_different_pictures():
    assert len({draw(seed, i, 64).jpeg for seed in (0, 1) for i in (0, 1)}) == 4


def test_an_existing_folder_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="exists already and is not what this command makes"):
        write_synthetic(tmp_path, 1, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("wrong", [{"count": 0}, {"seed": -1}, {"size": 10}])
def test_numbers_that_cannot_be_used(tmp_path, wrong):
    with pytest.raises(DataError, match="expected"):
        write_synthetic(tmp_path / "new", **{"count": 1, "seed": 0, **wrong})
    assert not list(tmp_path.iterdir())


def test_nothing_appears_before_it_is_complete(tmp_path, monkeypatch):
    """An interrupted run leaves no folder, and the next run is not disturbed by what it left."""
    monkeypatch.setattr("mldm_plugin.prepare.synthetic.dataset.assemble", stop)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / "set", 1, 0, 64, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["set.partial"]
    monkeypatch.undo()
    write_synthetic(tmp_path / "set", 1, 0, 64, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    names = [".prepared.json", "captions.json", "images", "instances.json"]
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == names


def test_it_goes_on_where_it_was_killed(tmp_path):
    """Killed after the first parts, it draws the others only, and the folder is the same as without a kill."""
    whole = write_synthetic(tmp_path / "whole", 48, 3, 64, progress=False)
    program = (
        "from mldm_plugin.prepare.synthetic.dataset import write_synthetic\n"
        f"write_synthetic({str(tmp_path / 'set')!r}, 48, 3, 64)"
    )
    running = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    done = tmp_path / "set.partial" / "done"
    while len(list(done.glob("*.json"))) < 2:
        assert running.poll() is None
        time.sleep(0.01)
    running.kill()
    running.wait()
    first = tmp_path / "set.partial" / "images" / "000000000001.jpg"
    drawn_at = first.stat().st_mtime_ns
    assert not (tmp_path / "set").exists()
    again = write_synthetic(tmp_path / "set", 48, 3, 64, progress=False)
    assert files(again) == files(whole)
    assert (again / "images" / "000000000001.jpg").stat().st_mtime_ns == drawn_at


def stop(*_):
    raise KeyboardInterrupt


def test_needs_no_torch():
    code = "import sys, mldm_plugin.prepare.synthetic.dataset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# COCO's format


def test_the_pictures_are_as_described(folder, coco):
    images = coco.dataset["images"]
    assert [i["id"] for i in images] == list(range(1, COUNT + 1))
    assert len({(i["width"], i["height"]) for i in images}) > 5
    for image in images:
        with Image.open(folder / "images" / image["file_name"]) as opened:
            assert (opened.format, opened.mode) == ("JPEG", "RGB")
            assert opened.size == (image["width"], image["height"])


def test_ids_are_unique_and_known(coco, folder):
    annotations = coco.dataset["annotations"]
    assert len({a["id"] for a in annotations}) == len(annotations)
    assert {a["image_id"] for a in annotations if a["category_id"] == 1 and not a["iscrowd"]} == set(coco.imgs)
    texts = json.loads((folder / "captions.json").read_text())["annotations"]
    assert len({t["id"] for t in texts}) == len(texts)
    for i in coco.imgs:
        own = [t["caption"] for t in texts if t["image_id"] == i]
        assert 1 <= len(own) <= 5
        assert len(set(own)) == len(own)


def test_area_and_box_are_those_of_the_mask(coco):
    for annotation in coco.dataset["annotations"]:
        mask = decoded(coco, annotation)
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == box_of(mask)


def test_all_kinds_of_segmentation_and_categories_occur(coco):
    annotations = coco.dataset["annotations"]
    kinds = {type(a["segmentation"]).__name__ for a in annotations if a["category_id"] == 1 and not a["iscrowd"]}
    assert kinds == {"list", "dict"}
    assert {a["category_id"] for a in annotations} == {c["id"] for c in coco.dataset["categories"]} == {1, 64}
    crowds = [a for a in annotations if a["iscrowd"]]
    assert crowds
    assert all(isinstance(a["segmentation"]["counts"], list) for a in crowds)


def test_no_two_masks_overlap(coco):
    for i, image in coco.imgs.items():
        total = np.zeros((image["height"], image["width"]), int)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[i])):
            total += decoded(coco, annotation)
        assert total.max() <= 1


# Keypoints, boxes, attributes


def test_visible_keypoints_lie_on_their_own_person(people):
    seen = 0
    for person, mask in people:
        height, width = mask.shape
        for x, y, v in points(person).values():
            assert (x, y) == (0, 0) if v == 0 else (0 <= x < width and 0 <= y < height)
            if v == 2:
                seen += 1
                assert mask[int(y), int(x)]
        assert person["num_keypoints"] == sum(v > 0 for *_, v in points(person).values())
    assert seen > 200


def test_hidden_keypoints_occur(people):
    values = [v for person, _ in people for *_, v in points(person).values()]
    assert {0, 1, 2} == set(values)


def test_eyes_and_nose_lie_in_the_face_box(people):
    faces = 0
    for person, _ in people:
        assert person["face_valid"] == (person["face_box"][2] > 0)
        if person["face_valid"]:
            faces += 1
            for name in ("nose", "left_eye", "right_eye"):
                x, y, v = points(person)[name]
                assert v == 0 or inside(person["face_box"], x, y)
    assert faces > 20


def test_left_is_the_persons_own(people):
    for person, _ in people:
        front = person["attributes"]["view"] == "front"
        p = points(person)
        for pair in ("shoulder", "hip", "eye", "ear"):
            left, right = p[f"left_{pair}"], p[f"right_{pair}"]
            if left[2] and right[2]:
                assert (left[0] > right[0]) == front


def test_attributes_vary(people):
    for name, least in (("kind", 4), ("hair", 6), ("expression", 5), ("gaze", 4), ("pose", 4), ("skin", 5)):
        assert len({person["attributes"][name] for person, _ in people}) >= least, name
    hands = {g for person, _ in people for g in person["attributes"]["hands"].values()}
    assert len(hands) >= 5


def test_captions_agree_with_attributes(coco, folder):
    texts = json.loads((folder / "captions.json").read_text())["annotations"]
    for text in texts:
        found = coco.loadAnns(coco.getAnnIds(imgIds=[text["image_id"]], catIds=[1], iscrowd=False))
        attributes = [a["attributes"] for a in found]
        words = text["caption"].lower()
        for word, agrees in {
            "sad": lambda a: a["expression"] == "sad",
            "laughing": lambda a: a["expression"] == "laugh",
            "smiling": lambda a: a["expression"] == "smile",
            "surprised": lambda a: a["expression"] == "surprise",
            "glasses": lambda a: a["glasses"] != "none",
            "a beard": lambda a: a["beard"] == "full beard",
            "waving": lambda a: "waving" in a["arms"].values(),
            "striped": lambda a: a["clothing"]["pattern"] == "striped",
            "looking up": lambda a: a["gaze"] == "up",
            "looking to the left": lambda a: a["gaze"] == "picture left",
            "sunglasses": lambda a: a["glasses"] == "sunglasses",
            "from behind": lambda a: a["view"] == "back",
            "a woman": lambda a: a["kind"] == "woman",
        }.items():
            if word in words:
                assert any(agrees(a) for a in attributes), (word, text["caption"])
        for count, number in (("two", 2), ("three", 3), ("four", 4)):
            if words.startswith(count):
                assert len(attributes) == number


def test_a_caption_tells_the_expression_and_the_place():
    found = draw(4, 0, 64)
    people = [a["attributes"] for a in found.annotations if "attributes" in a]
    said = {t for i in range(20) for t in captions(people, "beach", "half", np.random.default_rng(i))}
    assert all(any(place in t.lower() for place in ("beach", "sea")) for t in said)
    assert len(said) > 10


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_any_picture_agrees_with_its_annotations(seed):
    rng = np.random.default_rng(seed)
    picture = paint(draw_plan(rng, 80), rng)
    masks = visible_masks(picture.shares)
    assert masks.sum(0).max() <= 1
    assert picture.shares.sum(0).max() <= 1 + 1e-4
    for row in annotate(picture, rng):
        height, width = picture.pixels.shape[:2]
        x, y, w, h = row["bbox"]
        assert 0 <= x < x + w <= width
        assert 0 <= y < y + h <= height
        for side, part in (("lefthand", Part.LEFT_HAND), ("righthand", Part.RIGHT_HAND)):
            if row.get(f"{side}_valid"):
                x0, y0, w, h = (round(2 * v) for v in row[f"{side}_box"])
                assert (picture.parts[y0 : y0 + h, x0 : x0 + w] == part).any()
        if row.get("face_valid"):
            for name in ("nose", "left_eye", "right_eye"):
                x, y, v = points(row)[name]
                assert v == 0 or inside(row["face_box"], x, y)


def test_hand_boxes_enclose_the_visible_hand():
    rng = np.random.default_rng(3)
    picture = paint(draw_plan(rng, 128), rng)
    checked = 0
    for row, i in zip(
        [r for r in annotate(picture, rng) if "attributes" in r],
        [i for i, item in enumerate(picture.items) if item.person is not None],
        strict=True,
    ):
        for side, part in (("lefthand", Part.LEFT_HAND), ("righthand", Part.RIGHT_HAND)):
            ys, xs = np.nonzero((picture.top == i + 1) & (picture.parts == part))
            if row[f"{side}_valid"]:
                checked += 1
                width, height = xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()
                assert row[f"{side}_box"] == [v / 2 for v in (xs.min(), ys.min(), width, height)]
    assert checked


# What is drawn


def face(expression="neutral", gaze="camera", seed=0, **changes):
    """A bald, frontal face of 200 pixels as grey values, and its head."""
    look = draw_look(np.random.default_rng(seed))
    plain = {"hair": "bald", "hat": "none", "glasses": "none", "beard": "none", "skin": "fair", "kind": "woman"}
    look = replace(look, **{**plain, "freckles": False, "expression": expression, "gaze": gaze, **changes})
    layer, head = Layer((240, 240), LIGHT), Head(Frame(120, 120, 200), look, 0.0, 0.0)
    painted = Face(layer, head)
    painted.ears()
    painted.skin()
    painted.features()
    return layer.colour.mean(0), head


def eye_pixels(picture, head, side):
    x, y = (round(v) for v in head.point(side * EYE[0], EYE[1]))
    return picture[y - 9 : y + 10, x - 19 : x + 20]


def pupil(picture, head, side):
    """Where the dark of the eye lies against its middle, in pixels."""
    eye = eye_pixels(picture, head, side)
    ys, xs = np.nonzero(eye < 0.12)
    return xs.mean() - 19, ys.mean() - 9


@pytest.mark.parametrize("side", [1, -1])
def test_eyes_have_whites_and_pupils(side):
    picture, head = face()
    eye = eye_pixels(picture, head, side)
    assert (eye > 0.9).sum() > 30
    assert (eye < 0.12).sum() > 30
    x, y = head.point(side * EYE[0], EYE[1])
    assert picture[int(y), int(x)] < 0.2


@pytest.mark.parametrize("side", [1, -1])
def test_the_pupil_goes_where_the_gaze_goes(side):
    straight, left, right = (pupil(*face(gaze=g), side) for g in ("camera", "picture left", "picture right"))
    assert left[0] < straight[0] - 4
    assert right[0] > straight[0] + 4


def mouth_line(expression):
    """How much lower, in pixels, the line between the lips is near its ends than in the middle; positive when sad."""
    picture, head = face(expression)

    def darkest(x):
        column, y = (round(v) for v in head.point(x, MOUTH_Y))
        rows = picture[y - 15 : y + 16, column]
        return np.nonzero(rows < rows.min() + 0.05)[0].mean()

    return (darkest(0.08) + darkest(-0.08)) / 2 - darkest(0)


def test_the_mouth_curves_with_the_expression():
    assert mouth_line("smile") < -1
    assert abs(mouth_line("neutral")) < 1
    assert mouth_line("sad") > 1


def test_an_open_mouth_is_dark_inside_and_a_laugh_shows_teeth():
    shut, head = face("neutral")
    x, y = (round(v) for v in head.point(0, MOUTH_Y + 0.02))
    window = (slice(y - 12, y + 13), slice(x - 10, x + 11))
    surprise, laugh = face("surprise")[0][window], face("laugh")[0][window]
    assert (surprise < 0.25).sum() > (shut[window] < 0.25).sum() + 80
    assert (laugh > 0.92).sum() > 40
    assert (surprise > 0.92).sum() == 0


def test_brows_rise_in_surprise():
    def brow(expression):
        picture, head = face(expression, hair_colour="black")
        x, y = (round(v) for v in head.point(0.17, -0.12))
        rows = np.nonzero(picture[y - 24 : y + 20, x] < 0.4)[0]
        return rows.min()

    assert brow("surprise") < brow("neutral") - 6


def fingers(gesture):
    """How many runs of skin a ring round an upright hand cuts, the thumb included."""
    layer, frame = Layer((240, 240), LIGHT), Frame(120, 180, 140)
    paint_hand(layer, frame, gesture, SKIN["fair"], Part.LEFT_HAND)
    angles = np.linspace(-np.pi * 0.62, np.pi * 0.5, 900)
    middle = frame.point(0.0, -0.3)
    radius = 0.42 * frame.scale
    xs, ys = middle[0] + radius * np.sin(angles), middle[1] - radius * np.cos(angles)
    on = layer.cover[ys.astype(int), xs.astype(int)] > 0.5
    return int(np.sum(on[1:] & ~on[:-1]) + on[0])


@pytest.mark.parametrize(("gesture", "count"), [("open", 5), ("pointing", 1), ("peace sign", 2), ("fist", 0)])
def test_hands_have_their_fingers(gesture, count):
    assert gesture in GESTURES
    assert fingers(gesture) == count


def test_people_are_shaded_not_flat():
    """The side of a bare head towards the lamp is brighter than the other."""
    picture, head = face()
    x0, y0 = (int(v) for v in head.point(-0.28, -0.2))
    x1, y1 = (int(v) for v in head.point(0.3, -0.1))
    assert picture[y0 - 5 : y0 + 5, x0 - 5 : x0 + 5].mean() > picture[y1 - 5 : y1 + 5, x1 - 5 : x1 + 5].mean() + 0.05


# Silhouettes


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_all_forms_of_a_mask_are_the_mask(height, width, random):
    mask = np.array([[random.random() < 0.6 for _ in range(width)] for _ in range(height)])
    runs = run_lengths(mask)
    assert sum(runs["counts"]) == mask.size
    back = coco_mask.frPyObjects(runs, height, width)
    assert back["counts"].decode() == compressed(mask)["counts"]
    traced = polygons(mask) if mask.any() else None
    if traced is not None:
        merged = coco_mask.merge(coco_mask.frPyObjects(traced, height, width))
        assert merged["counts"].decode() == compressed(mask)["counts"]


def test_a_plain_shape_becomes_one_polygon_and_a_ring_none():
    shape = np.zeros((20, 20), bool)
    shape[3:15, 5:12] = True
    shape[8:12, 12:16] = True
    assert len(polygons(shape)) == 1
    shape[6:8, 7:9] = False
    assert polygons(shape) is None


def test_the_front_one_of_two_that_share_a_pixel_gets_it():
    masks = visible_masks(np.full((2, 1, 1), 0.5, np.float32))
    assert masks.ravel().tolist() == [False, True]


def test_paths_are_accepted_as_text(tmp_path):
    assert write_synthetic(str(tmp_path / "set"), 1, 0, 64, progress=False) == Path(tmp_path / "set")
