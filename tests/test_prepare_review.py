import itertools
import json
import re
import shutil
import socket
import time
from functools import partial
from pathlib import Path

import forked
import local_pages
import numpy as np
import pytest
import requests
from click.testing import CliRunner
from coco_files import make_coco
from local_pages import serving
from PIL import Image

from mldm_plugin.cli import main
from mldm_plugin.errors import DataError
from mldm_plugin.page.server import MOST_JSON
from mldm_plugin.prepare import plans
from mldm_plugin.prepare.check import check
from mldm_plugin.prepare.review import folder as reviewed
from mldm_plugin.prepare.review.folder import Review
from mldm_plugin.prepare.review.server import ReviewServer
from mldm_plugin.prepare.review.session import opened
from mldm_plugin.prepare.run import Output, prepare


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    make_coco(folder, 8, size=(48, 40))
    plan = plans.coco(folder / "pictures", folder / "instances.json", captions=folder / "captions.json")
    prepare(plan, Output(folder / "people", workers=0))
    return folder / "people"


@pytest.fixture
def people(made, tmp_path):
    shutil.copytree(made, tmp_path / "people")
    return tmp_path / "people"


def lines_of(folder):
    return (folder / "metadata.jsonl").read_text().splitlines()


def row_of(folder, number):
    return json.loads(lines_of(folder)[number])


def labels_of(folder, number):
    with Image.open(folder / row_of(folder, number)["mask_file_name"]) as opened:
        return np.array(opened)


