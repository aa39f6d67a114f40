"""docs/images/report.jpg and run_page.jpg, pages as a browser shows them: `python docs/report_picture.py FOLDER`.

FOLDER is what `mldm evaluate --out` wrote, whose page is made anew of its metrics.json, or a run. Needs Chromium.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from mldm_plugin.doctor.run import find_run
from mldm_plugin.evaluation.report import page
from mldm_plugin.evaluation.thumbnails import embed
from mldm_plugin.run_page.write import page_of

IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT = 1280, 2320  # of the window; chosen: down to the end of the table
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars")


def shown(html: str) -> Image.Image:
    """The top of a page."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("no Chromium on this machine")
    with TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "page.html").write_text(html, encoding="utf-8")
        flags = [*FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={WIDTH},{HEIGHT}"]
        flags += ["--virtual-time-budget=6000", f"--screenshot={folder / 'page.png'}"]
        subprocess.run([browser, *flags, (folder / "page.html").as_uri()], check=True, capture_output=True)
        return Image.open(io.BytesIO((folder / "page.png").read_bytes())).convert("RGB")


def page_in(folder: Path) -> tuple[str, str]:
    """Which picture a folder gives, and its page."""
    if (folder / "metrics.json").is_file():
        results = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return "report.jpg", page(results, embed(results, folder))
    return "run_page.jpg", page_of(find_run(folder), folder.name)


if __name__ == "__main__":
    name, html = page_in(Path(sys.argv[1]))
    picture = shown(html)
    picture.thumbnail((1000, HEIGHT), Image.Resampling.LANCZOS)  # chosen: a page of the documentation, 200 kB
    picture.save(IMAGES / name, quality=72, optimize=True)
