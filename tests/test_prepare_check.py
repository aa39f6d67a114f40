import json
import re
import shutil
import subprocess

import pytest
from click.testing import CliRunner
from coco_files import make_coco
from odd_pictures import encoded, scene
from PIL import Image

from mldm_plugin.cli import main
from mldm_plugin.prepare import plans
from mldm_plugin.prepare.check import check
from mldm_plugin.prepare.remarks import Remark
from mldm_plugin.prepare.run import Output, prepare


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    make_coco(folder, 90, size=(160, 120))
    plan = plans.coco(folder / "pictures", folder / "instances.json", captions=folder / "captions.json")
    for format_ in ("imagefolder", "parquet", "webdataset"):
        prepare(plan, Output(folder / format_, format_, shard_size=30, workers=0))
    return folder


@pytest.fixture
def copied(sound, tmp_path):
    """Twelve rows that may be changed."""
    for row in (rows := rows_of(sound / "imagefolder")[:12]):
        for name in (row["file_name"], row["mask_file_name"]):
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(sound / "imagefolder" / name, tmp_path / "data" / name)
    write_rows(tmp_path / "data", rows)
    return tmp_path / "data"


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def write_rows(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_sound_training_set_has_no_faults_in_any_format(sound, tmp_path):
    rows = rows_of(sound / "imagefolder")
    for format_ in ("imagefolder", "parquet", "webdataset"):
        found = check(sound / format_, tmp_path / format_, workers=0)
        assert found.sound
        assert found.counts["rows"] == len(rows)
        assert found.counts["faces"] == sum(len(row["face_boxes"]) for row in rows)
        assert found.counts["captions"] == sum(len(row["text"]) for row in rows)
        assert len(found.shown) == 48
    assert (tmp_path / "parquet/contact_sheet.png").stat().st_size > 10_000
    with Image.open(tmp_path / "imagefolder/contact_sheet.png") as sheet:
        assert len(sheet.convert("RGB").getcolors(1 << 24)) > 1000


def test_pictures_with_people_and_with_hands_are_counted(copied, tmp_path):
    """A hand is a wrist that is labelled: two in the first row, one hidden in the second, none in the third."""
    rows = [row for row in rows_of(copied) if row["person_count"]][:3]
    for row, seen in zip(rows, ((2, 2), (0, 1), (0, 0)), strict=True):
        people = [[0.0] * 51 for _ in range(row["person_count"])]
        people[0][3 * 9 + 2], people[0][3 * 10 + 2] = seen
        row["keypoints"] = people
    with Image.open(copied / rows[2]["mask_file_name"]) as mask:
        Image.new("L", mask.size).save(copied / rows[2]["mask_file_name"])
    write_rows(copied, rows)
    counts = check(copied, tmp_path / "report", workers=0).counts
    assert (counts["rows with hands"], counts["hands"]) == (2, 3)
    assert (counts["rows with a mask"], counts["rows with people"]) == (3, 2)


def test_the_report_does_not_depend_on_the_number_of_processes(sound, tmp_path):
    for workers in (0, 2):
        check(sound / "imagefolder", tmp_path / str(workers), workers=workers)
    for name in ("index.html", "contact_sheet.png"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def change(row, folder, what):
    """Break one thing; what each does is its name."""
    mask = folder / row["mask_file_name"]
    picture = folder / row["file_name"]
    if what == "no picture":
        picture.unlink()
    elif what == "cut picture":
        picture.write_bytes(picture.read_bytes()[:600])
    elif what == "no mask":
        mask.unlink()
    elif what == "mask of another size":
        Image.new("L", (5, 5)).save(mask)
    elif what == "mask in colour":
        scene().save(mask)
    elif what == "label too many":
        with Image.open(mask) as opened:
            size = opened.size
        Image.new("L", size, 77).save(mask)
    elif what == "turned picture":
        exif = Image.Exif()
        exif[0x0112] = 3
        picture.write_bytes(encoded(scene(), "JPEG", exif=exif))
    else:
        row |= what


BREAKS = [
    ("no picture", "image", "there is no file images/"),
    ("cut picture", "image", "cannot be read as a picture"),
    ("no mask", "mask", "there is no file masks/"),
    ("mask of another size", "mask", "a mask has the size of the stored picture"),
    ("mask in colour", "mask", "is a picture of mode RGB"),
    ("label too many", "mask", "has label 77, person_count is"),
    ("turned picture", "image", "is stored turned"),
    ({"face_boxes": [[5, 5, 1, 1]]}, "face_boxes", "is reversed"),
    ({"face_boxes": [[5000, 5000, 5001, 5001]]}, "face_boxes", "lies outside the picture"),
    ({"face_sizes": [1.0] * 99}, "face_sizes", "has 99 values for"),
    ({"keypoints": [[1, 2, 2]]}, "keypoints", "are 3, expected 51 numbers"),
    ({"keypoints": [[0.0] * 51] * 9}, "keypoints", "are of 9 people, person_count is"),
    ({"text": 5}, "text", "is 5, expected a caption"),
    ({"text": "\ud800"}, "text", "expected a caption"),
    ({"person_count": "two"}, "person_count", "is 'two', expected a whole number"),
    ({"face_sizes": 5}, "face_sizes", "is 5, expected a list"),
    ({"face_boxes": [[0, 0, 10**400, 5]]}, "face_boxes", "is not four finite numbers"),
    ({"face_boxes": [[0, 0, 1e300, 5]]}, "face_boxes", "is not four finite numbers"),
    ({"face_boxes": "abcd"}, "face_boxes", "expected a list"),
    ({"keypoints": {"a": 1}}, "keypoints", "expected a list"),
    ({"keypoints": [[1e300, 1, 2] * 17]}, "keypoints", "expected finite numbers"),
    ({"conditioning_image_file_name": "metadata.jsonl"}, "conditioning_image", "not a picture"),
    ({"mask_file_name": "masks/" + "x" * 300}, "mask", "there is no file"),
    ({"file_name": "../../etc/passwd"}, "image", "which leaves the folder"),
    ({"mask_file_name": "/etc/hostname"}, "mask", "which leaves the folder"),
]


@pytest.mark.parametrize(("what", "column", "reason"), BREAKS, ids=lambda v: str(v)[:30])
def test_a_fault_is_named_by_row_and_column(copied, tmp_path, what, column, reason):
    rows = rows_of(copied)
    name = rows[7]["file_name"]
    change(rows[7], copied, what)
    write_rows(copied, rows)
    found = check(copied, tmp_path / "report", workers=0)
    assert not found.sound
    [((where, _), names)] = [item for item in found.faults.items() if reason in item[0][1]]
    assert where == column
    assert names == [rows[7]["file_name"] if name != rows[7]["file_name"] else name]
    page = (tmp_path / "report/index.html").read_text()
    assert "1 of 12 rows has faults: a trainer would stop at them." in page
    assert "Something is wrong, and" in page


def test_what_deserves_a_look_is_no_fault(copied, tmp_path):
    rows = rows_of(copied)
    (copied / rows[3]["file_name"]).write_bytes((copied / rows[4]["file_name"]).read_bytes())
    shutil.copy(copied / rows[4]["mask_file_name"], copied / rows[3]["mask_file_name"])
    rows[3] |= {"person_count": rows[4]["person_count"], "keypoints": rows[4]["keypoints"], "face_boxes": []}
    rows[3] |= {"face_sizes": [], "text": [""]}
    write_rows(copied, rows)
    found = check(copied, tmp_path / "report", workers=0)
    assert found.sound
    assert found.notes["the same picture is there twice"] == [f"{rows[4]['file_name']} = {rows[3]['file_name']}"]
    assert found.notes["a caption is empty"] == [rows[3]["file_name"]]
    assert Remark("worth a look", "A caption is empty: 1 time.", (rows[3]["file_name"],)) in found.said()


def test_pictures_without_a_row_are_noted(copied, tmp_path):
    (copied / "images/stray.jpg").write_bytes(encoded(scene(), "JPEG"))
    found = check(copied, tmp_path / "report", workers=0)
    assert found.sound
    assert found.notes["no row names this file"] == ["images/stray.jpg"]


@pytest.mark.parametrize("name", ["train-00000.parquet", "train-00000.tar"])
def test_a_broken_shard_is_told(tmp_path, name):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(b"PAR1 and then nothing" * 9)
    refused = CliRunner().invoke(main, ["data", "check", str(tmp_path / "data")])
    assert refused.exit_code == 1
    assert f"{name} cannot be read" in refused.output


def test_the_command_ends_with_1_where_something_is_wrong(copied):
    sound = CliRunner().invoke(main, ["data", "check", str(copied), "--workers", "0"])
    assert sound.exit_code == 0, sound.output
    assert (copied.parent / "data-check" / "index.html").is_file()
    (copied / rows_of(copied)[0]["file_name"]).unlink()
    faulty = CliRunner().invoke(main, ["data", "check", str(copied), "--workers", "0"])
    assert faulty.exit_code == 1
    assert "fault in image: there is no file" in faulty.output
    assert "mend or remove them" in faulty.output


def test_masks_of_the_background_end_the_command_with_1(copied):
    for row in rows_of(copied):
        with Image.open(copied / row["mask_file_name"]) as opened:
            background = opened.point(lambda label: int(label == 0))
        background.save(copied / row["mask_file_name"])
    refused = CliRunner().invoke(main, ["data", "check", str(copied), "--workers", "0"])
    assert refused.exit_code == 1
    assert "masks look inverted: people fill more of the border than of the middle." in refused.output
    assert "\nSomething is wrong, and " in refused.output
    assert refused.output.endswith("is not what it should be: see above what is wrong.\n")


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"")
    refused = CliRunner().invoke(main, ["data", "check", str(tmp_path)])
    assert refused.exit_code == 1
    assert "is no training set: expected metadata.jsonl" in refused.output


def test_captions_and_names_cannot_run_in_the_page(copied, tmp_path):
    rows = rows_of(copied)
    rows[0]["text"] = ["<script>document.title = 'owned'</script>"]
    write_rows(copied, rows)
    check(copied, tmp_path / "report", workers=0)
    page = (tmp_path / "report/index.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_page_with_all_its_pictures(sound, tmp_path):
    check(sound / "imagefolder", tmp_path / "report", workers=0)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += ["--window-size=1280,1600", "--virtual-time-budget=4000", f"--screenshot={tmp_path / 'page.png'}"]
    url = (tmp_path / "report/index.html").as_uri()
    shown = subprocess.run([CHROMIUM, *flags, "--dump-dom", url], capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    assert len(re.findall("<figure", shown.stdout)) == 48
    assert "Nothing is wrong, and " in shown.stdout
    assert "pictures are smaller than the 512 px of training" in shown.stdout
    with Image.open(tmp_path / "page.png") as page:
        assert len(page.convert("RGB").getcolors(1 << 24)) > 2000  # the pictures are there
