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
WIDTH = 1280  # of the window
# Height of the window and quality of the JPEG; chosen: to the end of the table, to that of the photographs, and 200 kB.
SHOWN = {"report.jpg": (2320, 72), "run_page.jpg": (3005, 62)}
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars")


def shown(html: str, height: int) -> Image.Image:
    """The top of a page."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("no Chromium on this machine")
    with TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "page.html").write_text(html, encoding="utf-8")
        flags = [*FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={WIDTH},{height}"]
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
    height, quality = SHOWN[name]
    picture = shown(html, height)
    picture.thumbnail((1000, height), Image.Resampling.LANCZOS)  # chosen: a page of the documentation
    picture.save(IMAGES / name, quality=quality, optimize=True)
