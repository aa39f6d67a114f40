"""The editing page: what its server draws and refuses, and the page itself in a real browser."""

import base64
import io
import json
import socket
import struct
import sys
import time

import numpy as np
import pytest
import torch
from browser import browser, needs_browser
from click.testing import CliRunner
from local_pages import ask, serving
from PIL import Image
from tiny_conditional import ATTRIBUTES, MASK, SIDE, make_conditional, write_conditional, write_faces

from mldm_plugin.cli import main
from mldm_plugin.conditions.celeba import ATTRIBUTES as NAMES
from mldm_plugin.conditions.celeba import COLOURS, PARTS
from mldm_plugin.evaluation.cases import open_photographs
from mldm_plugin.faces.editing import EditServer
from mldm_plugin.faces.model import FacesModel
from mldm_plugin.page.server import _Handler

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
HAIR = PARTS.index("hair") + 1


@pytest.fixture(scope="module")
def model():
    return FacesModel("tiny", make_conditional((ATTRIBUTES, MASK)))


@pytest.fixture(scope="module")
def held_out(model, tmp_path_factory):
    return open_photographs(write_faces(tmp_path_factory.mktemp("data"), 12), SIDE, conditions=model.encoders)


@pytest.fixture
def server(model, held_out):
    with serving(EditServer(model, held_out, steps=1)) as server:
        yield server


def asked(**changes):
    return {"attributes": None, "semantic_mask": None, "seed": 3, "steps": 1, "guidance": 1, **changes}


def as_text(labels):
    return base64.b64encode(np.asarray(labels, np.uint8).tobytes()).decode()


def face(server, **changes):
    told = ask(server, "/face", "PUT", json=asked(**changes))
    assert told.status_code == 200, told.text
    return np.asarray(Image.open(io.BytesIO(told.content)))


# The server


def test_what_the_page_is_made_from(server, held_out):
    told = ask(server, "/model").json()
    assert told["name"] == "tiny"
    assert (told["side"], told["resolution"], told["faces"]) == (SIDE, SIDE, len(held_out))
    assert told["attributes"] == NAMES
    assert [name for name, _ in told["parts"]] == ["nothing", *PARTS]
    assert [tuple(colour) for _, colour in told["parts"]] == list(COLOURS)
    example = held_out.look(1)
    assert ask(server, "/faces/1").json()["attributes"] == example.conditions["attributes"].int().tolist()
    assert ask(server, "/faces/1/labels").content == example.conditions["semantic_mask"].numpy().tobytes()
    picture = np.asarray(Image.open(io.BytesIO(ask(server, "/faces/1/picture").content)))
    assert np.abs(picture / 127.5 - 1 - example.pixel_values.permute(1, 2, 0).numpy()).max() < 0.01


def test_a_face_is_what_the_pipeline_draws_of_the_conditions_and_of_those_that_are_there_alone(server, model, held_out):
    given = held_out.look(0).conditions
    sent = {"attributes": given["attributes"].int().tolist(), "semantic_mask": as_text(given["semantic_mask"])}
    for names in ((), ("attributes",), ("semantic_mask",), ("attributes", "semantic_mask")):
        alone = model.draw({n: given[n] for n in names}, torch.Generator().manual_seed(3), 1, 2.0)
        assert np.array_equal(face(server, guidance=2.0, **{n: sent[n] for n in names}), np.asarray(alone))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0, expected a whole number from 1 to 1000"),
        ({"steps": True}, "steps is True"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": None}, "seed is None"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"guidance": "2"}, "guidance is '2'"),
        ({"guidance": 10**400}, "expected a number from 0 to 30"),
        ({"attributes": [10**400] * 40}, "expected true or false"),
        ({"semantic_mask": as_text(np.zeros((1024, 1024)))}, "the mask has 1048576 pixels"),
        ({"attributes": [1, 0]}, "attributes are 2 values, expected 40"),
        ({"attributes": [2] * 40}, "is 2, expected true or false"),
        ({"attributes": "x"}, "attributes are 'x'"),
        ({"semantic_mask": "AAAA"}, f"the mask has 3 pixels, expected {SIDE} times {SIDE}"),
        ({"semantic_mask": "%"}, "the mask is no base64"),
        ({"semantic_mask": 3}, "the mask is no base64"),
        ({"semantic_mask": as_text(np.full((SIDE, SIDE), 19))}, "expected whole ones, 0 to 18"),
    ],
)
def test_what_no_face_can_be_drawn_of_is_said(server, changes, message):
    told = ask(server, "/face", "PUT", data=json.dumps(asked(**changes)))
    assert told.status_code == 409
    assert message in told.json()["error"]


