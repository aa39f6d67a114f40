import base64
import hashlib
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluation_results import NASTY, difference, estimate, make_results
from PIL import Image

from mldm_plugin.evaluation import figures, showing, thumbnails
from mldm_plugin.evaluation.cases import Case
from mldm_plugin.evaluation.digits import decimals
from mldm_plugin.evaluation.figures import write_figures
from mldm_plugin.evaluation.latex import as_tex, escaped
from mldm_plugin.evaluation.measuring import BOXES, Metrics, measure
from mldm_plugin.evaluation.notes import Notes, read_notes
from mldm_plugin.evaluation.picture import FoundFace, Picture
from mldm_plugin.evaluation.report import page, write_report
from mldm_plugin.evaluation.thumbnails import around, embed, extreme_cases, gallery_cases, shown_cases
from mldm_plugin.page import document

EIGHT = tuple(f"model_{k}" for k in range(8))


@pytest.fixture
def results(tmp_path):
    return make_results(tmp_path)


def data_of(html):
    return json.loads(re.search(r'id="results">(.*?)</script>', html, re.DOTALL)[1])


def test_a_report_is_written_with_its_table_and_figures(results, tmp_path):
    pytest.importorskip("matplotlib")
    write_report(results, tmp_path)
    assert "<title>base · plain · mldm" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "\\toprule" in (tmp_path / "table.tex").read_text(encoding="utf-8")
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert written == {f"{name}.{suffix}" for name in figures.FIGURES for suffix in ("png", "svg")}
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "figures").iterdir()}
    write_figures(results, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    with Image.open(tmp_path / "figures/gallery.png") as gallery:
        assert len(gallery.convert("RGB").getcolors(1 << 24)) > 10


def test_the_page_needs_nothing_outside_itself(results, tmp_path):
    html = page(results, embed(results, tmp_path))
    without_names = html.replace("http://www.w3.org/2000/svg", "")
    assert "http" not in without_names.replace("http-equiv", "")
    assert not re.search(r"(src|href)=[\"'](?!#)", html)
    for kind, element in (("script", r"<script>(.*?)</script>"), ("style", r"<style>(.*?)</style>")):
        content = re.search(element, html, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in html


def test_nothing_in_a_prompt_ends_the_element_that_holds_it(results, tmp_path):
    results["failed"] = {"broken": "</script><script>alert(2)</script>"}
    html = page(results, embed(results, tmp_path))
    assert html.count("<script") == html.count("</script>") == 2
    assert "<img" not in html
    assert data_of(html)["cases"][0]["text"] == NASTY
    assert data_of(html)["failed"] == results["failed"]


def test_a_page_of_half_a_surrogate_can_be_written(results, tmp_path):
    results["cases"][0]["text"] = "\ud800"
    page(results, embed(results, tmp_path)).encode("utf-8")


def test_the_gallery_holds_48_prompts_evenly_over_all(tmp_path):
    results = make_results(tmp_path, cases=100, size=(8, 8))
    gallery = gallery_cases(results)
    assert len(gallery) == len(set(gallery)) == thumbnails.SHOWN
    assert gallery[0] == "00000"
    assert gallery[-1] == "00097"
    results["person"] = [next(iter(results["pictures"]["plain"].values())), "person/none.png"]
    embedded = embed(results, tmp_path)
    assert len(embedded["person"]) == 1, "what is gone is left out"
    assert embedded["gallery"] == gallery
    assert not embedded["spent"]
    extremes = set(extreme_cases(results))
    assert extremes <= set(shown_cases(results)) == embedded["models"]["mldm"].keys()


def test_the_worst_and_best_of_each_metric_are_among_the_extremes(results):
    results["metrics"] = results["metrics"][:1]
    results["metrics"][0]["values"] = {"base": [0, 0, 0, 0, 0], "plain": [0, 9, None, -9, 1], "mldm": [5, 0, 0, 0, -1]}
    assert extreme_cases(results)[:4] == ["00003", "00001", "00004", "00000"]


def test_the_size_is_bounded_whatever_the_pictures_hold(tmp_path, monkeypatch):
    results = make_results(tmp_path, cases=6, size=(400, 300), noise=True)
    monkeypatch.setattr(thumbnails, "LARGEST", 1_500_000)
    embedded = embed(results, tmp_path)
    assert embedded["spent"]
    assert 0 < len(embedded["gallery"]) < 6
    assert len(page(results, embedded)) < 1_600_000


def test_pictures_are_small_and_faces_are_cut_from_the_large_ones(tmp_path):
    results = make_results(tmp_path, models=("only",), cases=1, size=(1000, 500))
    results["faces"] = {"only": {"00000": [[0, 0, 100, 100], [500, 100, 900, 500]]}}
    results["hands"] = {"only": {"00000": [[200, 200, 240, 240]]}}
    one = embed(results, tmp_path)["models"]["only"]["00000"]
    assert opened(one["src"]).size == (384, 192)
    assert one["boxes"] == [[0.5, 0.2, 0.9, 1.0], [0.0, 0.0, 0.1, 0.2], [0.2, 0.4, 0.24, 0.48]]
    assert [opened(cut).size for cut in one["cuts"]] == [(192, 192), (130, 130), (52, 52)]
    assert one["faces"] == 2, "then come the hands"


def opened(src):
    import io

    return Image.open(io.BytesIO(base64.b64decode(src)))


@pytest.mark.parametrize(
    ("box", "square"),
    [
        ((40, 40, 60, 60), (37, 37, 63, 63)),
        ((0, 0, 20, 20), (0, 0, 26, 26)),
        ((90, 90, 100, 100), (87, 87, 100, 100)),
        ((0, 0, 100, 100), (0, 0, 100, 100)),
        ((5, 5, 5, 5), (4, 4, 5, 5)),
    ],
)
def test_the_square_around_a_face_lies_inside_the_picture(box, square):
    assert around(box, (100, 100)) == square


def test_a_picture_that_is_gone_is_left_out(results, tmp_path, caplog):
    (tmp_path / results["pictures"]["plain"]["00002"]).unlink()
    (tmp_path / results["pictures"]["plain"]["00003"]).write_bytes(b"no picture")
    embedded = embed(results, tmp_path)
    assert sorted(embedded["models"]["plain"]) == ["00000", "00001", "00004"]
    assert "00002-0.png" in caplog.text


def test_numbers_are_told_to_two_digits_of_their_intervals():
    def of(*widths, value=0.5):
        models = {str(k): estimate(value, width) for k, width in enumerate(widths)}
        return decimals({"models": models, "differences": {}})

    assert [of(0.1), of(0.02), of(3.0), of(400.0), of(1e-9)] == [2, 3, 1, 0, 6]
    assert [of(0.0), of(None), of(0.0, value=0.0), of(None, value=None)] == [3, 3, 0, 0]


def luminance(colour):
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("side", [0, 1], ids=["light", "dark"])
def test_text_and_marks_stand_out(side):
    found = re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", document.asset("page/assets/house.css"))
    colours = {name: pair[side] for name, *pair in found}
    for ground in ("paper", "card", "faint"):
        for text in ("ink", "muted", "accent", "better", "worse", "alarm"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for ground in ("paper", "card"):
        for k in range(8):
            assert contrast(colours[f"m{k}"], colours[ground]) >= 3, (k, ground)
    assert contrast(colours["alarm"], colours["alarm-paper"]) >= 4.5
    assert contrast(colours["ink"], colours["alarm-paper"]) >= 4.5
    assert contrast(colours["paper"], colours["better"]) >= 4.5
    assert contrast(colours["paper"], colours["worse"]) >= 4.5


# Where faces and photographs come from


class Looks:
    title, better, asks = "looks", "larger", "anything"

    def __call__(self, picture):
        return float(len(picture.faces))


class LooksAway(Looks):
    def __call__(self, picture):
        return 1.0


@pytest.mark.parametrize(("metric", "boxes"), [(Looks(), [[1, 2, 3, 4]]), (Looks(), []), (LooksAway(), None)])
def test_the_faces_that_a_metric_looked_at_are_written_down(tmp_path, monkeypatch, metric, boxes):
    found = [FoundFace(torch.tensor(box, dtype=torch.float32), 1.0, torch.zeros(5, 2)) for box in boxes or ()]
    monkeypatch.setattr("mldm_plugin.evaluation.picture.find_faces", lambda image: found)
    picture = Picture(torch.zeros(3, 8, 8), Case("00000", "a person", 1))
    measure([(("00000", 0), lambda: picture)], Metrics({"looks": metric}), Notes(tmp_path))
    known = read_notes(tmp_path)[("00000", 0)]
    (looks,) = (value for name, value in known.items() if name.startswith("looks@"))
    assert looks == (1.0 if boxes is None else len(boxes))
    assert (known[BOXES["faces"]].tolist() if BOXES["faces"] in known else None) == boxes
    of_model = SimpleNamespace(folder=lambda *asked: tmp_path, models=[SimpleNamespace(name="m")])
    assert showing.boxes_of(of_model, "faces") == {"m": {} if boxes is None else {"00000": boxes}}


def test_photographs_of_the_shown_cases_are_kept_as_the_models_see_them(tmp_path):
    Notes(tmp_path / "measured" / "photographs").add(("00007", 0), {BOXES["faces"]: np.array([[1.0, 2, 3, 4]])})
    looked, theirs = [], torch.tensor([[5.0, 6, 7, 8]])
    photographs = SimpleNamespace(
        look=lambda row: looked.append(row) or SimpleNamespace(pixel_values=torch.ones(3, 6, 8), face_boxes=theirs)
    )
    cases = [Case("a", "one", 1, row=7), Case("b", "two", 1, row=8), Case("c", "three", 1)]
    evaluation = SimpleNamespace(photographs=photographs, cases=cases, asked=SimpleNamespace(out=tmp_path))
    found = showing.photographs_of(evaluation, ["a", "c"])
    assert found == {"a": {"path": "photographs/a.png", "faces": [[1, 2, 3, 4]]}}
    assert looked == [7]
    assert showing.photographs_of(evaluation, ["b"])["b"]["faces"] == [[5, 6, 7, 8]]  # no metric has looked at it
    with Image.open(tmp_path / "photographs/a.png") as kept:
        assert kept.size == (8, 6)
        assert kept.getpixel((0, 0)) == (255, 255, 255)
    theirs = None
    assert showing.photographs_of(evaluation, ["b"])["b"]["faces"] is None, "nor does the data set tell of any"
    evaluation.photographs = None
    assert showing.photographs_of(evaluation, ["a"]) == {}


# Tables and figures for papers


def test_latex_prints_names_as_they_stand():
    assert escaped("a_b & 5% #1 {x} ~ ^ \\ $") == (
        r"a\_b \& 5\% \#1 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{} \$"
    )
    assert escaped("LPIPS of x̂₀, ε < 1") == r"LPIPS of $\hat{x}_0$, $\epsilon$ \textless{} 1"


def test_the_table_is_bold_only_where_a_difference_is_shown(results):
    results["metrics"] = results["metrics"][:1]
    results["metrics"][0] |= {"title": "likeness_1", "better": "smaller"}
    results["metrics"][0]["differences"] = {"plain": difference(0.05), "mldm": difference(-2e-5, 1e-5)}
    table = as_tex(results).splitlines()
    [row] = [line for line in table if line.startswith("likeness\\_1")]
    assert r"likeness\_1 $\downarrow$ & " in row
    assert r"$+0.05$ [$-0.05$, $+0.15$]" in row
    assert r"$\mathbf{-2\cdot10^{-5}}$ [" in row
    assert all(line.count("&") == 6 for line in table if line.endswith(r"\\"))


def test_a_table_tells_n_and_a_single_model_its_intervals(tmp_path):
    results = make_results(tmp_path, models=("only",))
    lines = {line.split(" of it")[0]: line for line in as_tex(results).splitlines() if "of it" in line}
    assert re.search(r"& 5 & \$\d\.\d+\$ \[\$\d\.\d+\$, \$\d\.\d+\$\] \\\\$", lines["sharp"])
    results["metrics"][2]["rows"] = {"a": 90, "b": 40}
    assert "& 40--90 &" in as_tex(results)


def test_figures_are_drawn_of_nulls_and_odd_names(results, tmp_path):
    pytest.importorskip("matplotlib")
    for metric in results["metrics"]:
        metric["models"]["plain"] = estimate(None)
        metric["differences"]["plain"] = difference(None)
        metric["values"] = {name: [None] * 5 for name in metric["values"]}
    results["curves"] = []
    results["photographs_of_cases"] = {}
    results["pictures"]["plain"] = {}
    assert write_figures(results, tmp_path) == ["differences", "distributions", "gallery", "faces"]
    results |= {"metrics": [], "pictures": {}}
    assert write_figures(results, tmp_path / "none") == []


@pytest.mark.parametrize("number", [1, 2, 8])
def test_figures_have_room_for_any_number_of_models(tmp_path, number):
    pytest.importorskip("matplotlib")
    results = make_results(tmp_path, models=EIGHT[:number], cases=1)
    results["metrics"] = results["metrics"][:1]
    results["curves"] = []
    assert set(write_figures(results, tmp_path)) >= {"distributions", "gallery"}


def test_faces_are_enlarged_in_a_figure_of_their_own(tmp_path):
    """A red face in a grey picture fills its square; where none was found, that stands there."""
    pytest.importorskip("matplotlib")
    results = make_results(tmp_path, models=("plain", "mldm"), cases=2)
    red = Image.new("RGB", (40, 30), (90, 90, 90))
    red.paste((255, 0, 0), (1, 1, 27, 27))
    red.save(tmp_path / results["pictures"]["mldm"]["00001"])
    results["faces"]["mldm"] = {"00000": [], "00001": [[30.0, 20, 34, 24], [4.0, 4, 24, 24]]}
    drawn = figures.faces(results, tmp_path)
    squares = [axes for axes in drawn.axes if axes.images]
    assert len(squares) == 5  # of three rows and two columns
    shown = squares[-1].images[0].get_array()
    assert shown.shape == (26, 26, 3)  # of 20 and a margin of .15: the larger of the two
    assert (shown == (255, 0, 0)).all()
    assert [text.get_text() for axes in drawn.axes for text in axes.texts] == ["no face\nfound"]
    del results["faces"]["mldm"]["00000"]
    results["photographs_of_cases"]["00001"]["faces"] = None
    drawn = figures.faces(results, tmp_path)
    assert [text.get_text() for axes in drawn.axes for text in axes.texts] == ["not looked\nfor"] * 2
    results["faces"] = {}
    assert figures.faces(results, tmp_path) is None


def test_without_matplotlib_the_rest_is_written(results, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    caplog.set_level("INFO", "mldm_plugin")
    write_report(results, tmp_path)
    assert "pip install 'matplotlib>=" in caplog.text
    assert not (tmp_path / "figures").exists()
    assert (tmp_path / "report.html").is_file()
