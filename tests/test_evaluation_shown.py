"""The page of an evaluation as a browser draws it: verdicts, tables, pictures, and odd results."""

import re

import pytest
from browser import browser, needs_browser
from evaluation_results import NASTY, difference, estimate, make_results

from mldm_plugin.evaluation.report import page
from mldm_plugin.evaluation.thumbnails import embed

pytestmark = needs_browser
EIGHT = tuple(f"model_{k}" for k in range(8))
DRAWN = """
document.documentElement.dataset.drawn &&
  [...document.querySelectorAll('.drawing')].every((place) => !place.clientWidth || place.children.length)
"""
TWO_FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"


@pytest.fixture
def results(tmp_path):
    return make_results(tmp_path)


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def shown(tmp_path, driven):
    """What a browser makes of results; `then` is a script that runs when the page is drawn."""

    def show(results, then="", width=1400):
        (tmp_path / "page.html").write_text(page(results, embed(results, tmp_path)), encoding="utf-8")
        driven.size(width, 1000)
        driven.open((tmp_path / "page.html").as_uri())
        driven.until(DRAWN)
        driven.value(f"{{ {then} }} {TWO_FRAMES}")
        assert driven.errors == []
        dom = driven.value("document.documentElement.outerHTML")
        root, body = dom[: dom.index("<head")], dom[dom.index("<body") :]
        seen = re.sub(r"<script.*?</script>|base64,[^\"]*|<wbr>", "", body, flags=re.DOTALL)
        assert not re.findall(r".{30}\b(?:NaN|undefined|Infinity|\[object)\b.{30}", seen)
        return root + seen

    return show


def words(dom):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", dom))


def test_the_page_shows_verdicts_tables_pictures_and_curves(results, shown):
    results["metrics"][0]["trained_on"] = {"dlib_resnet": ["mldm"]}
    results["metrics"][1]["differences"]["mldm"] = difference(0.05)
    results["failed"] = {"broken": "it does not load"}
    results["missing"] = {"identity": "it needs pictures of --person"}
    results["models"][2]["runs"][0]["proof"] = "Start-up proof (convex mix)\n  face  reaches the network"
    dom = shown(results)
    said = words(dom)
    assert "mldm is better than base in 3 of 4 metrics, worse in none" in said
    assert "in the other 1 no difference is shown" in said
    assert "1 of those 3 looks with a network that its own loss trained on." in said
    assert "3 models drew the same 5 prompts from the same noise" in said
    assert "The model broken failed and is left out: it does not load" in said
    assert "identity : it needs pictures of --person" in said
    assert "Start-up proofs mldm Start-up proof (convex mix) face reaches the network" in said
    assert dom.count('class="metric"') == 4
    assert len(re.findall(r'<svg class="chart"', dom)) >= 4 * (3 + 2) + 2 + 2 * 2
    gallery = dom[dom.index('id="gallery"') : dom.index('id="extremes"')]
    assert len(re.findall(r"<button[^>]*class=\"shot\"", gallery)) == (3 + 1) * 5
    for title in ("Summary", "Gallery", "Best and worst", "One step, over t", "Distributions", "How it was made"):
        assert f">{title}</h2>" in dom
    assert all('alt="' in image for image in re.findall(r"<img[^>]*>", dom))


def test_the_page_opens_with_what_came_out_and_folds_what_too_few_cases_were_asked_of(results, shown):
    results["metrics"][0] |= {"name": "identity"}
    results["metrics"][0]["differences"]["mldm"] = difference(-0.5)
    results["metrics"][3] |= {"too_few": True, "cases": 1}
    dom = shown(results)
    said = words(dom[dom.index('class="verdicts"') : dom.index('class="abstract"')])
    assert "Worse : faces are farther from the person (likeness 2." in said
    assert re.search(r" mldm against base (Better|Worse) :", said)  # whose words they are
    assert "1 more on 1 photograph, too few to show anything" in said
    assert "of 3 metrics" in said
    few = dom[dom.index('<details class="few"') :]
    assert "1 metric on 1 photograph: too few to show any difference" in words(few)
    assert 'id="metric-one_step_error"' in few[: few.index("</details>")]
    assert dom.count('class="metric"') == 4


