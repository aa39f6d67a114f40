import json
import math

import datasets
import numpy as np
import pytest
from click.testing import CliRunner
from coco_files import PERSON, check_masks, make_coco
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_masks

from mldm_plugin.cli import main
from mldm_plugin.errors import DataError
from mldm_plugin.prepare import plans
from mldm_plugin.prepare.coco import Coco, CocoFiles
from mldm_plugin.prepare.coco_format import decompressed
from mldm_plugin.prepare.people import label_map
from mldm_plugin.prepare.run import Output, prepare
from mldm_plugin.prepare.synthetic.dataset import write_synthetic


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A COCO data set of 60 pictures, and the training set made of it."""
    folder = tmp_path_factory.mktemp("coco")
    content = make_coco(folder, 60)
    plan = plans.coco(folder / "pictures", folder / "instances.json", captions=folder / "captions.json")
    prepare(plan, Output(folder / "out", workers=0))
    return folder, content


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def people_of(content, image):
    return [a for a in content["annotations"] if a["image_id"] == image["id"] and a["category_id"] == PERSON]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_masks_are_those_of_pycocotools(made):
    folder, content = made
    kinds = {
        type(a["segmentation"]).__name__ + type(a["segmentation"].get("counts")).__name__
        if isinstance(a["segmentation"], dict)
        else "polygons"
        for a in content["annotations"]
    }
    assert kinds == {"polygons", "dictstr", "dictlist"}
    assert any(a["iscrowd"] for a in content["annotations"])
    with_people = {a["image_id"] for a in content["annotations"] if a["category_id"] == PERSON}
    assert check_masks(folder / "instances.json", folder / "out") <= len(with_people)


def test_rows_carry_captions_keypoints_and_faces(made):
    folder, content = made
    rows = rows_of(folder / "out")
    assert [r["file_name"] for r in rows] == sorted(r["file_name"] for r in rows)
    for row in rows:
        [image] = [i for i in content["images"] if row["file_name"] == f"images/{i['file_name']}"]
        people = people_of(content, image)
        assert row["text"] == [f"caption {k} of {image['file_name']}" for k in range(len(row["text"]))]
        assert row["keypoints"] == [list(map(float, a.get("keypoints", [0] * 51))) for a in people]
        given = [a["face_box"] for a in people if a.get("face_valid")]
        corners = np.array([[x, y, x + w, y + h] for x, y, w, h in given]).reshape(-1, 4)
        inside = corners.clip(0, [image["width"], image["height"]] * 2)
        np.testing.assert_allclose(sorted(row["face_boxes"]), sorted(inside.tolist()), atol=0.006)
        assert row["face_sizes"] == pytest.approx(
            [math.sqrt((x1 - x0) * (y1 - y0)) for x0, y0, x1, y1 in row["face_boxes"]], abs=0.06
        )
        assert row["face_detector"] == "annotated"
    assert any(len(row["text"]) > 1 for row in rows)


def test_pictures_are_stored_byte_for_byte(made):
    folder, _ = made
    for row in rows_of(folder / "out"):
        original = folder / "pictures" / row["file_name"].removeprefix("images/")
        assert (folder / "out" / row["file_name"]).read_bytes() == original.read_bytes()


def test_datasets_reads_what_was_written_with_every_column(made, tmp_path):
    folder, _ = made
    read = datasets.load_dataset(str(folder / "out"), cache_dir=str(tmp_path))["train"]
    assert len(read) == len(rows_of(folder / "out"))
    assert isinstance(read.features["mask"], datasets.Image)
    assert read[0]["image"].size == read[0]["mask"].size
    assert len(read[0]["keypoints"][0]) == 51


@pytest.mark.parametrize("least", [0.1, 0.3])
def test_the_person_area_chooses_pictures(made, tmp_path, least):
    folder, _ = made
    plan = plans.coco(folder / "pictures", folder / "instances.json", min_person_area=least)
    prepare(plan, Output(tmp_path / "out", workers=0))
    chosen = {row["file_name"] for row in rows_of(tmp_path / "out")}
    assert chosen == {r["file_name"] for r in rows_of(folder / "out") if r["person_area"] >= least}
    assert 0 < len(chosen) < len(rows_of(folder / "out"))


def test_the_target_count_finds_the_person_area(made, tmp_path):
    folder, _ = made
    prepare(
        plans.coco(folder / "pictures", folder / "instances.json", target_count=11), Output(tmp_path / "out", workers=0)
    )
    areas = sorted((row["person_area"] for row in rows_of(folder / "out")), reverse=True)
    assert sorted((row["person_area"] for row in rows_of(tmp_path / "out")), reverse=True) == areas[:11]
    with pytest.raises(DataError, match="only .* pictures of .* show people"):
        prepare(plans.coco(folder / "pictures", folder / "instances.json", target_count=99), Output(tmp_path / "2"))
    assert not list(tmp_path.glob("2*"))


def test_keypoints_of_a_file_of_their_own_go_by_the_annotations_id(tmp_path):
    content = make_coco(tmp_path, 12, keypoints=False)
    people = [a for a in content["annotations"] if a["category_id"] == PERSON]
    points = {a["id"]: [float(a["id"]), 2.0, 2.0] * 17 for a in people[::2]}
    items = [{"id": k, "image_id": 1, "category_id": 1, "keypoints": p} for k, p in points.items()]
    (tmp_path / "keypoints.json").write_text(json.dumps({"annotations": items}))
    plan = plans.coco(tmp_path / "pictures", tmp_path / "instances.json", keypoints=tmp_path / "keypoints.json")
    prepare(plan, Output(tmp_path / "out", workers=0))
    for row in rows_of(tmp_path / "out"):
        [image] = [i for i in content["images"] if row["file_name"] == f"images/{i['file_name']}"]
        assert row["keypoints"] == [points.get(a["id"], [0.0] * 51) for a in people_of(content, image)]


def test_without_keypoints_there_is_no_column_and_no_box_of_them(tmp_path):
    make_coco(tmp_path, 6, keypoints=False)
    prepare(plans.coco(tmp_path / "pictures", tmp_path / "instances.json"), Output(tmp_path / "out", workers=0))
    assert all("keypoints" not in row for row in rows_of(tmp_path / "out"))
    with pytest.raises(DataError, match="has no keypoints; give --keypoints"):
        prepare(
            plans.coco(tmp_path / "pictures", tmp_path / "instances.json", faces="keypoints"), Output(tmp_path / "k")
        )


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_masks_of_drawn_pictures_are_those_of_pycocotools(tmp_path):
    drawn = tmp_path / "drawn"
    write_synthetic(drawn, 120, seed=0, size=64, workers=2, progress=False)
    plan = plans.coco(drawn / "images", drawn / "instances.json", captions=drawn / "captions.json")
    counts = prepare(plan, Output(tmp_path / "out", workers=2))
    assert counts.pictures == 120
    assert check_masks(drawn / "instances.json", tmp_path / "out") == 120


@given(
    st.integers(1, 60).flatmap(
        lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=60)
    )
)
@settings(max_examples=60, deadline=None)
def test_compressed_runs_are_read_as_pycocotools_writes_them(rows):
    mask = np.array(rows, np.uint8)
    text = coco_masks.encode(np.asfortranarray(mask))["counts"].decode()
    runs = decompressed(text)
    flat = np.concatenate([np.full(n, k % 2, np.uint8) for k, n in enumerate(runs)])
    np.testing.assert_array_equal(flat.reshape(mask.shape, order="F"), mask)


def test_a_label_map_by_hand():
    """Two people and a crowd on 4x6 pixels: the crowd lies behind, the smaller person in front."""
    large = {"segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]], "iscrowd": 0}
    small = {"segmentation": [[3, 1, 5, 1, 5, 3, 3, 3]], "iscrowd": 0}
    crowd = {"segmentation": {"size": [4, 6], "counts": [12, 12]}, "iscrowd": 1}
    expected = [[1, 1, 1, 1, 3, 3], [1, 1, 1, 2, 2, 3], [1, 1, 1, 2, 2, 3], [1, 1, 1, 1, 3, 3]]
    np.testing.assert_array_equal(label_map([large, small, crowd], 4, 6), expected)


# What is wrong with an item, and how it is told.
def broken(field, value=None, *, of="annotations", drop=False):
    def change(content):
        item = content[of][0]
        if of == "annotations":
            item["category_id"] = PERSON
        if drop:
            del item[field]
        else:
            item[field] = value
        return item.get("id")

    return change


FAULTS = {
    "no id": (broken("id", drop=True), "field 'id': Field required"),
    "no image": (broken("image_id", drop=True), "field 'image_id': Field required"),
    "no masks": (broken("segmentation", drop=True), "field 'segmentation': Field required"),
    "masks of nothing": (broken("segmentation", []), "field 'segmentation': has no polygon"),
    "two points": (broken("segmentation", [[1, 2, 3, 4]]), "field 'segmentation': has a polygon of 4 numbers"),
    "half a point": (broken("segmentation", [[1, 2, 3, 4, 5, 6, 7]]), "field 'segmentation': has a polygon of 7"),
    "a polygon with NaN": (broken("segmentation", [[1, 2, 3, 4, 5, math.nan]]), "field 'segmentation': Input should"),
    "a polygon far away": (broken("segmentation", [[0, 0, 1e9, 0, 5, 5]]), "field 'segmentation': has a polygon that"),
    "negative area": (broken("area", -1.5), "field 'area': Input should be greater than or equal to 0"),
    "area of NaN": (broken("area", math.nan), "field 'area': Input should be"),
    "an image that is not there": (broken("image_id", 424242), "field 'image_id': 424242 is no image's id"),
    "a category that is not there": (lambda c: c["annotations"][0].update(category_id=7), "7 is no category's id"),
    "short keypoints": (broken("keypoints", [1, 2, 2]), "field 'keypoints': has 3 numbers, expected 51"),
    "visibility 3": (broken("keypoints", [1, 2, 3] * 17), "field 'keypoints': has a visibility other than"),
    "keypoints of infinity": (broken("keypoints", [math.inf, 2, 1] * 17), "field 'keypoints': Input should be"),
    "a face of three numbers": (broken("face_box", [1, 2, 3]), "field 'face_box': List should have at least 4"),
    "a text for a number": (broken("image_id", "12"), "field 'image_id': Input should be a valid integer"),
    "runs too short": (broken("segmentation", {"size": [9, 9], "counts": [3]}), "the runs have 3 pixels"),
    "broken runs": (broken("segmentation", {"size": [9, 9], "counts": "ooo"}), "is not a compressed run-length text"),
    "runs of another size": (broken("segmentation", {"size": [2, 2], "counts": [4]}), "has run lengths of size [2, 2]"),
    "an image without a name": (broken("file_name", drop=True, of="images"), "field 'file_name': Field required"),
    "no width": (broken("width", 0, of="images"), "field 'width': Input should be greater than"),
    "a name that goes up": (broken("file_name", "../x.jpg", of="images"), "'../x.jpg', which leaves the folder"),
    "an absolute name": (broken("file_name", "/etc/passwd", of="images"), "'/etc/passwd', which leaves the folder"),
    "a name going up inside": (broken("file_name", "a/../../x.jpg", of="images"), "which leaves the folder"),
    "a name of Windows": (broken("file_name", "..\\x.jpg", of="images"), "which leaves the folder"),
    "a drive": (broken("file_name", "C:\\x.jpg", of="images"), "which leaves the folder"),
    "an empty name": (broken("file_name", "", of="images"), "field 'file_name': is '', expected the name"),
    "a name that is none": (broken("file_name", "./", of="images"), "which no file can be called"),
    "half a character": (broken("file_name", "a\ud800.jpg", of="images"), "field 'file_name': holds half a character"),
    "an id beyond all": (broken("id", 2**63, of="images"), "field 'id': Input should be less than"),
    "an image beyond all": (broken("image_id", 2**63), "field 'image_id': Input should be less than"),
    "keypoints elsewhere": (broken("keypoints", [900, 900, 2] * 17), "field 'keypoints': all lie outside"),
    "an annotation twice": (lambda c: c["annotations"].append(c["annotations"][0]), "that of an earlier annotation"),
    "an image twice": (lambda c: c["images"].append(c["images"][0]), "field 'id': is that of an earlier image"),
    "an item that is none": (lambda c: c["annotations"].append(5), "id 'none (item"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_by_file_id_and_field(tmp_path, name):
    content = make_coco(tmp_path, 4, seed=3)
    for annotation in content["annotations"]:
        annotation["category_id"] = PERSON
    change, told = FAULTS[name]
    identity = change(content)
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as raised:
        prepare(plans.coco(tmp_path / "pictures", tmp_path / "instances.json"), Output(tmp_path / "out", workers=0))
    message = str(raised.value)
    assert f"{tmp_path}/instances.json: " in message
    assert told in message
    if identity is not None:
        assert f"id {identity}, " in message
    assert not list(tmp_path.glob("out*"))


def test_all_faults_are_told_at_once_up_to_a_screenful(tmp_path):
    content = make_coco(tmp_path, 30)
    for annotation in content["annotations"]:
        annotation |= {"category_id": PERSON, "area": -1}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as raised:
        Coco(CocoFiles(tmp_path / "instances.json"), tmp_path / "scratch")
    lines = str(raised.value).splitlines()
    assert lines[0].startswith(f"{len(content['annotations'])} fault(s)")
    assert len(lines) == 22
    assert lines[-1].strip() == f"and {len(content['annotations']) - 20} more"


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    content = make_coco(tmp_path, 3)
    outside = tmp_path / "secret.jpg"
    outside.write_bytes((tmp_path / "pictures" / content["images"][0]["file_name"]).read_bytes())
    link = tmp_path / "pictures" / content["images"][0]["file_name"]
    link.unlink()
    link.symlink_to(outside)
    with pytest.raises(DataError, match="a link that leaves the folder"):
        prepare(plans.coco(tmp_path / "pictures", tmp_path / "instances.json"), Output(tmp_path / "out", workers=0))


def test_captions_and_keypoints_that_belong_to_nobody_are_named(tmp_path):
    make_coco(tmp_path, 3)
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": [{"id": 5, "image_id": 77, "caption": "x"}]}))
    keypoints = {"annotations": [{"id": 4711, "keypoints": [0] * 51}]}
    (tmp_path / "keypoints.json").write_text(json.dumps(keypoints))
    files = CocoFiles(
        tmp_path / "instances.json", captions=tmp_path / "captions.json", keypoints=tmp_path / "keypoints.json"
    )
    with pytest.raises(DataError) as raised:
        Coco(files, tmp_path / "scratch")
    assert "captions.json: annotations id 5, field 'image_id': 77 is no image's id" in str(raised.value)
    assert "keypoints.json: annotations id 4711, field 'id': is no person's in" in str(raised.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is not JSON"),
        ("[]", "is not JSON"),
        ('{"images": [{"id": 1', "is not JSON"),
        ('{"images": []} x', "is not JSON"),
        ('{"annotations": []}', "has no array 'images'"),
        ('{"images": {}}', "'images' is dict, expected an array"),
        ('{"images": [], "categories": [{"id": 1, "name": "dog"}], "annotations": []}', "has no category 'person'"),
        ("\x80", "is not JSON"),
    ],
)
def test_a_file_that_is_not_cocos_is_refused(tmp_path, text, told):
    path = tmp_path / "instances.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=told):
        Coco(CocoFiles(path), tmp_path / "scratch")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.json cannot be read \(No such file"):
        plans.coco(tmp_path, tmp_path / "nothing.json")


def test_the_annotation_has_to_be_of_the_picture(tmp_path):
    content = make_coco(tmp_path, 40)
    used = {a["image_id"] for a in content["annotations"] if a["category_id"] == PERSON}
    image = next(i for i in content["images"] if i["id"] in used)
    Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / image["file_name"])
    counts = prepare(
        plans.coco(tmp_path / "pictures", tmp_path / "instances.json"), Output(tmp_path / "out", workers=0)
    )
    assert counts.rejected == 1
    [rejected] = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert rejected["file"].endswith(image["file_name"])
    expected = f"is 64x64, its annotation is for {image['width']}x{image['height']}: not the same picture"
    assert rejected["reason"] == expected


@pytest.mark.parametrize("empty", [False, True], ids=["not there", "another folder"])
def test_a_folder_without_the_pictures_is_told_in_one_line_and_leaves_nothing(made, tmp_path, empty):
    folder, _ = made
    images = tmp_path / "imagez"
    if empty:
        images.mkdir()
    before = sorted(tmp_path.iterdir())
    asked = ["data", "coco", "--images", str(images), "--instances", str(folder / "instances.json")]
    refused = CliRunner().invoke(main, [*asked, "--out", str(tmp_path / "out")])
    assert refused.exit_code == 1
    said = [line for line in refused.stderr.split("\n") if line.startswith("mldm:")]
    assert len(said) == 1, refused.stderr
    assert "captions" not in refused.stderr
    assert f"--images {images}" in said[0]
    assert sorted(tmp_path.iterdir()) == before
    asked[3] = str(folder / "pictures")
    made_now = CliRunner().invoke(main, [*asked, "--out", str(tmp_path / "out"), "--workers", "0"])
    assert made_now.exit_code == 0, made_now.output
    assert "60 pictures, 43 with people\n" in made_now.stderr
    assert "picture/s" in made_now.stderr


def test_a_threshold_is_told_in_words(made, tmp_path, capsys):
    folder, _ = made
    plan = plans.coco(folder / "pictures", folder / "instances.json", min_person_area=0.2)
    prepare(plan, Output(tmp_path / "out", workers=0))
    assert "of these at least 20 % people" in capsys.readouterr().err