@pytest.mark.parametrize("name", ["metadata.jsonl", "picture", "of another"])
def test_only_a_mask_of_its_own_is_painted(people, name):
    """A set of a stranger's may name any of its files as a mask."""
    rows = [json.loads(line) for line in lines_of(people)]
    named = {"picture": rows[1]["file_name"], "of another": rows[1]["mask_file_name"]}.get(name, name)
    rows[0]["mask_file_name"] = named
    (people / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = (people / named).read_bytes()
    review = Review(people)
    with pytest.raises(DataError, match="no mask that could be painted"):
        review.paint(0, np.zeros((40, 48), np.uint8))
    assert (people / named).read_bytes() == before


def test_decisions_are_on_disk_at_once_and_come_back_in_a_new_review(people):
    before = lines_of(people)
    review = Review(people)
    review.decide(0, "accepted")
    review.decide(2, "thrown out")
    review.decide(3, "thrown out")
    assert lines_of(people) == before[:2] + before[4:]
    again = Review(people)
    assert [entry.line for entry in again.entries] == before
    assert [entry.note.decision for entry in again.entries][:4] == ["accepted", None, "thrown out", "thrown out"]
    assert again.counts() == {"accepted": 1, "thrown out": 2, "looked at": 3, "changed": 0}
    again.decide(2, None)
    assert lines_of(people) == before[:3] + before[4:]
    again.decide(3, "accepted")
    assert lines_of(people) == before
    assert (people / "images").is_dir()


def test_a_kill_between_two_writes_loses_no_row_and_no_decision(people, monkeypatch):
    before = lines_of(people)

    def killed(*_):
        raise KeyboardInterrupt

    review = Review(people)
    with monkeypatch.context() as patched:
        patched.setattr(review, "_write_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            review.decide(1, "thrown out")
    assert len(lines_of(people)) == len(before)
    assert Review(people).entries[1].note.decision == "thrown out"
    assert lines_of(people) == before[:1] + before[2:]

    review = Review(people)
    with monkeypatch.context() as patched:
        patched.setattr(reviewed.notes, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            review.decide(1, None)
    assert [entry.line for entry in Review(people).entries] == before


def test_a_painted_mask_is_stored_with_its_row_and_can_be_put_back(people, tmp_path):
    before, mask = lines_of(people), labels_of(people, 1)
    review = Review(people)
    count = row_of(people, 1)["person_count"]
    labels = np.zeros_like(mask)
    labels[3:7, 2:12] = count + 1
    review.paint(1, labels)
    assert np.array_equal(labels_of(people, 1), labels)
    row = row_of(people, 1)
    assert row["person_area"] == round(40 / labels.size, 6)
    assert row["person_count"] == count + 1
    assert len(row["keypoints"]) == count + 1
    assert check(people, tmp_path / "report", workers=0).sound
    again = Review(people)
    labels[0, 0] = 1
    again.paint(1, labels)
    again.restore(1)
    assert lines_of(people) == before
    assert np.array_equal(labels_of(people, 1), mask)
    assert not list((people / ".review").rglob("*.png"))


def test_a_thrown_out_picture_can_be_changed_and_brought_back(people):
    review = Review(people)
    review.decide(1, "thrown out")
    review.set_faces(1, [{"box": [1, 2, 11, 22], "was": None}])
    again = Review(people)
    again.decide(1, "accepted")
    assert row_of(people, 1)["face_boxes"] == [[1, 2, 11, 22]]


def test_faces_keep_their_score_and_points_where_they_still_hold(people):
    rows = [json.loads(line) for line in lines_of(people)]
    rows[0] |= {"face_boxes": [[0, 0, 10, 10], [20, 20, 30, 30]], "face_sizes": [10, 10], "face_scores": [0.5, 0.75]}
    rows[0]["face_points"] = [[1, 1, 2, 2], [21, 21, 29, 29]]
    (people / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    review = Review(people)
    review.set_faces(
        0,
        [
            {"box": [19, 19, 28, 28], "was": 1},
            {"box": [-5, 0, 10, 10], "was": 0},
            {"box": [30, 0, 40, 30], "was": None},
        ],
    )
    row = row_of(people, 0)
    assert row["face_boxes"] == [[19, 19, 28, 28], [0, 0, 10, 10], [30, 0, 40, 30]]
    assert row["face_sizes"] == [9.0, 10.0, 17.3]
    assert row["face_scores"] == [0.75, 0.5, 1.0]
    assert row["face_points"] == [[], [1, 1, 2, 2], []]


@pytest.mark.parametrize(
    "faces",
    [
        None,
        5,
        [5],
        [{}],
        [{"box": [0, 0, 5, 5], "was": 99}],
        [{"box": [0, 0, 5, 5], "was": True}],
        [{"box": [5, 5, 0, 0]}],
        [{"box": [500, 500, 510, 510]}],
        [{"box": [0, 0, 0.2, 0.2]}],
        [{"box": [0, 0, float("nan"), 1]}],
        [{"box": [0, 0, 5, 5]}] * 1001,
    ],
)
def test_boxes_that_are_none_change_nothing(people, faces):
    before = lines_of(people)
    with pytest.raises(DataError):
        Review(people).set_faces(0, faces)
    assert lines_of(people) == before


def test_rows_that_somebody_else_wrote_meanwhile_are_not_overwritten(people):
    review = Review(people)
    (people / "metadata.jsonl").write_text("\n".join(lines_of(people)[:3]) + "\n")
    for change in (
        lambda: review.decide(0, "thrown out"),
        lambda: review.set_faces(0, []),
        lambda: review.paint(0, np.zeros_like(labels_of(people, 0))),
    ):
        with pytest.raises(DataError, match="changed by something else"):
            change()
    assert len(lines_of(people)) == 3


def test_finishing_forgets_originals_and_keeps_what_was_thrown_out(people):
    review = Review(people)
    review.paint(0, np.ones_like(labels_of(people, 0)))
    review.decide(1, "thrown out")
    kept = people / ".review/originals"
    assert list(kept.rglob("*.png"))
    finished = CliRunner().invoke(main, ["data", "review", str(people), "--finish"])
    assert finished.exit_code == 0, finished.output
    assert "1 of 5 looked at, 1 thrown out, 1 changed" in finished.output
    assert not kept.exists()
    again = Review(people)
    again.restore(0)
    assert labels_of(people, 0).all()
    again.decide(1, None)
    assert len(lines_of(people)) == 5


def test_splits_are_reviewed_together_and_keep_their_rows_apart(people, tmp_path):
    for split in ("train", "validation"):
        shutil.copytree(people, tmp_path / "splits" / split)
    review = Review(tmp_path / "splits")
    assert len(review) == 10
    review.decide(8, "thrown out")
    assert len(lines_of(tmp_path / "splits/train")) == 5
    assert len(lines_of(tmp_path / "splits/validation")) == 4
    again = Review(tmp_path / "splits")
    assert again.entries[8].note.decision == "thrown out"
    again.decide(8, None)
    assert lines_of(tmp_path / "splits/validation") == lines_of(people)


def test_what_a_review_left_is_no_stray_and_no_picture_of_the_set(people, tmp_path):
    from datasets import load_dataset

    review = Review(people)
    review.paint(0, np.ones_like(labels_of(people, 0)))
    review.decide(1, "thrown out")
    found = check(people, tmp_path / "report", workers=0)
    assert found.sound
    assert "no row names this file" not in found.notes
    loaded = load_dataset("imagefolder", data_dir=str(people), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "not what a review writes"),
        ('{"version": 1, "pictures": {"a": {"decision": "maybe"}}}', "not what a review writes"),
        ('{"version": 1, "pictures": {"a": {"row": "{}"}}}', "the place None"),
    ],
)
def test_notes_that_are_none_are_refused(people, content, said):
    (people / ".review").mkdir()
    (people / ".review/review.json").write_text(content)
    with pytest.raises(DataError, match=said):
        Review(people)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nothing", "line 6: expected an object"),
        ('{"file_name": "../x.jpg"}', "which leaves the folder"),
        (None, "names a picture twice"),
    ],
)
def test_rows_that_cannot_be_read_are_refused(people, line, said):
    with (people / "metadata.jsonl").open("a") as stream:
        stream.write((line or lines_of(people)[0]) + "\n")
    with pytest.raises(DataError, match=said):
        Review(people)


