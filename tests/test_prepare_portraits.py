"""Drawn portraits: parts and attributes agree with each other and with the drawing, and are read as CelebAMask-HQ."""

import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mldm_plugin.cli import main
from mldm_plugin.conditions.celeba import ATTRIBUTES, PARTS
from mldm_plugin.errors import DataError
from mldm_plugin.prepare.celebamask_hq import read_parts, sources
from mldm_plugin.prepare.stored import listed_rows
from mldm_plugin.prepare.synthetic.dataset import write_synthetic
from mldm_plugin.prepare.synthetic.portrait import draw_portrait

SIZE, COUNT = 64, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("drawn") / "faces"
    return write_synthetic(out, COUNT, 3, SIZE, progress=False, portraits=True)


def portrait(index, seed=3):
    return draw_portrait(np.random.default_rng(np.random.SeedSequence([seed, index])), SIZE)


@pytest.mark.parametrize("index", range(24))
def test_what_is_said_is_what_is_drawn(index):
    made = portrait(index)
    seen = {name: mask for name, mask in made.masks() if mask.sum() > 1}
    said = made.attributes
    assert list(said) == ATTRIBUTES
    assert said["Wearing_Hat"] == ("hat" in seen)
    assert said["Eyeglasses"] == ("eye_g" in seen)
    assert said["Mouth_Slightly_Open"] == ("mouth" in seen)
    assert not (said["Bald"] and "hair" in seen)
    assert sum(said[f"{colour}_Hair"] for colour in ("Black", "Brown", "Blond", "Gray")) <= 1
    if not said["Male"]:
        assert said["No_Beard"]
    assert {"skin", "nose", "neck", "cloth"} <= seen.keys()
    assert 0.1 < sum(mask.mean() for name, mask in seen.items() if name not in ("hair", "hat", "cloth", "neck")) < 0.35


@pytest.mark.parametrize("index", range(6))
def test_parts_lie_where_a_face_has_them(index):
    """The person's left is the picture's right; from above: brows, eyes, nose, lips, neck, clothes."""
    made = portrait(index)
    middle = {name: np.argwhere(mask).mean(0) for name, mask in made.masks()}
    for name in ("eye", "brow", "ear"):
        if f"l_{name}" in middle and f"r_{name}" in middle:
            assert middle[f"l_{name}"][1] > middle[f"r_{name}"][1]
    order = [middle[n][0] for n in ("l_brow", "l_eye", "nose", "u_lip", "l_lip", "neck", "cloth") if n in middle]
    assert order == sorted(order)


def test_eyes_are_white_and_lips_are_redder_than_the_skin():
    """The labels lie on what was painted, not beside it."""
    whiter = redder = seen = 0
    for index in range(12):
        made = portrait(index, seed=5)
        masks, pixels = dict(made.masks()), made.pixels.astype(float)
        if {"l_eye", "l_lip"} <= masks.keys() and masks["l_eye"].sum() > 5:
            skin = pixels[masks["skin"]].mean(0)
            eye, lip = pixels[masks["l_eye"]].max(0), pixels[masks["l_lip"]].mean(0)
            whiter += eye.min() > skin.min()
            redder += lip[0] / lip.sum() > skin[0] / skin.sum()
            seen += 1
    assert seen > 6
    assert whiter == redder == seen


def test_the_folder_is_read_as_the_real_one(folder, tmp_path):
    found = list(sources(folder))
    assert [source.split for source in found] == ["train"] * 5 + ["validation"] + ["train"] * 5 + ["validation"]
    for index in (0, 7):
        made = portrait(index)
        assert found[index].columns["attributes"] == made.attributes
        assert np.array_equal(read_parts(folder / "CelebA-HQ-img" / f"{index}.jpg"), made.parts)
        with Image.open(folder / "CelebA-HQ-img" / f"{index}.jpg") as picture:
            assert np.abs(np.asarray(picture).astype(int) - made.pixels).mean() < 6
    out = tmp_path / "out"
    done = CliRunner().invoke(main, ["data", "celebamask-hq", str(folder), "--out", str(out), "--workers", "0"])
    assert done.exit_code == 0, done.output
    row = listed_rows(out / "train")[0][1]
    assert {"attributes", "parts_file_name", "mask_file_name", "face_boxes"} <= row.keys()
    with Image.open(out / "train" / row["parts_file_name"]) as parts:
        assert np.array_equal(np.asarray(parts), portrait(0).parts)
    assert set(np.unique(portrait(0).parts)) <= set(range(len(PARTS) + 1))


def test_same_bytes_for_any_number_of_workers(folder, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mldm_plugin.cli", "data", "synthetic", "--portraits", "--count", "9", "--seed", "3"]
        + ["--size", str(SIZE), "--workers", "1", "--out", str(tmp_path / "again")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"mldm data celebamask-hq {tmp_path / 'again'}" in done.stdout
    for path in (tmp_path / "again").rglob("*.[jp][pn]g"):
        assert path.read_bytes() == (folder / path.relative_to(tmp_path / "again")).read_bytes()
    with pytest.raises(DataError, match="is not what this command makes"):
        write_synthetic(folder, COUNT, 3, SIZE, progress=False)
