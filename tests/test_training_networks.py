from __future__ import annotations

import json
import shutil

import pytest
import torch

from mldm_plugin.errors import MldmError
from mldm_plugin.training.controlnet import ControlNetTrainer, remove_hint
from mldm_plugin.training.flags import ControlNetFlags


def load(pipeline, **changes) -> ControlNetTrainer:
    given = {"pretrained_model_name_or_path": str(pipeline), "train_data_dir": "data", **changes}
    return ControlNetTrainer(ControlNetFlags(**given), torch.device("cpu"), torch.float32)


@pytest.fixture
def changed(tiny_pipeline, tmp_path):
    """`changed("unet/config.json", key=value)` is a copy of the pipeline with one file changed."""

    def changed(file: str, **values):
        copy = tmp_path / "pipeline"
        shutil.copytree(tiny_pipeline, copy)
        config = json.loads((copy / file).read_text())
        (copy / file).write_text(json.dumps(config | values))
        return copy

    return changed


def test_only_the_controlnet_is_trained(tiny_pipeline):
    trainer = load(tiny_pipeline)
    assert trainer.trained.training
    assert not any(n.training for n in (trainer.vae, trainer.unet, trainer.text_encoder))
    frozen = (trainer.vae, trainer.unet, trainer.text_encoder)
    assert not any(p.requires_grad for n in frozen for p in n.parameters())
    ids = [id(p) for p in trainer.trainable()]
    assert ids == [id(p) for p in trainer.trained.parameters()]


def test_without_a_hint_the_embedding_is_zero_and_not_trained(tiny_pipeline):
    trainer = load(tiny_pipeline, conditioning="none")
    embedding = trainer.trained.controlnet_cond_embedding
    assert not embedding(torch.rand(1, 3, 32, 32) * 1e6).any()
    number = len(list(embedding.parameters()))
    assert len(trainer.trainable()) == len(list(trainer.trained.parameters())) - number
    before = [p.clone() for p in trainer.trainable()]
    remove_hint(trainer.trained)
    assert all(a.equal(b) for a, b in zip(before, trainer.trainable(), strict=True))


def test_starts_from_a_trained_controlnet(tiny_pipeline, tmp_path):
    first = load(tiny_pipeline).trained
    with torch.no_grad():
        first.controlnet_mid_block.weight.fill_(0.25)
    first.save_pretrained(tmp_path / "controlnet")
    second = load(tiny_pipeline, controlnet_model_name_or_path=str(tmp_path / "controlnet")).trained
    assert (second.controlnet_mid_block.weight == 0.25).all()


def test_another_tokenizer_may_be_named(tiny_pipeline):
    name = str(tiny_pipeline / "tokenizer")
    assert load(tiny_pipeline, tokenizer_name=name).tokenizer.model_max_length == 77


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predicts 'sample'"),
        ("text_encoder/config.json", {"architectures": ["T5EncoderModel"]}, "text encoder T5EncoderModel"),
        ("unet/config.json", {"block_out_channels": [8, 16]}, "cannot be loaded"),
    ],
)
def test_a_pipeline_that_is_not_stable_diffusion_1(changed, file, values, words):
    with pytest.raises(MldmError, match=words):
        load(changed(file, **values))


def test_half_precision_weights_are_refused(tiny_pipeline, monkeypatch):
    from diffusers import ControlNetModel

    original = ControlNetModel.from_unet
    monkeypatch.setattr(ControlNetModel, "from_unet", lambda unet: original(unet).half())
    with pytest.raises(MldmError, match=r"torch\.float16, expected float32"):
        load(tiny_pipeline)


def test_xformers_must_be_there(tiny_pipeline, monkeypatch):
    monkeypatch.setattr("mldm_plugin.training.trainer.is_xformers_available", lambda: False)
    with pytest.raises(MldmError, match="pip install xformers"):
        load(tiny_pipeline, enable_xformers_memory_efficient_attention=True)