def test_one_review_at_a_time_and_only_of_an_image_folder(people, tmp_path):
    with opened(people), pytest.raises(DataError, match="being reviewed already"), opened(people):
        pass
    refused = CliRunner().invoke(main, ["data", "review", str(tmp_path / "nowhere"), "--no-browser"])
    assert refused.exit_code == 1
    assert "has no metadata.jsonl" in refused.output
    assert not (tmp_path / "nowhere").exists()


# The server


@pytest.fixture
def server(people):
    with serving(ReviewServer(Review(people))) as server:
        yield server


@pytest.fixture
def ask(server):
    return partial(local_pages.ask, server)


def test_the_page_and_its_rows_are_served(people, ask):
    page = ask("/")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "<title>mldm data review</title>" in page.text
    asked = re.findall(r'(?:href|src)="(\w+\.\w+)"', page.text)
    assert asked == ["local.css", "review.css", "review.js"]
    assert all(ask(f"/{name}").status_code == 200 for name in asked)
    assert ask("/review.js").headers["Content-Type"].startswith("text/javascript")
    told = ask("/rows").json()
    assert [row["name"] for row in told["rows"]] == [json.loads(line)["file_name"] for line in lines_of(people)]
    row = ask("/rows/1").json()
    assert row["size"] == list(labels_of(people, 1).shape[::-1])
    assert row["captions"] == json.loads(lines_of(people)[1])["text"]
    assert ask("/rows/1/picture").content == (people / row["name"]).read_bytes()
    assert ask("/rows/1/labels").content == labels_of(people, 1).tobytes()


def test_decisions_masks_and_faces_are_written(people, ask):
    assert ask("/rows/0/decision", "PUT", json={"decision": "accepted"}).json()["decision"] == "accepted"
    labels = np.zeros_like(labels_of(people, 0))
    labels[5:9, 5:9] = 1
    assert ask("/rows/0/labels", "PUT", data=labels.tobytes()).json()["changed"]
    assert np.array_equal(labels_of(people, 0), labels)
    faces = {"faces": [{"box": [1, 1, 9, 9], "was": None}]}
    assert ask("/rows/0/faces", "PUT", json=faces).json()["faces"] == [[1, 1, 9, 9]]
    assert not ask("/rows/0/original", "PUT", json={}).json()["changed"]
    assert Review(people).counts() == {"accepted": 1, "looked at": 1, "changed": 0}


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/..%2f..%2fmetadata.jsonl",
        "/metadata.jsonl",
        "/images/000000000001.jpg",
        "/__init__.py",
        "/rows/99",
        "/rows/-1",
        "/rows/0/file",
        "/rows/0/../../x",
        "/rows/99999999999999999999",
    ],
)
def test_nothing_but_the_page_and_the_rows_is_served(server, path):
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as sent:
        sent.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nX-Page-Token: {server.token}\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        answer = b""
        while part := sent.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Page-Token": ""},
        {"X-Page-Token": "x" * 32},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1:1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
    ids=str,
)
def test_requests_from_elsewhere_are_refused_and_change_nothing(people, ask, headers):
    before = lines_of(people)
    for path, method in (("/rows", "GET"), ("/rows/0", "GET"), ("/rows/0/picture", "GET"), ("/rows/0/decision", "PUT")):
        refused = ask(path, method, headers, **({"json": {"decision": "thrown out"}} if method == "PUT" else {}))
        assert refused.status_code == 403, path
        assert refused.json().keys() == {"error"}
    assert lines_of(people) == before


def test_bodies_of_another_size_or_kind_are_refused(people, ask):
    pixels = labels_of(people, 0).size
    for path, body, status in (
        ("labels", b"\0" * (pixels - 1), 413),
        ("labels", b"\0" * (pixels + 1), 413),
        ("labels", b"", 413),
        ("decision", b" " * (MOST_JSON + 1), 413),
        ("decision", b"{", 400),
        ("decision", b"[" * 100_000, 400),
        ("decision", b"[]", 400),
        ("decision", b'{"decision": "maybe"}', 409),
        ("decision", iter([b"{}"]), 411),
        ("metadata", b"{}", 404),
    ):
        assert ask(f"/rows/0/{path}", "PUT", data=body).status_code == status, (path, body)
    assert ask("/rows/0", "DELETE").status_code == 501
    assert not (people / ".review").exists()