def test_where_nothing_was_drawn_the_page_says_so(tmp_path, shown):
    results = make_results(tmp_path, cases=0)
    results["metrics"] = [metric for metric in results["metrics"] if metric["kind"] == "one_step"]
    assert "in single steps, with the same noise, by 1 metric; nothing was drawn." in words(shown(results))


def test_a_nasty_prompt_does_nothing_in_a_browser(results, shown):
    dom = shown(results, then="document.querySelector('.gallery .shot').click()")
    assert 'src="x"' not in dom
    assert "<img src=x" not in dom
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in dom


def one_model(out):
    return make_results(out, models=("only",))


def eight_models(out):
    return make_results(out, models=EIGHT, cases=3)


def without_photographs(out):
    results = make_results(out)
    return results | {"photographs": None, "photographs_of_cases": {}}


def without_one_step(out):
    results = make_results(out)
    metrics = [metric for metric in results["metrics"] if metric["kind"] != "one_step"]
    return results | {"curves": [], "metrics": metrics}


def nulls(out):
    results = make_results(out)
    for metric in results["metrics"]:
        metric["models"]["base"] = estimate(None)
        metric["models"]["mldm"] = estimate(0.5, None)
        metric["differences"] = {"plain": difference(None), "mldm": difference(0.2, None)}
        metric["values"] = {name: [None, *values[1:]] for name, values in metric["values"].items()}
    for lines in results["curves"][0]["models"].values():
        lines[1] = estimate(None)
    results["pictures"]["plain"].pop("00001")
    results["faces"] = {}
    return results


def nothing_varies(out):
    results = make_results(out)
    for metric in results["metrics"]:
        metric["values"] = {name: [1.0] * len(values) for name, values in metric["values"].items()}
        metric["models"] = {name: estimate(1.0, 0.0) for name in metric["models"]}
        metric["differences"] = {name: difference(0.0, 0.0) for name in metric["differences"]}
    return results


def hardly_anything(out):
    results = make_results(out, cases=1)
    return results | {"metrics": [], "curves": [], "pictures": {}, "faces": {}, "photographs_of_cases": {}}


ODD = [one_model, eight_models, without_photographs, without_one_step, nulls, nothing_varies, hardly_anything]


@pytest.mark.parametrize("make", ODD)
def test_odd_results_are_shown(make, shown, tmp_path):
    results = make(tmp_path)
    wide = "document.documentElement.dataset.wide = String(document.documentElement.scrollWidth > innerWidth + 1);"
    dom = shown(results, then=wide, width=500)
    assert 'data-wide="false"' in dom
    assert ('id="curves"' in dom) == bool(results["curves"])
    assert (">photo</span>" in dom) == bool(results["photographs_of_cases"])
    for model in results["models"]:
        assert f">{model['name']}</span>" in dom


def test_too_little_is_a_note_and_no_warning(shown, tmp_path):
    results = make_results(tmp_path)
    results["notes"] = [["Too few photographs to show any difference.", "Of 2 the smallest p-value is 0.5."]]
    dom = shown(results)
    assert 'aria-label="Warnings"' not in dom
    assert re.search(r'<details class="alert mild"><summary class="alert-title">Too few photographs', dom)
    results["warnings"] = [["The photographs may not be held out from training.", "No split."]]
    assert 'aria-label="Warnings"' in shown(results)


def test_long_names_do_not_lie_over_their_values_on_a_telephone(shown, tmp_path):
    results = make_results(tmp_path, models=("plain", "plain_for_the_same_time_as_masked_ldm"))
    then = """
      document.body.style.width = '360px';
      const box = (row, name) => row.querySelector(name).getBoundingClientRect();
      const rows = [...document.querySelectorAll('.summary .metric tr')];
      const gaps = rows.map((row) => box(row, '.value').left - box(row, '.name .model').right);
      document.documentElement.dataset.gap = Math.floor(Math.min(...gaps));
      document.documentElement.dataset.rows = rows.length;
    """
    dom = shown(results, then=then, width=500)
    assert 'data-rows="8"' in dom
    assert int(re.search(r'data-gap="(-?\d+)"', dom)[1]) >= 0