def test_nothing_else_is_served_and_nobody_else_is_answered(server):
    for path in (
        "/faces/99",
        "/faces/-1",
        "/faces/0/x",
        "/..%2fedit.html",
        "/etc/passwd",
        "/review.html",
        "/editing.py",
    ):
        assert ask(server, path).status_code == 404, path
    assert ask(server, "/model", "PUT", json={}).status_code == 404
    for headers in ({"X-Page-Token": "x"}, {"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        assert ask(server, "/model", headers=headers).status_code == 403
        assert ask(server, "/face", "PUT", headers, json=asked()).status_code == 403
    assert server.server_address[0] == "127.0.0.1"


def until(so):
    waited = time.monotonic() + 20
    while not so():
        assert time.monotonic() < waited
        time.sleep(0.02)


def test_a_drawing_that_fails_is_said_and_told_in_the_terminal(server, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA out of memory")

    told = []
    monkeypatch.setattr(server, "handle_error", lambda *_: told.append(sys.exc_info()[1]))
    monkeypatch.setattr(FacesModel, "draw", fail)
    answer = ask(server, "/face", "PUT", json=asked())
    assert (answer.status_code, answer.json()["error"]) == (500, "RuntimeError: CUDA out of memory")
    until(lambda: [str(error) for error in told] == ["CUDA out of memory"])


def test_a_page_that_has_left_is_no_fault(server, monkeypatch):
    told, sent = [], []
    send = _Handler._send
    monkeypatch.setattr(server, "handle_error", lambda *_: told.append(sys.exc_info()[1]))
    monkeypatch.setattr(_Handler, "_send", lambda *given: (send(*given), sent.append(given[1])))
    body = json.dumps(asked()).encode()
    head = f"PUT /face HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nX-Page-Token: {server.token}\r\n"
    with server.lock, socket.create_connection(server.server_address) as left:
        left.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset when closed
        time.sleep(0.2)
    until(lambda: sent or told)
    assert (told, sent) == ([], [200])


def test_a_model_of_attributes_alone_without_held_out_faces():
    with serving(EditServer(FacesModel("named", make_conditional((ATTRIBUTES,))), None)) as server:
        told = ask(server, "/model").json()
        assert (told["parts"], told["faces"]) == (None, 0)
        assert ask(server, "/faces/0").status_code == 404
        refused = ask(server, "/face", "PUT", json=asked(semantic_mask=as_text(np.zeros((SIDE, SIDE)))))
        assert refused.json()["error"] == "this model knows no semantic_mask."


def test_the_command_says_what_is_missing(tmp_path):
    def edit(*words):
        done = CliRunner().invoke(main, ["faces", "edit", "--no-browser", *map(str, words)])
        assert done.exit_code == 1
        return done.output

    run = write_conditional(tmp_path / "run")
    assert "is a folder with none of what was looked for" in edit(tmp_path)
    assert "cannot be opened" in edit(run, "--data", tmp_path / "run")
    with EditServer(FacesModel("x", make_conditional(())), None) as server:
        said = edit(run, "--port", server.server_port)
    assert "no held-out faces to begin from" in said
    assert f"port {server.server_port} cannot be used" in said


# The page


class Editing:
    """The page in a browser."""

    def __init__(self, page, server):
        self.page = page
        page.open("about:blank")
        page.open(server.address)
        self.drawn = 0
        self.wait()

    def wait(self):
        """For the next face; returns it."""
        self.drawn += 1
        self.page.until(f"Number(document.body.dataset.drawn) >= {self.drawn}")
        return self.face()

    def face(self):
        url = self.page.value("document.getElementById('face').toDataURL()")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))

    def click(self, name):
        self.page.value(f"document.getElementById('{name}').click()")

    def at(self, x, y):
        """A place of the mask on the screen."""
        box = "document.getElementById('mask').getBoundingClientRect()"
        left, top, width = (self.page.value(f"{box}.{side}") for side in ("left", "top", "width"))
        return left + x * width / SIDE, top + y * width / SIDE

    def labels(self):
        """What is painted, from the colours on the screen."""
        data = self.page.value(
            f"[...document.getElementById('mask').getContext('2d').getImageData(0, 0, {SIDE}, {SIDE}).data]"
        )
        pixels = np.asarray(data).reshape(SIDE, SIDE, 4)[..., :3].tolist()
        return np.array([[COLOURS.index(tuple(colour)) for colour in row] for row in pixels], np.uint8)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as page:
        page.size(1280, 900)
        yield page


@pytest.fixture
def editing(page, server):
    page.errors.clear()
    yield Editing(page, server)
    assert page.errors == []


@needs_browser
def test_painting_changes_the_face_and_undoing_brings_it_back(editing, model, held_out):
    page, given = editing.page, held_out.look(0).conditions
    first, own = editing.face(), editing.labels()
    assert np.array_equal(own, given["semantic_mask"][0].numpy()), "it begins with a held-out face"
    assert np.array_equal(first, np.asarray(model.draw(given, torch.Generator().manual_seed(0), 1, 1.0)))
    editing.click(f"part-{HAIR}")
    page.drag(editing.at(20, 30), editing.at(30, 30), editing.at(44, 30))
    painted = editing.wait()
    labels = editing.labels()
    ys, _ = np.nonzero((labels == HAIR) & (labels != own))
    assert len(ys) > 40
    assert 26 <= ys.min() <= ys.max() <= 34
    there = {**given, "semantic_mask": torch.from_numpy(labels)[None]}
    assert np.array_equal(painted, np.asarray(model.draw(there, torch.Generator().manual_seed(0), 1, 1.0)))
    assert (painted != first).any()
    page.key("z")
    assert np.array_equal(editing.wait(), first)
    assert np.array_equal(editing.labels(), own)
    page.key("y")
    assert np.array_equal(editing.wait(), painted)


@needs_browser
def test_attributes_seed_and_guidance_and_what_is_absent(editing, model, held_out):
    given = held_out.look(0).conditions
    editing.click("attribute-Smiling")
    smiling = given["attributes"].clone()
    smiling[NAMES.index("Smiling")] = 1 - smiling[NAMES.index("Smiling")]
    changed = {**given, "attributes": smiling}
    assert np.array_equal(editing.wait(), np.asarray(model.draw(changed, torch.Generator().manual_seed(0), 1, 1.0)))
    editing.click("mask-given")
    named = {"attributes": smiling}
    assert np.array_equal(editing.wait(), np.asarray(model.draw(named, torch.Generator().manual_seed(0), 1, 1.0)))
    editing.click("attributes-given")
    nothing = editing.wait()
    assert np.array_equal(nothing, np.asarray(model.draw({}, torch.Generator().manual_seed(0), 1, 1.0)))
    editing.click("another")
    assert np.array_equal(editing.wait(), np.asarray(model.draw({}, torch.Generator().manual_seed(1), 1, 1.0)))
    editing.click("attributes-given")
    editing.wait()
    editing.page.value("document.getElementById('guidance').value = 3")
    editing.click("draw")
    assert np.array_equal(editing.wait(), np.asarray(model.draw(named, torch.Generator().manual_seed(1), 1, 3.0)))


@needs_browser
def test_what_a_held_out_face_lacks_is_no_longer_given(page, model, held_out, tmp_path):
    folder = write_faces(tmp_path, 12)
    rows = folder / "validation" / "metadata.jsonl"
    first, second = map(json.loads, rows.read_text(encoding="utf-8").splitlines())
    bare = {name: value for name, value in second.items() if name not in ("parts_file_name", "attributes")}
    rows.write_text("".join(json.dumps(row) + "\n" for row in (first, bare)), encoding="utf-8")
    some = open_photographs(folder, SIDE, conditions=model.encoders)
    with serving(EditServer(model, some, steps=1)) as server:
        editing = Editing(page, server)
        page.value("document.getElementById('number').value = 1")
        editing.click("load")
        drawn = editing.wait()
        assert page.value("document.getElementById('mask-frame').classList.contains('absent')")
        assert page.value("document.getElementById('attributes').classList.contains('absent')")
        assert np.array_equal(drawn, face(server, seed=0))
        page.value("document.getElementById('number').value = 0")
        editing.click("load")
        both = some.look(0).conditions
        given = {"attributes": both["attributes"].int().tolist(), "semantic_mask": as_text(both["semantic_mask"])}
        assert np.array_equal(editing.wait(), face(server, seed=0, **given)), "what it has is given again"
        page.value("document.getElementById('number').value = 1")
        editing.click("load")
        editing.wait()
        page.drag(editing.at(20, 20))
        editing.wait()
        assert page.value("document.getElementById('mask-given').checked"), "what is painted is given"


@needs_browser
def test_fill_size_another_face_and_what_is_refused(editing, held_out, tmp_path):
    page = editing.page
    page.value("document.getElementById('auto').click()")
    before = page.value("document.getElementById('size-told').textContent")
    page.key("]")
    assert page.value("document.getElementById('size-told').textContent") != before
    editing.click("clear")
    page.key("f")
    editing.click("part-17")
    page.drag(editing.at(5, 5))
    assert (editing.labels() == 17).all()
    page.value("document.getElementById('number').value = 1")
    editing.click("load")
    page.until("document.getElementById('before').querySelector('small').textContent === 'held-out face 1'")
    assert np.array_equal(editing.labels(), held_out.look(1).conditions["semantic_mask"][0].numpy())
    page.value("document.getElementById('steps').value = 0")
    editing.click("draw")
    page.until("document.getElementById('alarm').textContent.startsWith('steps is 0')")
    page.errors.clear()  # the browser tells of the refused request, too
    page.size(390, 800, mobile=True)
    assert page.value("document.documentElement.scrollWidth <= innerWidth"), "on a phone nothing stands out"
    page.screenshot(tmp_path / "phone.png")
    page.size(1280, 900)
    page.screenshot(tmp_path / "page.png")
