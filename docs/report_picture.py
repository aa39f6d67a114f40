"""docs/images/report.jpg, a report as a browser shows it: `python docs/report_picture.py REPORT`.

REPORT is the folder that `mldm evaluate --out` wrote; the page is made anew of its metrics.json. Needs Chromium.
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

from mldm_plugin.evaluation.report import page
from mldm_plugin.evaluation.thumbnails import embed

PICTURE = Path(__file__).parent / "images" / "report.jpg"
WIDTH, HEIGHT = 1280, 2320  # of the window; chosen: down to the end of the table
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars")


def shown(report: Path) -> Image.Image:
    """The top of the page."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("no Chromium on this machine")
    results = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
    with TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "page.html").write_text(page(results, embed(results, report)), encoding="utf-8")
        flags = [*FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={WIDTH},{HEIGHT}"]
        flags += ["--virtual-time-budget=6000", f"--screenshot={folder / 'page.png'}"]
        subprocess.run([browser, *flags, (folder / "page.html").as_uri()], check=True, capture_output=True)
        return Image.open(io.BytesIO((folder / "page.png").read_bytes())).convert("RGB")


if __name__ == "__main__":
    picture = shown(Path(sys.argv[1]))
    picture.thumbnail((1000, HEIGHT), Image.Resampling.LANCZOS)  # chosen: a page of the documentation, 200 kB
    picture.save(PICTURE, quality=72, optimize=True)
