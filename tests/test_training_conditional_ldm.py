"""The trainer of conditions: its networks, what reaches them, the moving average, resuming, and what it hands on."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import VQModel
from PIL import Image
from run_trainer import command, records, run_here
from safetensors.torch import load_file
from tiny_conditional import BOTH, SMALL
from tiny_data import add_conditions, write_data

from mldm_plugin.conditions.celeba import ATTRIBUTES
from mldm_plugin.conditions.pipeline import ConditionalLDMPipeline
from mldm_plugin.data.batch import collate
from mldm_plugin.errors import MldmError
from mldm_plugin.evaluation.checkpoints import models_of_run
from mldm_plugin.evaluation.models import load_pipeline, parse_models
from mldm_plugin.training import hub
from mldm_plugin.training.conditional_card import card_of
from mldm_plugin.training.conditional_flags import ConditionalFlags
from mldm_plugin.training.conditional_ldm import ConditionalTrainer, load_autoencoder, unet_config
from mldm_plugin.training.conditions import with_drops


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces") / "data"
    return write_data(folder, rows=add_conditions(folder))


@pytest.fixture
def train(tiny_pipeline, faces):
    from mldm_plugin.training.conditional_ldm import main

    return lambda output, *flags: run_here(main, command(output, tiny_pipeline, faces, *SMALL, *flags))


def make_trainer(pipeline, **changes):
    given = {"pretrained_model_name_or_path": str(pipeline), "train_data_dir": "data", "resolution": 64}
    given |= {"block_out_channels": [16, 32], "attention_head_dim": 8, "attention_resolutions": [8, 4]}
    given |= {"layers_per_block": 1, "cross_attention_dim": 16, "condition": ["attributes", "semantic_mask"]}
    given |= {"condition_option": ["semantic_mask.channels=[8, 8, 8, 16]"], **changes}
    torch.manual_seed(0)
    return ConditionalTrainer(ConditionalFlags(**given), torch.device("cpu"), torch.float32)


def weights(folder):
    return {
        f"{part}.{name}": value
        for part in ("unet", "conditions")
        for name, value in load_file(folder / part / "diffusion_pytorch_model.safetensors").items()
    }


# The paper's network


def test_the_network_by_default_is_celebahq_ldm_vq_4(tmp_path):
    flags = ConditionalFlags(pretrained_model_name_or_path="x", train_data_dir="y")
    vae = VQModel(block_out_channels=(32, 32, 32), latent_channels=3, **three_levels()).config
    config = unet_config(flags, vae)
    assert (config["sample_size"], config["in_channels"]) == (64, 3)
    assert config["block_out_channels"] == [224, 448, 672, 896]
    assert config["down_block_types"] == ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3
    assert config["up_block_types"] == ["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"]
    assert config["attention_head_dim"] == [7, 14, 21, 28], "heads of 32, as many as diffusers calls their width"
    assert config["cross_attention_dim"] == 512


def test_the_schedule_gives_p2_the_weight_that_the_docs_say(tiny_pipeline):
    trainer = make_trainer(tiny_pipeline)
    kept = trainer.noise_scheduler.alphas_cumprod
    weight = (1 + kept[400] / (1 - kept[400])) ** -0.5
    assert float(weight) == pytest.approx(0.875, abs=5e-4)


def three_levels():
    return {
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "norm_num_groups": 8,
        "num_vq_embeddings": 32,
    }


def test_latents_of_a_vqmodel_are_taken_as_they_are_and_quantised_when_decoded(tiny_pipeline, tmp_path):
    torch.manual_seed(0)
    VQModel(block_out_channels=(8, 8, 8), latent_channels=3, **three_levels()).save_pretrained(tmp_path / "vqvae")
    trainer = make_trainer(tmp_path, attention_resolutions=[16, 8])
    assert trainer.vae.config.scaling_factor == 1
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        latents = trainer.latents_of({"pixel_values": pixels})
        assert torch.equal(latents, trainer.vae.encode(pixels).latents)
        assert torch.equal(trainer.most_likely_latents(pixels), latents)
        drawn = trainer.make_pipeline(None)._decoded(latents, "pt")
        vae = trainer.vae
        of_codes, of_latents = (vae.decoder(vae.post_quant_conv(z)) for z in (vae.quantize(latents)[0], latents))
    torch.testing.assert_close(drawn, (of_codes / 2 + 0.5).clamp(0, 1))
    assert (of_codes - of_latents).abs().max() > 1e-2
    assert latents.shape == (2, 3, 16, 16)
    assert trainer.trained.unet.config.in_channels == 3


# Steps


def test_it_trains_on_both_with_losses_and_hands_a_pipeline_on(train, random_preset, tmp_path, faces):
    losses = ("--loss-plugin", "mldm", "--preset", random_preset, "--set", "losses.masked_lpips.max_timestep=999")
    flags = (*BOTH, "--max_train_steps", 3, "--use_ema", "--ema_decay", 0.5, "--random_flip", *losses)
    assert train(tmp_path, *flags, "--condition_dropout", 0.3, "--panel_steps", 2) == 0
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3]
    assert all(record["masked_lpips"] is not None for record in records(tmp_path))
    assert (tmp_path / "panels" / "step-000002.png").is_file()
    pipeline = ConditionalLDMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    row = json.loads((faces / "metadata.jsonl").read_text().splitlines()[2])
    with Image.open(faces / row["parts_file_name"]) as parts:
        drawn = pipeline(row["attributes"], parts, num_inference_steps=2).images
    assert drawn[0].size == (64, 64)
    assert pipeline.scheduler.config.beta_end == 0.0195
    card = (tmp_path / "README.md").read_text()
    assert "draws from attributes and semantic_mask, each of which was taken from 30% of the pictures" in card
    assert "pipeline(attributes=attributes, mask=mask)" in card
    assert "the preset random.yaml" in card
    assert str(tmp_path.parent) not in card, "nothing of where it lay"


def test_an_upload_leaves_the_models_own_card(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "upload_folder", lambda **_: None)
    given = {"pretrained_model_name_or_path": "x/vae", "train_data_dir": "faces", "output_dir": str(tmp_path)}
    for changes, said in (({}, "from no condition"), ({"condition": ["age"]}, "None was taken away in training")):
        flags = ConditionalFlags(**given, **changes)
        (tmp_path / "README.md").write_text(card_of(flags))
        hub.upload("conditional LDM", flags, "me/faces", [])
        card = (tmp_path / "README.md").read_text()
        assert said in card
        assert "creativeml" not in card, "it is not made of Stable Diffusion"
    assert 'pipeline(conditions={"age": [...]})' in card


def test_v_is_predicted_where_it_is_asked_for_and_the_pipeline_knows(tiny_pipeline):
    trainer = make_trainer(tiny_pipeline, prediction_type="v_prediction", condition=None, condition_option=None)
    trainer.move_frozen()
    timesteps = torch.tensor([10, 500, 990])
    step = trainer.diffusion_step(trainer.trained, {"pixel_values": torch.rand(3, 3, 64, 64)}, lambda _: timesteps)
    kept = trainer.noise_scheduler.alphas_cumprod[timesteps][:, None, None, None]
    assert torch.allclose(step.target, kept.sqrt() * step.noise - (1 - kept).sqrt() * step.latents, atol=1e-6)
    assert torch.allclose(step.base_loss, (step.model_pred - step.target).square().mean())
    assert trainer.make_pipeline(None).scheduler.config.prediction_type == "v_prediction"
    assert make_trainer(tiny_pipeline).make_pipeline(None).scheduler.config.prediction_type == "epsilon"


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_pipeline_ends_at_the_clean_latents_that_its_network_sees(tiny_pipeline, monkeypatch, prediction_type, eta):
    """A network that knows z₀ and answers ε or v of it at each step: DDIM must give z₀ back, nothing of the noise."""
    trainer = make_trainer(tiny_pipeline, prediction_type=prediction_type, condition=None, condition_option=None)
    pipeline = trainer.make_pipeline(None)
    clean = torch.randn(1, 4, 8, 8)

    def answer(noisy, timestep, tokens):
        kept = trainer.noise_scheduler.alphas_cumprod[timestep]
        noise = (noisy - kept.sqrt() * clean) / (1 - kept).sqrt()
        v = kept.sqrt() * noise - (1 - kept).sqrt() * clean
        return SimpleNamespace(sample=noise if prediction_type == "epsilon" else v)

    monkeypatch.setattr(pipeline.unet, "forward", answer)
    pipeline.set_progress_bar_config(disable=True)
    for steps in (5, 50, 1000):
        found = pipeline(num_inference_steps=steps, eta=eta, output_type="latent").images
        torch.testing.assert_close(found, clean, rtol=0, atol=1e-3)


def test_the_conditions_of_a_picture_reach_its_prediction(tiny_pipeline, faces):
    from mldm_plugin.data.load import open_rows
    from mldm_plugin.data.training_set import Columns, TrainingSet

    trainer = make_trainer(tiny_pipeline)
    rows = open_rows(None, folder=str(faces))
    columns = Columns(caption=None, conditioning=None)
    found = TrainingSet(rows, columns, resolution=64, conditions=trainer.conditions)
    batch = collate([found.look(i) for i in range(3)])
    assert batch["conditions"]["semantic_mask"].shape == (3, 1, 64, 64)
    with Image.open(faces / "2_parts.png") as parts:  # of the training's size already
        assert np.array_equal(batch["conditions"]["semantic_mask"][2, 0].numpy(), np.asarray(parts))
    said = json.loads((faces / "metadata.jsonl").read_text().splitlines()[0])["attributes"]
    assert batch["conditions"]["attributes"][0].tolist() == [float(said[name]) for name in ATTRIBUTES]
    trainer.trained.eval()
    noisy, timesteps = torch.randn(3, 4, 8, 8), torch.tensor([10, 500, 900])
    with torch.no_grad():
        predicted = trainer.predict(trainer.trained, batch, noisy, timesteps)
        for name in ("attributes", "semantic_mask"):
            absent = {**batch["present"], name: torch.tensor([True, False, True])}
            other = trainer.predict(trainer.trained, {**batch, "present": absent}, noisy, timesteps)
            changed = (predicted - other).abs().amax((1, 2, 3))
            assert changed[1] > 1e-5
            assert changed[0] == changed[2] == 0


def test_every_weight_has_a_gradient_in_every_step(tiny_pipeline):
    """DDP stops otherwise: with all conditions there, with one of them in no picture, and without conditions."""
    for values, names in (
        ({"attributes": torch.ones(2, 40), "semantic_mask": torch.ones(2, 1, 64, 64, dtype=torch.uint8)}, None),
        ({"attributes": torch.ones(2, 40)}, None),
        ({}, []),
    ):
        changes = {} if names is None else {"condition": None, "condition_option": None}
        trainer = make_trainer(tiny_pipeline, **changes)
        batch = {"conditions": values}
        trainer.predict(trainer.trained, batch, torch.randn(2, 4, 8, 8), torch.tensor([1, 2])).sum().backward()
        assert [n for n, p in trainer.trained.named_parameters() if p.grad is None] == []


def test_conditions_are_dropped_as_often_as_asked_each_by_itself():
    there = torch.ones(4000, dtype=torch.bool)
    present = with_drops({"present": {"attributes": there, "semantic_mask": there}}, 0.25)["present"]
    dropped = [1 - keep.float().mean().item() for keep in present.values()]
    assert dropped == pytest.approx([0.25, 0.25], abs=0.03)
    both = (~present["attributes"] & ~present["semantic_mask"]).float().mean().item()
    assert both == pytest.approx(0.0625, abs=0.02)
    never = with_drops({"present": {"attributes": ~there}}, 0.25)["present"]
    assert not never["attributes"].any(), "what a picture does not have cannot be given to it"


def test_a_mirrored_picture_has_its_mask_mirrored_and_its_sides_renamed(tiny_pipeline, tmp_path):
    from dataclasses import replace

    from mldm_plugin.data.condition_columns import ConditionColumns
    from mldm_plugin.data.geometry import Framing

    trainer = make_trainer(tiny_pipeline, condition=["semantic_mask"])
    parts = np.zeros((64, 64), np.uint8)
    parts[10:20, 40:50] = 4  # the left eye, right in the picture
    Image.fromarray(parts).save(tmp_path / "parts.png")
    framing = Framing(64)
    cut = framing.middle((64, 64))
    read = ConditionColumns(trainer.conditions).read
    row = {"parts": {"path": str(tmp_path / "parts.png"), "bytes": None}}
    straight = read(row, (64, 64), framing, cut, "a")["semantic_mask"]
    mirrored = read(row, (64, 64), framing, replace(cut, mirrored=True), "a")["semantic_mask"]
    assert np.array_equal(straight[0].numpy(), parts)
    assert (mirrored[0, 10:20, 14:24] == 5).all(), "the right eye, left in the picture"
    assert int((mirrored > 0).sum()) == 100


# The moving average, and resuming


def test_the_moving_average_is_handed_on(train, tmp_path):
    """θ' ← d θ' + (1 − d) θ by diffusers' EMAModel, whose decay grows: after one step it is all of the weights."""
    flags = (*BOTH, "--max_train_steps", 4, "--checkpointing_steps", 2)
    assert train(tmp_path / "ema", *flags, "--use_ema", "--ema_decay", 0.9) == 0
    assert train(tmp_path / "plain", *flags) == 0
    averaged, last = weights(tmp_path / "ema"), weights(tmp_path / "plain")
    trained = weights(tmp_path / "ema" / "checkpoint-4" / "model")
    assert all(torch.equal(trained[name], last[name]) for name in last), "the average leaves the training alone"
    assert not all(torch.equal(averaged[name], last[name]) for name in last)
    stored = load_file(tmp_path / "ema" / "checkpoint-4" / "model" / "ema.safetensors")
    assert all(torch.equal(averaged[name], value) for name, value in stored.items())
    for run, early in (("ema", "ema.safetensors"), ("plain", None)):
        listed = models_of_run(tmp_path / run)
        assert [text.partition("=")[0] for text in listed] == ["final", "step-2", "step-4"]
        final, second, last = (
            load_pipeline(model.runs[0], torch.device("cpu"), torch.float32) for model in parse_models(listed, None)
        )
        at_2 = weights(tmp_path / run / "checkpoint-2" / "model")
        at_2 |= load_file(tmp_path / run / "checkpoint-2" / "model" / early) if early else {}
        for name, value in tensors(second).items():
            assert torch.equal(value, at_2[name]), name
            assert torch.equal(tensors(last)[name], tensors(final)[name]), name
        assert not all(torch.equal(value, tensors(final)[name]) for name, value in tensors(second).items())


