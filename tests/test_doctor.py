"""`mldm doctor RUN`: what it says of runs that did something, and of those that did nothing."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from doctoring import doctor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from run_trainer import records
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mldm_plugin.doctor.drawing import chart
from mldm_plugin.doctor.layers import Changes, Layer
from mldm_plugin.doctor.lora import product_norm, read_lora
from mldm_plugin.doctor.run import find_run
from mldm_plugin.doctor.tensors import find_base
from mldm_plugin.doctor.weights import read_changes
from mldm_plugin.project.export import METADATA, export_kohya

LORA, CONTROLNET = "pytorch_lora_weights.safetensors", "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def lora_run(train_lora, random_preset, tmp_path_factory):
    """A finished run with a loss on people."""
    run = tmp_path_factory.mktemp("lora") / "run"
    flags = ["--learning_rate", 0.01, "--loss-plugin", "mldm", "--preset", random_preset, "--checkpointing_steps", 1]
    assert train_lora(run, *flags) == 0
    return run


@pytest.fixture(scope="module")
def controlnet_run(train, tmp_path_factory):
    """Without a plugin."""
    run = tmp_path_factory.mktemp("controlnet") / "run"
    assert train(run, "--learning_rate", 0.01) == 0
    return run


@pytest.fixture
def lora(lora_run, tmp_path):
    """A copy of the finished LoRA run that may be changed."""
    return shutil.copytree(lora_run, tmp_path / "run")


def change(file, by):
    """Rewrite the tensors of a file, with its metadata."""
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    save_file({name: by(name, tensor) for name, tensor in load_file(file).items()}, file, about)


def attention_of(run, *words):
    """The layers whose names hold all the words."""
    return [name for name in load_file(run / LORA) if is_up(name) and all(word in name for word in words)]


def is_up(name):
    return ".up." in name or "lora_B" in name or "lora_up" in name


def test_a_lora_that_learnt_something(lora_run):
    status, output = doctor(lora_run)
    assert status == 0, output
    lines = output.splitlines()
    assert lines[0].startswith("The LoRA does something. Nothing is wrong")
    # Its latents are one pixel in the middle, and attention to one pixel has no gradient at queries and keys.
    assert "worth a look: 2 of 80 layers have not moved. unet.mid_block" in output
    assert any(line.startswith("fine: 78 of 80 layers have moved, together by ") for line in lines), output
    gated = sum(r["masked_lpips/gated"] for r in records(lora_run))
    assert f"fine: masked_lpips was applied to {gated} of about 4 pictures" in output
    assert "its T = 600 lets through about 60%." in output
    assert "fine: Pictures have 64 to 128 by 64 to 96 pixels; 7 of 7 have a mask of their size." in output


def test_norms_are_those_of_the_matrices_themselves(lora_run, tiny_pipeline):
    found = read_changes(find_run(lora_run))
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline, subfolder="unet").state_dict()
    weights = load_file(lora_run / LORA)
    assert len(found.layers) == len(weights) / 2
    for layer in found.layers:
        up, down = (weights[f"{layer.name}.lora.{side}.weight"] for side in ("up", "down"))
        assert layer.moved == pytest.approx((up @ down).norm().item(), rel=1e-5)
        before = unet[f"{layer.name.removeprefix('unet.')}.weight"]
        assert layer.share == pytest.approx(layer.moved / before.norm().item(), rel=1e-5)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.sampled_from([(), (1, 1), (3, 3)]), st.integers(0, 99)
)
def test_the_norm_of_a_product_is_that_of_the_full_matrix(out, rank, inside, kernel, seed):
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, inside, *kernel, generator=generator)
    up = torch.randn(out, rank, *(1 for _ in kernel), generator=generator)
    full = torch.einsum("or,ri->oi", up.flatten(1).double(), down.flatten(1).double())
    assert product_norm(up, down) == pytest.approx(full.norm().item(), rel=1e-9, abs=1e-9)


def test_a_lora_whose_up_matrices_are_zero_did_nothing(lora):
    change(lora / LORA, lambda name, t: t * 0 if is_up(name) else t)
    status, output = doctor(lora)
    assert status == 1
    assert output.startswith("The LoRA does nothing. Something is wrong")
    assert "wrong: No layer of 80 has moved: the up matrices, or alpha, are zero as before training." in output


def test_layers_that_have_not_moved_are_named(lora):
    change(lora / LORA, lambda name, t: t * 0 if is_up(name) and "up_blocks.1" in name and "attn1" in name else t)
    status, output = doctor(lora)
    assert status == 0
    still = len(attention_of(lora, "up_blocks.1", "attn1")) + 2
    assert f"worth a look: {still} of 80 layers have not moved. unet.mid_block" in output
    assert f"fine: {80 - still} of 80 layers have moved, together by" in output


def test_a_change_that_nobody_will_see(lora):
    change(lora / LORA, lambda name, t: t * 1e-7 if is_up(name) else t)
    status, output = doctor(lora)
    assert status == 1
    assert output.startswith("The LoRA does next to nothing.")
    assert "too little to be seen. Train longer" in output


def test_weights_that_are_not_finite_are_named(lora):
    change(lora / LORA, lambda name, t: t.fill_(float("nan")) if is_up(name) and "mid_block" in name else t)
    status, output = doctor(lora)
    assert status == 1
    assert output.startswith("The LoRA is broken.")
    assert "wrong: 8 of 160 tensors hold NaN or infinity" in output


def test_kohyas_format_has_the_same_norms_times_its_alpha(lora_run, tmp_path, tiny_pipeline):
    base = find_base(str(tiny_pipeline))
    export_kohya(lora_run / LORA, tmp_path / "kohya.safetensors")
    ours, theirs = read_lora(lora_run / LORA, base), read_lora(tmp_path / "kohya.safetensors", base)
    assert not theirs.unmeasured
    norms = sorted(layer.moved for layer in ours.layers)
    assert sorted(layer.moved for layer in theirs.layers) == pytest.approx(norms, rel=1e-6)
    assert sorted(layer.share for layer in theirs.layers) == pytest.approx(sorted(layer.share for layer in ours.layers))
    change(tmp_path / "kohya.safetensors", lambda name, t: t / 2 if name.endswith(".alpha") else t)
    half = read_lora(tmp_path / "kohya.safetensors", base)
    assert sorted(layer.moved * 2 for layer in half.layers) == pytest.approx(norms, rel=1e-6)


def test_diffusers_settings_in_the_file_are_the_scale(lora_run, tmp_path):
    """α/r with r = 4; α/√r with rank-stabilised LoRA; a pattern is for the layers that it names."""
    plain = [layer.moved for layer in read_lora(lora_run / LORA, None).layers]
    for told, factor in (({"unet.lora_alpha": 8}, 2.0), ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 4.0)):
        save_file(load_file(lora_run / LORA), tmp_path / LORA, {METADATA: json.dumps(told)})
        assert [layer.moved for layer in read_lora(tmp_path / LORA, None).layers] == pytest.approx(
            [factor * moved for moved in plain], rel=1e-6
        )
    told = {"unet.lora_alpha": 4, "unet.alpha_pattern": {"attn1.to_q": 12}}
    save_file(load_file(lora_run / LORA), tmp_path / LORA, {METADATA: json.dumps(told)})
    for layer, moved in zip(read_lora(tmp_path / LORA, None).layers, plain, strict=True):
        assert layer.moved == pytest.approx(moved * (3 if layer.name.endswith("attn1.to_q") else 1), rel=1e-6)


def test_a_checkpoint_in_one_file_is_a_base_too(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    save_file({"model.diffusion_model.input_blocks.4.1.to_q.weight": weight}, tmp_path / "model.safetensors")
    pair = {"lora_down.weight": torch.ones(1, 3), "lora_up.weight": torch.ones(2, 1), "alpha": torch.tensor(1.0)}
    save_file({f"lora_unet_input_blocks_4_1_to_q.{n}": t for n, t in pair.items()}, tmp_path / "lora.safetensors")
    status, output = doctor(tmp_path / "lora.safetensors", "--base", tmp_path / "model.safetensors")
    assert status == 0
    (layer,) = read_lora(tmp_path / "lora.safetensors", find_base(str(tmp_path / "model.safetensors"))).layers
    assert (layer.moved, layer.base) == pytest.approx((6**0.5, 55**0.5))
    assert "fine: The layer has moved, together by 33% of their base." in output


def test_a_lora_of_another_model_is_told_by_its_shapes(lora, tmp_path):
    wide = {n: torch.cat([t, t]) if is_up(n) and "mid_block" in n else t for n, t in load_file(lora / LORA).items()}
    save_file(wide, lora / LORA)
    status, output = doctor(lora)
    assert status == 1
    assert "layers of another shape than in" in output
    assert "trained on another model" in output


def test_a_file_by_itself_says_what_is_not_known(lora_run, tmp_path, tiny_pipeline):
    file = shutil.copy(lora_run / LORA, tmp_path / "mine.safetensors")
    status, output = doctor(file)
    assert status == 0
    assert "nothing says what it was trained on. Say it with --base." in output
    assert "no metrics.jsonl of our trainers or attached runs is beside it." in output
    assert "nothing says where they are. Say it with --data." in output
    _, output = doctor(file, "--base", tmp_path / "nowhere")
    assert "nowhere has no safetensors on this machine" in output
    _, output = doctor(file, "--base", tiny_pipeline)
    assert "together by" in output


def test_tensors_of_another_kind_are_counted(lora):
    weights = load_file(lora / LORA)
    weights["unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.dora_scale"] = torch.ones(3)
    save_file(weights, lora / LORA)
    assert "Not measured: 1 tensor of another kind than the two matrices of a LoRA." in doctor(lora)[1]


def test_the_last_checkpoint_speaks_for_a_run_that_was_stopped(lora):
    whole = doctor(lora)[1]
    (lora / LORA).unlink()
    assert doctor(lora)[1] == whole  # the last checkpoint is that of the last step
    assert doctor(lora / "checkpoint-2")[1] == whole
    change(lora / "checkpoint-1" / LORA, lambda name, t: t * 0)
    assert doctor(lora / "checkpoint-1")[0] == 1
    for checkpoint in lora.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    status, output = doctor(lora)
    assert status == 0
    assert "no checkpoint was reached" in output
    assert "masked_lpips was applied to" in output


def test_records_of_an_attached_run_lie_in_a_folder_of_theirs(lora):
    (lora / "mldm").mkdir()
    for name in ("metrics.jsonl", "preset.yaml"):
        (lora / name).rename(lora / "mldm" / name)
    (lora / "arguments.json").unlink()
    assert "fine: masked_lpips was applied to" in doctor(lora)[1]


def test_a_run_may_be_called_as_a_network_in_it_is(controlnet_run, tmp_path, monkeypatch):
    run = shutil.copytree(controlnet_run, tmp_path / "controlnet")
    whole = doctor(run)[1]
    assert "The run trained with the plain loss alone" in whole
    inside = run / "checkpoint-2" / "controlnet"
    inside.mkdir(parents=True)
    for name in (CONTROLNET, "config.json"):
        shutil.copy(run / name, inside)
    for place in (run, inside.parent, inside):
        monkeypatch.chdir(place)
        assert doctor(".")[1] == whole
    assert find_run(inside).records == run


def test_a_controlnet_that_learnt_something(controlnet_run, tiny_pipeline):
    status, output = doctor(controlnet_run)
    assert status == 0, output
    assert output.startswith("The ControlNet does something.")
    assert "zero convolutions have left zero: norms " in output
    assert "The run trained with the plain loss alone: no mask, face or hand was looked at." in output
    found = read_changes(find_run(controlnet_run))
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline, subfolder="unet").state_dict()
    weights = load_file(controlnet_run / CONTROLNET)
    layer = next(layer for layer in found.layers if layer.name.endswith("attn1.to_q"))
    before, after = unet[f"{layer.name}.weight"], weights[f"{layer.name}.weight"]
    assert layer.moved == pytest.approx((after - before).norm().item(), rel=1e-5)
    assert layer.base == pytest.approx(before.norm().item(), rel=1e-5)
    assert {name.split(".")[0] for name in found.unmeasured} == {"controlnet_cond_embedding"}


def test_a_controlnet_that_still_is_what_it_began_as(controlnet_run, tiny_pipeline, tmp_path):
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline, subfolder="unet")
    ControlNetModel.from_unet(unet).save_pretrained(tmp_path / "new")
    status, output = doctor(tmp_path / "new", "--base", tiny_pipeline)
    assert status == 1
    assert output.startswith("The ControlNet does nothing.")
    assert "zero convolutions are still zero: the ControlNet adds nothing to the U-Net." in output
    assert "has moved: all is as it began." in output


def test_a_controlnet_is_compared_with_the_one_it_began_as(controlnet_run, tmp_path):
    run = shutil.copytree(controlnet_run, tmp_path / "run")
    arguments = json.loads((run / "arguments.json").read_text())
    (run / "arguments.json").write_text(json.dumps(arguments | {"controlnet_model_name_or_path": str(controlnet_run)}))
    found = read_changes(find_run(run))
    assert found.base == str(controlnet_run)
    assert not any(layer.moved for layer in found.layers)
    assert not found.unmeasured
    assert not found.zero
    status, output = doctor(run)
    assert status == 1
    assert "No layer of" in output


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train_data_dir", 5),
        ("train_data_dir", "a\0b"),
        ("pretrained_model_name_or_path", ["a"]),
        ("variant", 1),
        ("resolution", "x"),
        ("max_train_samples", -3),
    ],
)
def test_arguments_of_another_kind_are_named(lora, name, value):
    arguments = json.loads((lora / "arguments.json").read_text())
    (lora / "arguments.json").write_text(json.dumps(arguments | {name: value}))
    status, output = doctor(lora)
    assert status == 1
    assert f"arguments.json has {name}: {value!r}, expected " in output
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize("file", ["arguments.json", "config.json", "metrics.jsonl", "preset.yaml"])
def test_records_nested_without_end_are_no_traceback(lora, file):
    (lora / file).write_text("[" * 100_000)
    for what in (lora, lora / LORA):
        doctor(what)


def test_lines_that_are_no_numbers_are_counted(lora):
    first = (lora / "metrics.jsonl").read_text().splitlines()[0]
    odd = [
        json.dumps(json.loads(first) | {"masked_lpips/gated": "3"}),
        '{"loss": 1' + "0" * 400 + "}",
        "[[1]]",
        "nonsense",
    ]
    (lora / "metrics.jsonl").write_text("\n".join([*odd, first, '{"loss": 0.']))
    output = doctor(lora)[1]
    assert "worth a look: 4 lines of metrics.jsonl cannot be read" in output
    assert "in 1 steps" in output
    (lora / "metrics.jsonl").write_text("\n".join(odd))
    assert "the run made no step" not in doctor(lora)[1]
    endless = json.dumps(json.loads(first) | {"masked_lpips/gated": 0}).replace('"loss": ', '"loss": 1e999, "was": ')
    (lora / "metrics.jsonl").write_text(endless + "\n")
    assert "wrong: The loss was NaN or infinite in 1 of 1 steps." in doctor(lora)[1]


def test_what_no_one_thought_of_is_told_in_one_line(lora):
    line = {"face/gated": 1.7e308, "masked_lpips/gated": 1}
    (lora / "metrics.jsonl").write_text("\n".join([json.dumps(line)] * 40))
    status, output = doctor(lora)
    assert status == 1
    assert "is not as a training writes it (OverflowError: " in output
    assert output.splitlines()[-1].startswith("mldm: Something in ")


def test_a_loss_without_a_gradient_at_the_start(lora):
    rows = "  loss  weight  T  value  |gradient|  verdict\n  masked_lpips             0.2   600      0.5  {}  reaches\n"
    (lora / "proof.txt").write_text(rows.format("0.08"))
    assert doctor(lora)[0] == 0
    (lora / "proof.txt").write_text(rows.format("       0"))
    status, output = doctor(lora)
    assert status == 1
    assert "masked_lpips had no gradient at the start (proof.txt)" in output


def test_masks_of_the_training_set(lora, make_data, tmp_path):
    data = make_data(tmp_path / "data", 8, rows={7: {"mask_file_name": None}})
    Image.new("L", (64, 64)).save(data / "2_mask.png")
    for number in (0, 1, 3, 4):
        with Image.open(data / f"{number}_mask.png") as opened:
            background = opened.point(lambda label: int(label == 0))
        background.save(data / f"{number}_mask.png")
    status, output = doctor(lora, "--data", data, "--out", tmp_path / "doctor.png")
    assert status == 1
    assert output.startswith("The LoRA does something. Something is wrong")
    assert (
        "wrong: 4 of 7 masks look inverted: people fill more of the border than of the middle. 0.png, 1.png" in output
    )
    assert "worth a look: 1 of 8 pictures has no mask: losses on people pass over them. 7.png" in output
    assert "worth a look: 1 of 7 masks shows nobody. 2.png" in output
    with Image.open(tmp_path / "doctor.png") as picture:
        assert picture.width > 1000
        assert picture.height > 3 * 256  # the chart, and three lines of pairs of pictures


def test_the_chart_has_a_bar_for_each_layer_red_where_it_has_not_moved():
    """Of three layers, one of 10% and one of 1%: as wide each, the one as high as the whole, the other a line."""
    drawn = chart([Layer("up_blocks.0.a", 0.1, 1.0), Layer("up_blocks.1.a", 0.0, 1.0), Layer("b", 0.01, 1.0)], "LoRA")
    colours = {colour: count for count, colour in drawn.getcolors(1 << 24)}
    assert colours[0xDD, 0x33, 0x33] == pytest.approx(500 * 240, rel=0.02)
    assert colours[0x4A, 0x7F, 0xD0] == pytest.approx(500 * 240, rel=0.02)
    drawn = chart([Layer("a", 0.0), Layer("b", 0.0)], "LoRA")
    assert (0x4A, 0x7F, 0xD0) not in {colour for _, colour in drawn.getcolors(1 << 24)}


def test_only_what_was_trained_on_is_looked_at(lora, make_data, tmp_path):
    make_data(tmp_path / "data" / "train", 3)
    make_data(tmp_path / "data" / "validation", 2, annotated=False)
    assert "3 of 3 have a mask of their size." in doctor(lora, "--data", tmp_path / "data")[1]


def test_pictures_that_went_away_are_worth_a_look(lora, tmp_path):
    (tmp_path / "empty").mkdir()
    status, output = doctor(lora, "--data", tmp_path / "empty")
    assert status == 0
    assert "Pictures and masks were not looked at:" in output


def test_faults_of_rows_are_named(lora, make_data, tmp_path):
    data = make_data(tmp_path / "data", 3)
    (data / "1_mask.png").unlink()
    status, output = doctor(lora, "--data", data)
    assert status == 1
    assert "fault in mask: there is no file 1_mask.png" in output


def test_folders_that_say_too_little(lora_run, tmp_path):
    status, output = doctor(tmp_path / "nowhere")
    assert status == 1
    assert "nowhere is not here. Expected the folder of a run" in output
    status, output = doctor(lora_run.parent)
    assert status == 1
    assert f"Did you mean {lora_run}?" in output
    for name in ("a-000001", "a"):
        shutil.copy(lora_run / LORA, tmp_path / f"{name}.safetensors")
    status, output = doctor(tmp_path)
    assert status == 1
    assert "holds several files, say which one" in output
    (tmp_path / "a-000001.safetensors").unlink()
    assert doctor(tmp_path)[0] == 0
    save_file({"lora_unet_x.hada_w1_a": torch.ones(2)}, tmp_path / "a.safetensors")
    status, output = doctor(tmp_path)
    assert status == 1
    assert "holds no LoRA of two matrices a layer" in output


def test_options_without_a_run_are_refused():
    status, output = doctor("--base", "x")
    assert status == 2
    assert "go with a RUN" in output


def test_layers_together():
    found = Changes("LoRA", layers=[Layer("a", 3.0, 30.0), Layer("b", 4.0, 40.0), Layer("c", 100.0)])
    assert found.share == pytest.approx(0.1)
