"""The review's page in a real browser: its keys, its brush, and what of it is on disk."""

import json

import numpy as np
import pytest
from browser import browser, needs_browser
from local_pages import serving
from PIL import Image, ImageDraw

from mldm_plugin.prepare.label_png import label_png
from mldm_plugin.prepare.review.folder import Review
from mldm_plugin.prepare.review.server import ReviewServer

pytestmark = needs_browser
SIDE = 100
CONTROL = 2


def make_people(folder, count=4):
    """Grey pictures with a red disc each, which is person 1, and a face box on it."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rows = []
    for k in range(count):
        picture, labels = Image.new("RGB", (SIDE, SIDE), "grey"), Image.new("L", (SIDE, SIDE))
        ImageDraw.Draw(picture).ellipse((20, 20, 60, 60), fill="red")
        ImageDraw.Draw(labels).ellipse((20, 20, 60, 60), fill=1)
        picture.save(folder / f"images/{k}.png")
        (folder / f"masks/{k}.png").write_bytes(label_png(np.array(labels)))
        row = {"file_name": f"images/{k}.png", "text": f"<img src=x onerror=alert({k})>", "person_count": 1}
        row |= {
            "mask_file_name": f"masks/{k}.png",
            "face_boxes": [[30, 30, 50, 50]],
            "face_sizes": [20.0],
            "face_scores": [0.5],
        }
        rows.append(row)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


class Reviewing:
    """A page, the folder that it reviews, and places of a picture on the screen."""

    def __init__(self, page, folder, server):
        self.page, self.folder, self.server = page, folder, server

    def open(self):
        self.page.open("about:blank")
        self.page.open(self.server.address)
        self.page.until("document.getElementById('place').textContent")

    def at(self, x, y):
        left, top, width, height = json.loads(
            self.page.value(
                "JSON.stringify((({left, top, width, height}) => [left, top, width, height])"
                "(document.getElementById('drawn').getBoundingClientRect()))"
            )
        )
        scale = min(width, height) / SIDE
        return left + (width - SIDE * scale) / 2 + x * scale, top + (height - SIDE * scale) / 2 + y * scale

    def place(self, place):
        self.page.until(f"document.getElementById('place').textContent === '{place}'")

    def saved(self):
        self.page.until("document.getElementById('saved').textContent === 'saved'")
        assert self.page.value("document.getElementById('alarm').hidden")

    def says(self, name):
        return self.page.value(f"document.getElementById('{name}').textContent")

    def labels(self, number):
        with Image.open(self.folder / f"masks/{number}.png") as opened:
            return np.array(opened)

    def rows(self):
        return [json.loads(line) for line in (self.folder / "metadata.jsonl").read_text().splitlines()]

    def pixel(self, canvas, x, y):
        """Colour at a place of the picture."""
        left, top = self.at(x, y)
        return self.page.value(
            f"[...document.getElementById('{canvas}').getContext('2d').getImageData("
            f"{left} - document.getElementById('drawn').getBoundingClientRect().left, "
            f"{top} - document.getElementById('drawn').getBoundingClientRect().top, 1, 1).data]"
        )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as page:
        page.size(1280, 800)
        yield page


@pytest.fixture
def reviewing(page, tmp_path):
    make_people(tmp_path / "people")
    page.size(1280, 800)
    page.errors.clear()
    with serving(ReviewServer(Review(tmp_path / "people"))) as server:
        shown = Reviewing(page, tmp_path / "people", server)
        shown.open()
        yield shown
    assert page.errors == []


def test_keys_decide_and_go_on_and_the_page_begins_where_it_was(reviewing):
    page = reviewing.page
    assert reviewing.says("progress-words") == "0 of 4 looked at"
    page.key("a")
    reviewing.place("2/4")
    page.key("x")
    reviewing.place("3/4")
    page.key("ArrowLeft")
    reviewing.place("2/4")
    page.until("document.getElementById('stamp').textContent === 'thrown out'")
    reviewing.saved()
    assert [row["file_name"] for row in reviewing.rows()] == ["images/0.png", "images/2.png", "images/3.png"]
    reviewing.open()
    reviewing.place("3/4")
    assert reviewing.says("progress-words") == "2 of 4 looked at"
    page.key("ArrowLeft")
    reviewing.place("2/4")
    page.key("c")
    reviewing.saved()
    assert len(reviewing.rows()) == 4
    page.key("Enter")
    reviewing.place("3/4")
    page.key("z")
    reviewing.place("2/4")
    reviewing.saved()
    assert reviewing.says("progress-words") == "1 of 4 looked at"
    page.key("n")
    reviewing.place("3/4")


def test_a_caption_is_text_and_the_photo_stays_untouched(reviewing):
    assert reviewing.says("caption") == "<img src=x onerror=alert(0)>"
    reviewing.page.until("document.getElementById('drawn').width > 0")
    assert reviewing.pixel("photo", 21.2, 40) == reviewing.pixel("photo", 40, 40) == [255, 0, 0, 255]
    assert reviewing.pixel("drawn", 40, 40) == [255, 0, 0, 255]  # inside, nothing is painted over
    line = [reviewing.pixel("drawn", 20 + k / 8, 40)[:3] for k in range(-8, 9)]
    assert min(sum(colour) for colour in line) < 240  # the dark line; the grounds have 255 and 384
    assert any(green > 80 and red > 200 for red, green, _ in line)  # the light one in it


def test_brush_and_eraser_paint_what_is_stored_and_undo_takes_it_back(reviewing):
    page, before = reviewing.page, reviewing.labels(0)
    page.key("b")
    page.key("p")
    for _ in range(3):
        page.key("]")
    page.drag(reviewing.at(70, 80), reviewing.at(80, 80), reviewing.at(90, 80))
    reviewing.saved()
    painted = reviewing.labels(0)
    assert set(np.unique(painted)) == {0, 1, 2}
    ys, xs = np.nonzero(painted == 2)
    radius = 12 * SIDE / 512 * 1.25**3
    assert np.allclose(
        [xs.min(), xs.max() + 1, ys.min(), ys.max() + 1], [70 - radius, 90 + radius, 80 - radius, 80 + radius], atol=1.2
    )
    assert np.array_equal(painted == 1, before == 1)
    assert reviewing.rows()[0]["person_count"] == 2
    page.key("e")
    page.drag(reviewing.at(40, 40), reviewing.at(40, 41))
    reviewing.saved()
    assert reviewing.labels(0)[40, 40] == 0
    page.key("z", CONTROL)
    reviewing.saved()
    assert np.array_equal(reviewing.labels(0), painted)
    page.key("z")
    reviewing.saved()
    assert np.array_equal(reviewing.labels(0), before)
    page.key("y")
    reviewing.saved()
    assert np.array_equal(reviewing.labels(0), painted)
    reviewing.open()
    page.key("o")
    page.until("document.getElementById('act-original').disabled")
    assert np.array_equal(reviewing.labels(0), before)
    assert reviewing.rows()[0]["person_count"] == 1


def test_fill_gives_a_piece_to_another_person_where_the_picture_is_enlarged(reviewing):
    page = reviewing.page
    page.key("p")
    page.key("f")
    page.key("+")  # the middle stays where it is
    page.drag(reviewing.at(50, 50))
    reviewing.saved()
    labels = reviewing.labels(0)
    assert set(np.unique(labels)) == {0, 2}
    assert np.array_equal(labels == 2, reviewing.labels(1) == 1)


def test_face_boxes_are_moved_added_and_removed(reviewing):
    page = reviewing.page
    page.key("r")
    page.drag(reviewing.at(40, 40), reviewing.at(45, 42), reviewing.at(50, 45))
    reviewing.saved()
    assert np.allclose(reviewing.rows()[0]["face_boxes"], [[40, 35, 60, 55]], atol=0.3)
    page.drag(reviewing.at(60, 55), reviewing.at(70, 60))
    reviewing.saved()
    assert np.allclose(reviewing.rows()[0]["face_boxes"], [[40, 35, 70, 60]], atol=0.3)
    page.drag(reviewing.at(5, 5), reviewing.at(20, 25))
    reviewing.saved()
    assert np.allclose(reviewing.rows()[0]["face_boxes"], [[40, 35, 70, 60], [5, 5, 20, 25]], atol=0.3)
    page.drag(reviewing.at(55, 50))
    page.key("Delete")
    reviewing.saved()
    assert np.allclose(reviewing.rows()[0]["face_boxes"], [[5, 5, 20, 25]], atol=0.3)
    page.key("z")
    reviewing.saved()
    assert len(reviewing.rows()[0]["face_boxes"]) == 2
    reviewing.open()
    page.key("r")
    page.drag(reviewing.at(12, 15), reviewing.at(12, 17))
    reviewing.saved()
    assert np.allclose(reviewing.rows()[0]["face_boxes"], [[40, 35, 70, 60], [5, 7, 20, 27]], atol=0.3)
    assert reviewing.rows()[0]["face_scores"] == [0.5, 1.0]


def test_a_picture_that_is_not_shown_yet_is_not_decided(reviewing):
    page = reviewing.page
    page.value(
        "window.kept = window.fetch; window.slow = []; window.fetch = (path, options) => options.method ? "
        "kept(path, options) : new Promise((go) => slow.push(() => go(kept(path, options))))"
    )
    page.key("x")
    page.key("x")
    page.key("a")
    page.value("window.fetch = window.kept; window.slow.forEach((go) => go())")
    reviewing.place("2/4")
    reviewing.saved()
    assert Review(reviewing.folder).counts() == {"thrown out": 1, "looked at": 1, "changed": 0}


def test_what_is_refused_is_said_until_the_page_is_loaded_again(reviewing):
    page, server = reviewing.page, reviewing.server
    token, server.token = server.token, "another"
    page.key("c")
    page.until("document.getElementById('alarm').textContent.startsWith('Not saved: without this review')")
    server.token = token
    page.key("a")
    reviewing.place("2/4")
    assert not page.value("document.getElementById('alarm').hidden")
    page.errors.clear()
    page.value("document.querySelector('#alarm button').click()")
    page.until("document.getElementById('alarm')?.hidden")


def test_what_could_not_be_sent_waits(reviewing):
    page = reviewing.page
    page.value("window.kept = window.fetch; window.fetch = () => Promise.reject(new TypeError('gone'))")
    page.key("c")
    page.until("document.getElementById('alarm').textContent.startsWith('Not saved, 1 change waiting')")
    page.value("window.fetch = window.kept; document.querySelector('#alarm button').click()")
    reviewing.saved()
    page.key("x")
    reviewing.place("2/4")
    reviewing.saved()
    assert len(reviewing.rows()) == 3


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(360, 640), (844, 390), (1920, 1000)], ids=str)
def test_all_of_it_fits_on_a_phone_and_on_a_wide_screen(reviewing, width, height, dark):
    page = reviewing.page
    page.size(width, height, dark=dark, mobile=width < 900)
    page.key("b")
    page.until(f"innerWidth === {width}")
    fits = (
        "[...document.querySelectorAll('body > :not(dialog) button, canvas')].filter((one) => one.offsetParent)"
        ".map((one) => [one.id || one.className, one.getBoundingClientRect()])"
        f".filter(([, box]) => box.left < 0 || box.right > {width} || box.top < 0 || box.bottom > {height})"
        ".map(([name]) => name).join()"
    )
    page.until(f"{fits} === ''")  # it is laid out anew after the window has its size
    page.until(f"document.getElementById('drawn').getBoundingClientRect().height > {height / 6}")
    background = page.value("getComputedStyle(document.body).backgroundColor")
    assert (int(background.split("(")[1].split(",")[0]) < 60) is dark
