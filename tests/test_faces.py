"""The networks of faces: an autoencoder, the judges, and what the judges are judged by."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL

from mldm_plugin.cli import main as mldm
from mldm_plugin.conditions.judges import (
    SMALL,
    AttributeJudge,
    PartsJudge,
    at_side,
    attribute_accuracy,
    attributes_seen,
    iou_by_label,
    mask_accuracy,
    mean_iou,
    overlaps,
    parts_seen,
    read_judge,
    write_judge,
)
from mldm_plugin.errors import DataError
from mldm_plugin.faces import autoencoder
from mldm_plugin.faces.judges import train_judge
from mldm_plugin.faces.parsed import write_parsed
from mldm_plugin.faces.pictures import Faces, read_faces
from mldm_plugin.prepare.synthetic.dataset import write_synthetic
from mldm_plugin.prepare.synthetic.portrait import draw_portrait


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve drawn portraits as a training set."""
    top = tmp_path_factory.mktemp("faces")
    write_synthetic(top / "drawn", 12, 3, 64, progress=False, portraits=True)
    words = ["data", "celebamask-hq", str(top / "drawn"), "--out", str(top / "faces"), "--workers", "0"]
    assert CliRunner().invoke(mldm, words).exit_code == 0
    return top / "faces"


def run(*words):
    done = CliRunner().invoke(mldm, ["faces", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_faces_are_read_with_what_was_drawn(folder):
    faces, held_out = read_faces(folder, "train", 64), read_faces(folder, "validation", 64)
    assert (len(faces), len(held_out)) == (10, 2)
    made = draw_portrait(np.random.default_rng(np.random.SeedSequence([3, 0])), 64)
    assert np.array_equal(faces.parts[0].numpy(), made.parts)
    assert faces.attributes[0].tolist() == [float(so) for so in made.attributes.values()]
    assert np.abs(faces.pixels[0].permute(1, 2, 0).numpy().astype(int) - made.pixels).mean() < 6
    assert all(0 < faces.attributes[:, number].mean() < 1 for number in faces.varied)
    assert len(read_faces(folder, "train", 64, at_most=3)) == 3
    with pytest.raises(DataError, match="has no pictures"):
        read_faces(folder, "test", 64)


def test_an_autoencoder_is_trained_resumed_and_read_by_diffusers(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder, "WIDTHS", (16, 16, 16, 16))
    monkeypatch.setattr(autoencoder, "BATCH", 2)
    told = run("autoencoder", folder, "--out", tmp_path, "--steps", 3, "--side", 64, "--no-lpips")
    assert "dB on held-out pictures" in told
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert (vae.config.latent_channels, vae.config.scaling_factor > 0) == (8, True)
    assert vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean.shape == (1, 8, 8, 8)
    again = run("autoencoder", folder, "--out", tmp_path, "--steps", 3, "--side", 64, "--no-lpips")
    assert again.splitlines()[-1] == told.splitlines()[-1], "what is trained is not trained again"


def test_judges_are_trained_and_read_again(folder, tmp_path):
    told = run("judges", folder, "--out", tmp_path, "--steps", 2, "--side", 64)
    assert "are right on 2 held-out pictures" in told
    assert "mIoU" in told
    assert all(line in told for line in (tmp_path / "judges.txt").read_text().splitlines())
    pixels = read_faces(folder, "validation", 64).floats(torch.arange(2))
    judge, side, words = read_judge(AttributeJudge, tmp_path)
    seen = attributes_seen(judge, pixels)
    assert side == 64
    assert words.startswith("attributes_judge ")
    assert (seen.shape, seen.dtype) == ((2, 40), torch.bool)
    parts = parts_seen(read_judge(PartsJudge, tmp_path)[0], pixels)
    assert (parts.shape, parts.dtype) == ((2, 64, 64), torch.uint8)
    (tmp_path / "parts.safetensors").write_bytes(b"no weights")
    for folder, kind in ((tmp_path, PartsJudge), (tmp_path / "nowhere", AttributeJudge)):
        with pytest.raises(DataError, match="train it: mldm faces judges FACES --out"):
            read_judge(kind, folder)


def test_parsed_masks_take_the_place_of_the_true_ones(folder, tmp_path):
    """What the parser sees, at the mask's size, beside the same picture and attributes; nothing of the true mask."""
    torch.manual_seed(0)
    (tmp_path / "judges").mkdir()
    judge = PartsJudge((8, 8, 8, 8)).eval()
    write_judge(judge, tmp_path / "judges", 32)
    told = run("masks", folder, "--judges", tmp_path / "judges", "--out", tmp_path / "parsed")
    true, parsed = (read_faces(top, "validation", 64) for top in (folder, tmp_path / "parsed"))
    assert torch.equal(parsed.pixels, true.pixels)
    assert torch.equal(parsed.attributes, true.attributes)
    seen = parts_seen(judge, at_side(true.floats(torch.arange(2)), 32))
    assert torch.equal(parsed.parts, seen.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert f"mIoU {mean_iou(overlaps(parsed.parts, true.parts)):.3f}" in told
    rows = [json.loads(line) for line in (tmp_path / "parsed/validation/metadata.jsonl").read_text().splitlines()]
    assert all({name for name in row if name.endswith("file_name")} == {"file_name", "parts_file_name"} for row in rows)
    with pytest.raises(DataError, match="has no pictures"):
        write_parsed(tmp_path, tmp_path / "judges", tmp_path / "again")


def test_a_judge_learns_what_can_be_seen(tmp_path):
    """Red pictures are bald and all hair, blue ones neither."""
    colours = torch.tensor([[200, 30, 30], [30, 30, 200]], dtype=torch.uint8)
    pixels = colours[torch.arange(16) % 2][..., None, None].expand(-1, -1, 32, 32).contiguous()
    attributes = torch.zeros(16, 40)
    attributes[::2, 4] = 1
    parts = torch.where(torch.arange(16)[:, None, None] % 2 == 0, 13, 0).expand(-1, 32, 32).to(torch.uint8)
    faces = Faces(pixels, attributes, parts)
    whole = faces.floats(torch.arange(16))
    judge = train_judge(AttributeJudge, faces, 80, tmp_path)
    assert attribute_accuracy(attributes_seen(judge, whole), attributes, faces.varied) == 1
    parser = train_judge(PartsJudge, faces, 60, tmp_path)
    assert mask_accuracy(overlaps(parts_seen(parser, whole), parts)) > 0.95


def test_a_judge_sees_where_something_is():
    with torch.no_grad():
        judge = AttributeJudge(SMALL).eval()
        top, low = torch.zeros(2, 1, 3, 64, 64)
        top[..., :16, :], low[..., 48:, :] = 1, 1
        assert (judge(top) - judge(low)).abs().max() > 1e-3


# Worked out by hand


def test_agreement_by_hand():
    seen, wanted = torch.tensor([[[1, 1], [0, 2]]]), torch.tensor([[[1, 0], [0, 2]]])
    counts = overlaps(seen, wanted)
    assert mask_accuracy(counts) == 0.75
    assert iou_by_label(counts) == {0: 0.5, 1: 0.5, 2: 1.0}
    assert mean_iou(counts) == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    more = overlaps(torch.tensor([[[1, 3], [0, 2]]]), wanted)  # a label that is nowhere wanted counts as 0
    assert mean_iou(more) == pytest.approx((1 / 2 + 1 + 1 + 0) / 4)
    assert mask_accuracy(torch.cat([counts, more])) == 0.75
    right = torch.tensor([[True, False, True]])
    assert attribute_accuracy(right, torch.tensor([[1.0, 1.0, 1.0]]), [0, 1]) == 0.5
