"""Faces from attributes and masks: networks trained through CUDA graphs; their trainer, stopped and resumed."""

import pytest
import torch
from run_trainer import command, run_here
from tiny_conditional import BOTH, SIDE, SMALL, write_faces
from tiny_data import write_pipeline

from mldm_plugin.conditions.judges import AttributeJudge, PartsJudge, attributes_seen, parts_seen
from mldm_plugin.conditions.pipeline import ConditionalLDMPipeline
from mldm_plugin.faces import autoencoder
from mldm_plugin.faces.judges import train_judge
from mldm_plugin.faces.pictures import read_faces
from mldm_plugin.training.conditional_ldm import main


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return write_faces(tmp_path_factory.mktemp("faces"))


def test_the_networks_of_faces_are_trained(cuda, faces, tmp_path, caplog):
    known, held_out = (read_faces(faces, split, SIDE) for split in ("train", "validation"))
    assert autoencoder.train_autoencoder(known, held_out, 4, tmp_path, None) > 0
    for kind, seen in ((AttributeJudge, attributes_seen), (PartsJudge, parts_seen)):
        judge = train_judge(kind, known, 4, tmp_path)
        assert len(seen(judge, held_out.floats(torch.arange(len(held_out))))) == len(held_out)
    assert "no CUDA graph" not in caplog.text


def test_the_trainer_of_conditions_resumes_exactly(cuda, deterministic, faces, note, tmp_path):
    pipeline = write_pipeline(tmp_path / "pipeline")
    same = (*SMALL, *BOTH, "--use_ema", "--ema_decay", 0.5, "--checkpointing_steps", 2, "--cache_latents")

    def train(output, *flags):
        assert run_here(main, command(output, pipeline, faces, *same, *flags), cpu=False) == 0
        return ConditionalLDMPipeline.from_pretrained(output)

    whole, again = (train(tmp_path / name, "--max_train_steps", 4) for name in ("whole", "again"))
    train(tmp_path / "parts", "--max_train_steps", 2)
    parts = train(tmp_path / "parts", "--max_train_steps", 4, "--resume_from_checkpoint", "latest")
    by_chance, off = (apart(whole.unet, made.unet) for made in (again, parts))
    note("faces, a run against the same run: averaged weights", by_chance)
    note("faces, resumed against uninterrupted: averaged weights", off, at_most=1e-5)
    drawn = whole.to(cuda)(batch_size=2, num_inference_steps=2).images
    assert [picture.size for picture in drawn] == [(SIDE, SIDE)] * 2


def apart(one, other):
    """The largest difference of two networks' weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)