def test_on_paper_the_gallery_wraps_and_what_is_chosen_is_text(shown, tmp_path):
    results = make_results(tmp_path, cases=14, size=(8, 8))
    then = """
      const tables = () => [...document.querySelectorAll('table.gallery')].map((one) =>
        [...one.rows].map((row) => row.cells.length).join(' ')).join('|');
      const whole = document.querySelector('table.gallery').innerHTML, root = document.documentElement.dataset;
      dispatchEvent(new Event('beforeprint'));
      root.paper = tables();
      dispatchEvent(new Event('afterprint'));
      root.after = String(document.querySelector('table.gallery').innerHTML === whole);
    """
    dom = shown(results, then=then)
    assert 'data-paper="7 7 7 7 7|7 7 7 7 7|3 3 3 3 3"' in dom, "a head, the photographs, three models"
    assert 'data-after="true"' in dom
    assert '<p class="on-paper">Likeness of it, mldm.</p>' in dom
    asks = re.compile(r"\b(hover|click|tap|arrow keys)\b", re.IGNORECASE)
    assert asks.search(words(dom))
    assert not asks.search(words(re.sub(r'<span class="on-screen">.*?</span>', "", dom)))


def test_the_lightbox_goes_on_by_arrow_keys(results, shown):
    then = """
      const box = document.getElementById('lightbox');
      const key = (name) => box.dispatchEvent(new KeyboardEvent('keydown', { key: name }));
      document.querySelectorAll('.gallery tbody tr')[1].querySelectorAll('.shot')[1].click();
      key('ArrowRight'); key('ArrowRight'); key('ArrowLeft');
    """
    dom = shown(results, then=then)
    lightbox = dom[dom.index('id="lightbox"') : dom.index("</dialog>")]
    assert "a person, number 2" in lightbox
    assert "3 of 5" in lightbox
    assert len(re.findall("<figure", lightbox)) == 4
    assert len(re.findall(r'class="face"', lightbox)) == 4
    assert re.search(r'<dialog[^>]* open=""', dom)


def test_what_is_drawn_from_stands_beside_what_was_drawn(results, shown, tmp_path):
    """Attributes as words, the mask as a picture, and what single parts come to."""
    keys = [case["key"] for case in results["cases"]]
    results["conditions_of_cases"] = {
        key: {"words": f"Smiling, Pale Skin {i}, {NASTY}", "path": f"photographs/{key}.png"}
        for i, key in enumerate(keys)
    }
    results["parts"] = {"distance": {"all": {"photographs": 0.97, "base": 0.5, "mldm": 0.9}, NASTY: {"mldm": 0.25}}}
    dom = shown(results, then="document.querySelectorAll('.gallery tbody tr')[1].querySelectorAll('.shot')[2].click();")
    gallery = dom[dom.index('id="gallery"') : dom.index('id="extremes"')]
    assert len(re.findall(r"<button[^>]*class=\"shot\"", gallery)) == (3 + 2) * 5, "photographs, masks and three models"
    assert gallery.count('aria-label="Enlarge. The mask that is drawn from for:') == 5
    lightbox = dom[dom.index('id="lightbox"') : dom.index("</dialog>")]
    assert "Smiling, Pale Skin 2" in lightbox
    assert len(re.findall("<figure", lightbox)) == 5
    assert "<img src=x" not in dom
    parts = words(dom[dom.index('id="parts"') : dom.index('id="extremes"')])
    assert re.search(r"part photographs base plain mldm all 0.97\d* 0.50\d* – 0.90\d*", parts)
    assert "By part" in parts


def test_the_selected_metric_tells_best_from_worst(results, shown):
    results["metrics"][1]["values"] = {"base": [1, 1, 1, 1, 1], "plain": [0, 0, 0, 0, 0], "mldm": [1, 3, 1, 0, 2]}
    then = """
      const [metric, model] = document.querySelectorAll('#extremes select');
      metric.value = 'sharp'; metric.dispatchEvent(new Event('change'));
    """
    dom = shown(results, then=then)
    best, worst = dom[dom.index('class="column better"') :].split('class="column worse"')
    assert re.findall(r'class="number">([+−][\d.]+)</b>', best) == ["+2.000", "+1.000"]
    assert re.findall(r'class="number">([+−][\d.]+)</b>', worst) == ["−1.000"]