def test_a_picture_that_cannot_be_shown_can_still_be_thrown_out(people, ask):
    name = row_of(people, 2)["file_name"]
    (people / name).write_bytes(b"no picture")
    row = ask("/rows/2").json()
    assert row["size"] is None
    assert "cannot be read" in row["faults"][0]
    assert ask("/rows/2/picture").status_code == 409
    assert ask("/rows/2/decision", "PUT", json={"decision": "thrown out"}).status_code == 200
    assert name not in (people / "metadata.jsonl").read_text()


def test_what_cannot_be_written_is_said(people, ask, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reviewed.notes, "write", full)
    said = ask("/rows/0/decision", "PUT", json={"decision": "accepted"})
    assert said.status_code == 500
    assert "No space left" in said.json()["error"]
    assert ask("/rows/0").json()["decision"] is None


@pytest.mark.parametrize("what", ["rows", "mask", "notes"])
@pytest.mark.parametrize("change", ["decide", "paint", "faces", "restore"])
def test_a_full_disk_at_any_write_changes_nothing(people, monkeypatch, change, what):
    """What was not saved is not saved by the next change either; afterwards the same change succeeds."""
    review = Review(people)
    review.set_faces(0, [{"box": [1, 1, 9, 9], "was": None}])
    acts = {
        "decide": lambda: review.decide(0, "thrown out"),
        "paint": lambda: review.paint(0, np.ones_like(labels_of(people, 0))),
        "faces": lambda: review.set_faces(0, []),
        "restore": lambda: review.restore(0),
    }
    before, mask = lines_of(people), labels_of(people, 0)
    module, name = {"rows": (reviewed, "write_text"), "mask": (reviewed, "write_bytes")}.get(
        what, (reviewed.notes, "write")
    )
    real = getattr(module, name)
    for fails_at in range(3):
        writes = itertools.count()

        def full(path, content, writes=writes, fails_at=fails_at):
            if next(writes) == fails_at:
                raise OSError(28, "No space left on device")
            real(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            try:
                acts[change]()
                break
            except OSError:
                pass
        review.decide(1, "accepted")
        assert lines_of(people) == before
        assert np.array_equal(labels_of(people, 0), mask)
        assert not list(people.rglob(".*.partial"))
        assert not Review(people).counts()["thrown out"]
    else:
        pytest.fail("it never came to its end")
    assert lines_of(people) != before


def test_a_finish_that_was_killed_leaves_no_mask_that_is_put_back(people, monkeypatch):
    review, before = Review(people), labels_of(people, 0)
    painted = np.ones_like(before)
    review.paint(0, painted)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            review.finish()
    again = Review(people)
    again.set_faces(0, [])
    again.paint(0, np.zeros_like(before))
    again.restore(0)
    assert np.array_equal(labels_of(people, 0), painted), "finished: the mask before is forgotten"


def test_a_finish_on_a_full_disk_is_one_line(people, monkeypatch):
    Review(people).paint(0, np.ones_like(labels_of(people, 0)))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(reviewed.notes, "write", full)
        refused = CliRunner().invoke(main, ["data", "review", str(people), "--finish"])
    assert refused.exit_code == 1
    assert "No space left on device): masks, boxes and decisions are as they were; make room" in refused.output
    assert Review(people).counts()["changed"] == 1


def test_a_killed_command_has_saved_all_and_another_goes_on(people):
    asked = ("-m", "mldm_plugin.cli", "data", "review", people, "--no-browser")
    process = forked.Forked(*asked)
    try:
        while not (process.has_begun and "Ctrl-C ends" in process.stdout):
            assert process.poll() is None, process.stderr
            time.sleep(0.02)
        said = process.stdout.splitlines()
        assert said[0] == "people: 0 of 5 looked at"
        server, token = said[1].removeprefix("open ").strip().split("#")
        with pytest.raises(DataError, match="being reviewed already"), opened(people):
            pass
        told = {"headers": {"X-Page-Token": token}, "json": {"decision": "thrown out"}, "timeout": 60}
        assert requests.put(f"{server}rows/1/decision", **told).status_code == 200
    finally:
        process.kill()
        process.wait()
    assert len(lines_of(people)) == 4
    with opened(people) as review:
        assert review.counts() == {"thrown out": 1, "looked at": 1, "changed": 0}


def test_ctrl_c_ends_it_and_the_browser_is_opened_at_the_page(people, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    opened_at = []
    monkeypatch.setattr(ReviewServer, "serve_forever", interrupted)
    monkeypatch.setattr("webbrowser.open", opened_at.append)
    ended = CliRunner().invoke(main, ["data", "review", str(people)])
    assert ended.exit_code == 0, ended.output
    assert ended.output.count("people: 0 of 5 looked at") == 2
    assert f"open {opened_at[0]}\n" in ended.output
