"""The page of an evaluation in a browser that is driven: on a telephone and on a desk, by day and by night."""

import pytest
from browser import browser, needs_browser
from evaluation_results import make_results

from mldm_plugin.evaluation.report import page
from mldm_plugin.evaluation.thumbnails import embed

PHONE, DESK = 390, 1440
RED = {False: "rgb(179, 38, 30)", True: "rgb(255, 138, 128)"}
SHOT = "document.querySelector('#gallery .gallery .shot')"
FACE = "document.querySelector('{} .crops img')"


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The page of three models, one of which trained on the network that judges it."""
    folder = tmp_path_factory.mktemp("page")
    results = make_results(folder)
    results["metrics"][0]["trained_on"] = {"dlib_resnet": ["mldm"]}
    (folder / "page.html").write_text(page(results, embed(results, folder)), encoding="utf-8")
    with browser(folder / "profile") as driven:
        driven.address = (folder / "page.html").as_uri()
        yield driven


def opened(shown, width, dark):
    shown.size(width, 900, dark=dark, mobile=width == PHONE)
    shown.open(shown.address)
    shown.until(f"document.documentElement.dataset.drawn && innerWidth === {width}")
    return shown


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_it_fits_in_the_colours_of_the_hour_and_a_party_is_told_in_red(shown, width, dark):
    opened(shown, width, dark)
    assert shown.value("document.documentElement.scrollWidth") <= width
    ground = shown.value("getComputedStyle(document.body).backgroundColor")
    assert (int(ground.split("(")[1].split(",")[0]) < 60) is dark
    alert = "document.querySelector('.alert:not(.mild) .alert-title')"
    assert shown.value(f"getComputedStyle({alert}).color") == RED[dark]
    assert "no independent judge" in shown.value(f"{alert}.parentElement.textContent")
    own = "document.querySelector('#metric-likeness .own')"
    assert shown.value(f"getComputedStyle({own}).color") == RED[dark]
    assert shown.errors == []


@needs_browser
def test_a_face_is_enlarged_under_the_pointer_and_all_of_them_on_a_tap(shown):
    opened(shown, DESK, dark=False)
    shown.scroll_to(SHOT)
    place = (
        f"(({{ left, top, width, height }}) => [left + width / 2, top + height / 2])({SHOT}.getBoundingClientRect())"
    )
    small = shown.value(f"{SHOT}.querySelector('.box').getBoundingClientRect().width")
    shown.hover(*shown.value(place))
    large = shown.until(f"{FACE.format('#hint')}?.naturalWidth && {FACE.format('#hint')}.getBoundingClientRect().width")
    assert large > 3 * small
    opened(shown, PHONE, dark=False)
    shown.scroll_to(SHOT)
    shown.drag(shown.value(place))
    shown.until("document.getElementById('lightbox').open")
    assert shown.value("document.querySelectorAll('#lightbox .crops img').length") == 4
    assert shown.value("document.querySelector('#lightbox').getBoundingClientRect().right") <= PHONE
    assert shown.errors == []


@needs_browser
def test_how_it_was_made_can_be_read(shown):
    opened(shown, DESK, dark=False)
    said = shown.value("document.getElementById('method').textContent")
    for word in ("mldm evaluate --model a=b --out somewhere", "ab12", "torch 2.6.0", "dpm++, 20 steps"):
        assert word in said, word
