"""The documentation as a site: every page has its place, links lead somewhere, nothing comes from the network."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Parts(HTMLParser):
    """What a browser fetches for a page, and its links to files."""

    def __init__(self, page):
        super().__init__()
        self.fetched, self.links = [], []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if attrs.get(FETCHED.get(tag)):
            self.fetched.append(attrs[FETCHED[tag]])
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_built_and_asks_nobody_for_anything(site):
    pages = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.md")}
    pages = {re.sub(r"README\.html$", "index.html", name) for name in pages}
    built = {path.relative_to(site).as_posix(): path for path in site.rglob("*.html")}
    assert pages == built.keys() - {"404.html"}
    for name, page in built.items():
        for target in Parts(page).fetched:
            assert not re.match(r"(https?:)?//", target), f"{name} fetches {target}"
            assert name == "404.html" or (page.parent / target.split("?")[0]).exists(), f"{name}: {target}"
    assert not [path for path in site.rglob("*.css") if "fonts.g" in path.read_text(encoding="utf-8")]


def test_the_programs_beside_the_pages_are_not_published(site):
    assert not [path.name for path in site.rglob("*") if path.suffix in (".py", ".yaml")]


def load_pictures():
    spec = importlib.util.spec_from_file_location("docs_pictures", DOCS / "pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_drawn_pictures_show_the_figures_of_the_pages(tmp_path):
    pictures = load_pictures()
    rows = {name: figures for name, *figures in pictures.cost_rows()}
    assert rows["with the plugin"] == [1.16, 1.65]
    assert rows["with the plugin, estimate: ddim-4"] == [1.49, 2.96]
    assert len(rows) == 6
    for name, draw in pictures.PICTURES.items():
        draw(tmp_path / name)
        assert (tmp_path / name).stat().st_size < 150_000
        drawn, kept = (np.asarray(Image.open(folder / name)) for folder in (tmp_path, DOCS / "images"))
        assert np.array_equal(drawn, kept), "run `python docs/pictures.py`"


def words(text):
    return [word for word in text.split() if re.search(r"\w", word)]


def test_the_readme_is_short_and_its_figures_are_those_of_the_pages():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(words(readme)) < 700
    cost = (DOCS / "performance.md").read_text(encoding="utf-8")
    for figure in ("1.16", "1.05", "1.61"):
        assert figure in readme
        assert figure in cost