def tensors(pipeline):
    return {
        f"{part}.{name}": value
        for part in ("unet", "conditions")
        for name, value in getattr(pipeline, part).state_dict().items()
    }


def test_a_step_of_a_run_that_is_not_finished_is_refused(train, tmp_path):
    assert train(tmp_path, *BOTH, "--max_train_steps", 2, "--checkpointing_steps", 2) == 0
    (tmp_path / "model_index.json").unlink()
    with pytest.raises(MldmError, match="checkpoint-2/model lies in no finished run"):
        parse_models([f"a={tmp_path / 'checkpoint-2' / 'model'}"], None)


@pytest.mark.parametrize("ema", [(), ("--use_ema",)], ids=["plain", "ema"])
def test_stopped_and_resumed_is_uninterrupted(train, tmp_path, ema):
    flags = (*BOTH, *ema, "--checkpointing_steps", 2, "--random_flip", "--condition_dropout", 0.3)
    assert train(tmp_path / "whole", *flags, "--max_train_steps", 5) == 0
    assert train(tmp_path / "halves", *flags, "--max_train_steps", 2) == 0
    again = ("--max_train_steps", 5, "--resume_from_checkpoint", "latest")
    assert train(tmp_path / "halves", *flags, *again) == 0
    whole, halves = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert records(tmp_path / "whole") == records(tmp_path / "halves")


