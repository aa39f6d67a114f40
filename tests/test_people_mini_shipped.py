"""The pipeline that ships: small, whole, and drawing what it is asked for."""

import json

import numpy as np
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open

from mldm_plugin.people_mini import CLASSIFIER, PIPELINE
from mldm_plugin.people_mini.__main__ import main
from mldm_plugin.people_mini.split import TEST_PEOPLE, TRAINED_PEOPLE, TUNING_PEOPLE
from mldm_plugin.people_mini.who import PEOPLE


def test_it_is_small_and_in_half_precision():
    files = [CLASSIFIER, *(f for f in PIPELINE.rglob("*") if f.is_file())]
    assert sum(f.stat().st_size for f in files) < 40e6
    for path in (f for f in files if f.suffix == ".safetensors"):
        with safe_open(path, "pt") as opened:
            types = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
        counted = {name for name in types if name.endswith("num_batches_tracked")}  # by batch norms, whole numbers
        assert {types[name] for name in types.keys() - counted} == {"F16"}, path
    assert set(PEOPLE) == set(TRAINED_PEOPLE)
    assert not set(PEOPLE) & {*TUNING_PEOPLE, *TEST_PEOPLE}


def test_it_has_the_architecture_and_the_files_of_stable_diffusion_1():
    def config(name):
        return json.loads((PIPELINE / name).read_text())

    assert config("model_index.json")["_class_name"] == "StableDiffusionPipeline"
    unet, vae, text = (config(f"{part}/config.json") for part in ("unet", "vae", "text_encoder"))
    assert unet["down_block_types"] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert (unet["in_channels"], unet["out_channels"], vae["latent_channels"]) == (4, 4, 4)
    assert len(vae["block_out_channels"]) == 4  # each after the first halves the picture
    assert 8 * unet["sample_size"] >= 128
    assert text["architectures"] == ["CLIPTextModel"]
    assert unet["cross_attention_dim"] == text["hidden_size"]


def test_it_draws_what_the_caption_says(tmp_path):
    """A grey studio and a white shirt, against a park and green leaves; the same noise."""
    captions = ["photo of cerwen, calm, bust, in a studio", "drawing of a smiling woman, red hair, bust, in a park"]
    done = CliRunner().invoke(
        main, ["sample", *captions, "--out", str(tmp_path / "s.png"), "--count", "2", "--steps", "8"]
    )
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.size == (256, 256)
        pixels = np.asarray(picture.convert("RGB")).astype(float)
    studio, park = pixels[:128, :128], pixels[128:, :128]
    corner = studio[4:24, 4:24]
    assert np.abs(corner - corner.mean(axis=2, keepdims=True)).max() < 25  # grey
    assert (park[..., 1] - park[..., 2]).mean() > 20  # green leaves
    again = CliRunner().invoke(
        main, ["sample", captions[0], "--out", str(tmp_path / "t.png"), "--count", "2", "--steps", "8"]
    )
    assert again.exit_code == 0
    with Image.open(tmp_path / "t.png") as picture:
        assert np.array_equal(np.asarray(picture), pixels[:128].astype(np.uint8))
