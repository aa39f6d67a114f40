"""Pictures of a finished run, its card, and its LoRA in kohya's format."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file

from mldm_plugin.cli import main
from mldm_plugin.cli.sample import _uploaded
from mldm_plugin.errors import MldmError
from mldm_plugin.evaluation.judges import networks_of_losses, preset_of
from mldm_plugin.evaluation.models import LORA, Model, Run
from mldm_plugin.people_mini import PIPELINE
from mldm_plugin.project.export import export_diffusers, export_kohya
from mldm_plugin.project.samples import open_finished
from mldm_plugin.project.sheet import GAP, draw_sheet

LAYERS = ["to_k", "to_q", "to_v", "to_out.0"]


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """A run folder with a LoRA of people-mini that changes something."""
    folder = tmp_path_factory.mktemp("anna") / "runs" / "anna"
    pipeline = DiffusionPipeline.from_pretrained(PIPELINE)
    pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=LAYERS, init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(pipeline.unet))
    (folder / "arguments.json").write_text(json.dumps({"pretrained_model_name_or_path": str(PIPELINE)}))
    losses = {"face": {"weight": 0.5, "max_timestep": 100, "network": "dlib_resnet"}}
    (folder / "mldm").mkdir()  # where a run that was attached to has it
    (folder / "mldm" / "preset.yaml").write_text(yaml.safe_dump({"losses": losses}))
    return folder


@torch.no_grad()
def predicted(file):
    pipeline = DiffusionPipeline.from_pretrained(PIPELINE)
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    noise = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 16, 16, generator=noise)
    text = torch.randn(1, 77, pipeline.unet.config.cross_attention_dim, generator=noise)
    return pipeline.unet(latents, 100, text).sample


def test_kohyas_format_gives_the_same_network(lora, tmp_path):
    export_kohya(lora / LORA, tmp_path / "kohya.safetensors")
    names = load_file(tmp_path / "kohya.safetensors")
    assert all(name.startswith("lora_unet_") and name.count(".") <= 2 for name in names)
    assert {float(names[name]) for name in names if name.endswith(".alpha")} == {2.0}
    assert torch.equal(predicted(tmp_path / "kohya.safetensors"), predicted(lora / LORA))


def test_an_alpha_that_is_not_the_rank_is_kept(lora, tmp_path):
    save_file(load_file(lora / LORA), tmp_path / LORA, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 1})})
    export_kohya(tmp_path / LORA, tmp_path / "kohya.safetensors")
    names = load_file(tmp_path / "kohya.safetensors")
    assert {float(names[name]) for name in names if name.endswith(".alpha")} == {1.0}


def test_a_lora_of_kohyas_is_written_in_diffusers_format(lora, tmp_path):
    """Its alpha, here half the rank, goes into the weights."""
    kohya, back = tmp_path / "kohya.safetensors", tmp_path / "back.safetensors"
    save_file(load_file(lora / LORA), tmp_path / LORA, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 1})})
    export_kohya(tmp_path / LORA, kohya)
    export_diffusers(kohya, str(PIPELINE), back)
    assert all(name.startswith("unet.") and "alpha" not in name for name in load_file(back))
    assert torch.equal(predicted(back), predicted(kohya))
    assert not torch.equal(predicted(back), predicted(lora / LORA))


def test_what_is_in_the_format_already_is_copied(lora, tmp_path):
    export_kohya(lora / LORA, tmp_path / "a")
    export_kohya(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    export_diffusers(lora / LORA, "nowhere", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == (lora / LORA).read_bytes()


def named_by_kohya(folder, *layers, last=".lora_up.weight"):
    parts = {".lora_down.weight": torch.zeros(2, 4), last: torch.zeros(4, 2)}
    save_file({f"{layer}{part}": value.clone() for layer in layers for part, value in parts.items()}, folder / LORA)
    return folder / LORA


def test_the_layers_of_sdxl_get_their_places_in_diffusers(tmp_path):
    unet, text = "unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", "te2_text_model_encoder_layers_0_mlp_fc1"
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel", "layers_per_block": 2}')
    export_diffusers(named_by_kohya(tmp_path, f"lora_{unet}", f"lora_{text}"), str(tmp_path), tmp_path / "out")
    found = sorted(load_file(tmp_path / "out"))
    assert len(found) == 4
    assert found[0].startswith("text_encoder_2.text_model.encoder.layers.0.mlp.fc1.")
    assert found[2].startswith("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.")


@pytest.mark.parametrize(
    ("layer", "last"),
    [("lora_unet_double_blocks_0_img_attn_proj", ".lora_up.weight"), ("lora_unet_mid_block_0", ".dora_scale")],
)
def test_what_diffusers_format_has_not_is_refused(tmp_path, layer, last):
    with pytest.raises(MldmError, match=rf"holds {layer}.*expected a plain LoRA of a U-Net"):
        export_diffusers(named_by_kohya(tmp_path, layer, last=last), str(PIPELINE), tmp_path / "out")


def test_what_has_no_format_of_kohyas_is_refused(tmp_path):
    save_file({"transformer.x.lora_A.weight": torch.zeros(2, 2)}, tmp_path / LORA)
    with pytest.raises(MldmError, match=r"holds transformer\.x\..*: kohya's names are known for U-Nets"):
        export_kohya(tmp_path / LORA, tmp_path / "k.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(MldmError, match="cannot be read as a LoRA"):
        export_kohya(tmp_path / "bad.safetensors", tmp_path / "k.safetensors")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' scheduler
def test_pictures_with_and_without_from_the_same_noise(lora):
    command = [
        "sample",
        str(lora),
        "--prompt",
        "photo of anna",
        "--prompt",
        "a drawing",
        "--steps",
        "1",
        "--export",
        "kohya",
    ]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "2 prompts of --prompt, 1 picture of each from the same noise, by each of: no LoRA, with LoRA" in done.output
    out = lora / "samples"
    names = sorted(path.name for path in (out / "with").glob("*.png"))
    assert len(names) == 2
    assert names == sorted(path.name for path in (out / "without").glob("*.png"))
    first = (out / "with" / names[0]).read_bytes()
    assert first != (out / "without" / names[0]).read_bytes()
    with Image.open(out / "grid.png") as grid:
        width, height = grid.size
    assert 0.5 < width / height < 2
    assert "Rows: *no LoRA*, *with LoRA*;" in (out / "README.md").read_text(encoding="utf-8")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "base_model" not in card, "a folder of this machine is no name on the Hub"
    assert str(lora.parent) not in card
    assert "| base | people-mini, under its own licence |" in card
    assert "dlib_resnet: CC0" in card
    assert "face λ = 0.5, T = 100" in card
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert CliRunner().invoke(main, command, catch_exceptions=False).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == before, "what is drawn is not drawn again"
    assert CliRunner().invoke(main, [*command, "--seed", "1"], catch_exceptions=False).exit_code == 0
    assert (out / "with" / names[0]).read_bytes() != first, "other noise, other pictures"


def test_four_files_are_uploaded_by_their_names_and_nothing_that_lies_beside_them(lora, tmp_path, monkeypatch):
    """A folder of pictures may hold photographs, masks and latents."""
    sent, made = [], []

    class Hub:
        def create_repo(self, name, **options):
            made.append(options)
            return SimpleNamespace(repo_id=name)

        def upload_file(self, path_or_fileobj, path_in_repo, repo_id):
            sent.append(path_in_repo)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    for name in ("README.md", "grid.png", "me.jpg", "run.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "people").mkdir()
    (tmp_path / "people" / "me.png").touch()
    assert _uploaded(open_finished(lora, None), tmp_path, "me/anna") == "me/anna"
    assert sorted(sent) == ["README.md", "grid.png", LORA]
    assert made == [{"exist_ok": True, "private": True}]


def test_the_preset_of_an_attached_run_is_found(lora):
    """Else a judge that the losses looked with would not be told of in red."""
    assert preset_of(lora) == lora / "mldm" / "preset.yaml"
    assert networks_of_losses(Model("anna", [Run(str(lora), "lora", "x")])) == {"dlib_resnet"}


def test_a_run_without_weights_and_nothing_to_draw(lora, tmp_path):
    told = {"photos": "x", "who": "a", "caption": "a", "model": "people-mini", "preset": "demo", "steps": 2}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**told, "training": {}}))
    with pytest.raises(MldmError, match=r"has no weights yet: mldm train .*run\.yaml"):
        open_finished(tmp_path, None)
    done = CliRunner().invoke(main, ["sample", str(lora)])
    assert "nothing to draw: give --prompt" in done.output


@pytest.mark.parametrize(("count", "columns", "blocks"), [(1, 1, 1), (4, 4, 1), (6, 6, 1), (12, 6, 2), (30, 6, 4)])
def test_pictures_stand_beside_each_other_without_bands(tmp_path, count, columns, blocks):
    rows = {}
    for label, colour in (("no LoRA", "red"), ("plain loss", "green"), ("Masked LDM", "blue")):
        Image.new("RGB", (128, 96), colour).save(tmp_path / f"{colour}.png")
        rows[label] = [tmp_path / f"{colour}.png"] * count
    prompt = "photo of imara, calm, bust, in a studio, and more than there is room for"
    draw_sheet(rows, [prompt] * count, tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    coloured = np.ptp(pixels, axis=2) > 100
    assert coloured.sum() == min(count, 24) * 3 * 256 * 192
    down, across = coloured.any(1), coloured.any(0)
    gaps = np.diff(np.flatnonzero(down))
    assert sorted(set(gaps)) == ([1, GAP + 1] if blocks == 1 else [1, GAP + 1, max(gaps)])
    assert (gaps == GAP + 1).sum() == 2 * blocks
    assert across.sum() == columns * 256
    assert (pixels.min(2) < 100)[:, : np.flatnonzero(across)[0]].any(), "rows have names"


def test_a_prompt_is_written_within_its_column(tmp_path):
    for side, name in ((96, "a.png"), (1024, "b.png")):
        Image.new("RGB", (side, side), "red").save(tmp_path / name)
        draw_sheet({"x": [tmp_path / name] * 2}, ["wwwwwwww " * 40, ""], tmp_path / "s.png")
        with Image.open(tmp_path / "s.png") as sheet:
            pixels = np.asarray(sheet.convert("RGB")).astype(int)
        second = np.flatnonzero((np.ptp(pixels, axis=2) > 100).any(0))[256]
        assert pixels[:60, second:].min() > 250, "nothing of the first stands above the second"