def test_cached_latents_change_nothing(train, tmp_path):
    flags = (*BOTH, "--max_train_steps", 3, "--random_flip")
    assert train(tmp_path / "plain", *flags) == 0
    cache = ("--cache_latents", "--latents_cache_dir", tmp_path / "cache")
    assert train(tmp_path / "cached", *flags, *cache) == 0
    plain, cached = (([r["loss"] for r in records(tmp_path / name)]) for name in ("plain", "cached"))
    assert plain == pytest.approx(cached, rel=1e-4)


def test_held_out_conditions_are_drawn_beside_their_pictures(train, tmp_path, faces):
    flags = ("--validation_rows", 2, "--validation_steps", 2, "--evaluate_data_dir", faces)
    trained = [f for f in SMALL if f not in ("--validation_rows", 0)]
    from mldm_plugin.training.conditional_ldm import main

    argv = command(tmp_path, "x", faces, *trained, *BOTH, *flags)
    argv[argv.index("x")] = str(faces.parent / "none")
    assert run_here(main, argv) == 1  # no autoencoder there
    assert train(tmp_path / "run", *BOTH, "--validation_steps", 2, "--validation_rows", 2) == 0
    drawn = sorted(path.name for path in (tmp_path / "run" / "validation").iterdir())
    assert drawn == ["step-000002-prompt-0-0.png", "step-000002-prompt-1-0.png"]


