"""The demo, for real: `python -m mldm_plugin.demo` with few steps, and its pieces."""

import json
import subprocess
import sys

import numpy as np
import pytest
from diffusers import ControlNetModel
from PIL import Image

from mldm_plugin.demo.__main__ import make_room
from mldm_plugin.demo.curves import plot_curves, read_metrics
from mldm_plugin.demo.pipeline import FITTED
from mldm_plugin.errors import DataError

pytestmark = pytest.mark.timeout(900)  # the demo trains; a busy machine takes its time


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "run"
    command = [sys.executable, "-m", "mldm_plugin.demo", "--out", str(out), "--steps", "20"]
    return out, subprocess.run(command, capture_output=True, text=True)


def test_the_demo_trains_and_says_what_it_does(finished):
    _, done = finished
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in (
        "1. Photographs",
        "accelerate launch",
        "4. The same pictures",
        "The loss fell",
        "before_after.png",
    ):
        assert expected in done.stdout
    assert done.stderr.count("reaches the network") == 2
    assert "decode(clean latents) resembles the picture" in done.stderr


def test_it_leaves_what_the_readme_says(finished):
    out, _ = finished
    assert [row["step"] for row in read_metrics(out / "metrics.jsonl")] == list(range(1, 21))
    assert tuple(ControlNetModel.from_pretrained(out).config.block_out_channels) == FITTED.unet_channels
    with Image.open(out / "panels" / "step-000020.png") as panel:
        assert panel.width > 4 * 256
    with Image.open(out / "before_after.png") as sheet:
        picture = np.asarray(sheet)
    photograph, after = picture[26:282, 8:264], picture[26:282, 8 + 3 * 260 : 264 + 3 * 260]
    assert np.corrcoef(photograph.ravel(), after.ravel())[0, 1] > 0.9  # the person is recognisable at t = 300
    assert (out / "curves.png").stat().st_size > 5000


def test_a_finished_demo_starts_anew_and_another_folder_is_left_alone(finished, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="holds something else than a demo run"):
        make_room(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
    out, _ = finished
    assert out.exists()
    make_room(out)
    assert not out.exists()
    make_room(out)


def test_curves_show_sparse_terms_and_empty_ones(tmp_path):
    rows = [
        {"step": i, "loss": 1 / i, "lr": 1e-4, "ldm": 1.0, "face": 0.5 if i % 3 else None, "face/gated": 1, "no": None}
        for i in range(1, 30)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    measured = [(0, {"loss": 1.0, "ldm": 1.0}), (29, {"loss": 0.5, "ldm": 0.4})]
    plot_curves(read_metrics(tmp_path / "metrics.jsonl"), measured, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 4 * 300
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]