# What is refused


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--condition", "atributes"), "unknown condition 'atributes': did you mean 'attributes'"),
        (("--condition", "attributes", "attributes"), "names one twice"),
        (("--condition", "attributes", "--condition_option", "pooled"), "expected NAME.OPTION=VALUE"),
        (("--condition", "attributes", "--condition_option", "semantic_mask.pooled=true"), "is no --condition of this"),
        (("--condition_dropout", "0.1"), "drops nothing without --condition"),
        (("--attention_head_dim", "12"), "--attention_head_dim 12 does not divide the width 16"),
        ((*BOTH, "--attention_resolutions", "64"), r"no level of \[8, 4\] is in --attention_resolutions \[64\]"),
        (("--block_out_channels", *([16] * 6)), "latents of 8x8 cannot be halved 5 times"),
    ],
)
def test_what_the_flags_cannot_be(train, the_error, tmp_path, flags, message):
    import re

    assert train(tmp_path, *flags) == 1
    assert re.search(message, the_error())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({1: {"attributes": None, "parts_file_name": None}}, None),
        ({i: {"parts_file_name": None} for i in range(7)}, "has no column 'parts', which the condition semantic_mask"),
        ({1: {"parts_file_name": "0_parts.png"}}, "1.png is 70x64: a mask has the size"),
    ],
)
def test_data_sets_that_lack_something(train, the_error, tmp_path, rows, message):
    given = add_conditions(tmp_path / "data")
    data = write_data(tmp_path / "data", rows={i: {**row, **rows.get(i, {})} for i, row in given.items()})
    status = train(tmp_path / "out", "--train_data_dir", data, *BOTH)
    if message is None:
        assert status == 0, "a picture without a condition trains with the token for absent"
        return
    assert status == 1
    assert message in the_error()


def test_an_autoencoder_may_lie_alone_and_what_is_none_is_said(tiny_pipeline, tmp_path):
    def flags(path):
        return ConditionalFlags(pretrained_model_name_or_path=str(path), train_data_dir="data")

    assert load_autoencoder(flags(tiny_pipeline / "vae")).config.scaling_factor == pytest.approx(0.18215)
    scaled = ConditionalFlags(pretrained_model_name_or_path=str(tiny_pipeline), train_data_dir="d", scaling_factor=2)
    assert load_autoencoder(scaled).config.scaling_factor == 2
    with pytest.raises(MldmError, match="has no autoencoder.*Expected a pipeline with a folder vae or vqvae"):
        load_autoencoder(flags(tmp_path))
