"""Our trainers let their network be asked again: the same answer, every gradient, on one process and on two."""

from dataclasses import replace

import pytest
import torch
from run_trainer import records, run_here, same_weights
from tiny_conditional import BOTH
from tiny_data import add_conditions, write_data

from mldm_plugin.data.batch import collate
from mldm_plugin.data.load import open_rows
from mldm_plugin.data.training_set import Columns, TrainingSet
from mldm_plugin.engine.ddim import check_answers
from mldm_plugin.engine.schedule import NoiseSchedule
from mldm_plugin.training.conditional_flags import ConditionalFlags
from mldm_plugin.training.conditional_ldm import ConditionalTrainer
from mldm_plugin.training.controlnet import ControlNetTrainer
from mldm_plugin.training.flags import ControlNetFlags, LoraFlags
from mldm_plugin.training.text_to_image_lora import LoraTrainer

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SMALL = {"block_out_channels": [16, 32], "attention_head_dim": 8, "attention_resolutions": [8, 4]}
SMALL |= {"layers_per_block": 1, "cross_attention_dim": 16}
CONDITIONS = {"condition": ["attributes", "semantic_mask"], "condition_option": [BOTH[-1]], "condition_dropout": 0.3}
KINDS = {
    "ControlNet": (ControlNetTrainer, ControlNetFlags, {}),
    "ControlNet without a hint": (ControlNetTrainer, ControlNetFlags, {"conditioning": "none"}),
    "ControlNet and conditions": (ControlNetTrainer, ControlNetFlags, CONDITIONS),
    "LoRA": (LoraTrainer, LoraFlags, {"rank": 2}),
    "LoRA of v": (LoraTrainer, LoraFlags, {"rank": 2, "prediction_type": "v_prediction"}),
    "LoRA and conditions": (LoraTrainer, LoraFlags, {"rank": 2, **CONDITIONS}),
    "conditional LDM": (ConditionalTrainer, ConditionalFlags, SMALL | CONDITIONS),
}


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces") / "data"
    return write_data(folder, rows=add_conditions(folder))


def stirred(trainer):
    """With weights that are not 0 where a LoRA or a ControlNet begins with 0, so that they have a part in answers."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in trainer.trainable():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return trainer


@pytest.fixture(params=KINDS)
def made(request, tiny_pipeline, faces):
    """A trainer, its batch of three, and the step that it makes of it."""
    kind, flags, changes = KINDS[request.param]
    given = {"pretrained_model_name_or_path": str(tiny_pipeline), "train_data_dir": "data", "resolution": 64}
    torch.manual_seed(0)
    trainer = stirred(kind(flags(**given | changes), CPU, torch.float32))
    trainer.move_frozen()
    columns = Columns(conditioning="conditioning_image" if trainer.hints else None)
    options = {"resolution": 64, "tokenizer": trainer.tokenizer, "conditions": trainer.conditions}
    found = TrainingSet(open_rows(None, folder=str(faces)), columns, **options)
    captions = ("a person", "two people at the sea", "nobody")
    batch = collate(
        [
            replace(found.look(i), input_ids=None if trainer.tokenizer is None else found.tokens(captions[i]))
            for i in range(3)
        ]
    )
    step = trainer.diffusion_step(trainer.trained, batch, lambda latents: torch.tensor([60, 400, 90]))
    return trainer, step


def test_asked_again_it_answers_the_same_about_some_of_the_images(made):
    _, step = made
    again = step.predict(step.noisy_latents[1:], step.timesteps[1:], [1, 2])
    torch.testing.assert_close(again, step.model_pred[1:], rtol=1e-4, atol=1e-5)
    assert "answers the same" in check_answers(step, [0, 2])
    with torch.no_grad():
        assert not torch.allclose(step.predict(step.noisy_latents[1:], step.timesteps[1:], [2, 1]), again, atol=1e-4)


def test_every_answer_trains_all_weights(made):
    """What is kept and what is computed again give the same gradient, and no answer's part of it is missing."""
    trainer, step = made
    schedule, weights = NoiseSchedule.from_scheduler(trainer.noise_scheduler), trainer.trainable()
    gradients = {}
    for answers in (1, 2, 3):
        schedule.answers = answers
        loss = schedule.pred_latents(step).square().sum()
        gradients[answers] = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mldm_plugin.engine.schedule.checkpoint", lambda f, *given, use_reentrant: f(*given))
        loss = schedule.pred_latents(step).square().sum()
        kept = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    for one, three, plain in zip(gradients[1], gradients[3], kept, strict=True):
        assert (one is None) == (three is None)
        if one is not None:
            torch.testing.assert_close(three, plain, rtol=1e-4, atol=1e-5 * plain.abs().max().item())
    cut = replace(step, predict=lambda z, t, rows: step.predict(z, t, rows).detach())
    lost = torch.autograd.grad(schedule.pred_latents(cut).square().sum(), weights, allow_unused=True)
    moved = [p is not None and not torch.allclose(t, p, rtol=1e-3) for t, p in zip(gradients[3], lost, strict=True)]
    assert any(moved)


FLAGS = ("--max_train_steps", 3, "--train_batch_size", 2, "--panel_steps", 3, "--learning_rate", 1e-3)


@pytest.mark.parametrize(("trainer", "other"), [("train", "half"), ("train_lora", "savers")])
def test_a_run_shows_it_logs_it_and_is_another_than_with_one_answer(trainer, other, request, random_preset, tmp_path):
    train = request.getfixturevalue(trainer)
    plugin = ("--loss-plugin", "mldm", "--preset", random_preset, "--set", "audit_steps=2")
    two = ("--set", "estimate=ddim-2")
    ways = {"half": ("--mixed_precision", "bf16"), "savers": ("--gradient_checkpointing",)}
    for name, more in {"one": (), "two": two, other: (*two, *ways[other])}.items():
        assert train(tmp_path / name, *FLAGS, *plugin, *more) == 0
    proof = (tmp_path / "two" / "proof.txt").read_text()
    assert "the clean estimate is that of 2 answers of the network" in proof
    assert "asked again about the same, the network answers the same" in proof
    assert not same_weights(tmp_path / "one", tmp_path / "two")
    assert same_weights(tmp_path / other, tmp_path / "two") is (other == "savers")
    assert (tmp_path / "two" / "panels" / "step-000003.png").is_file()
    for one, two in zip(records(tmp_path / "one"), records(tmp_path / "two"), strict=True):
        assert one["masked_lpips/gated"] == two["masked_lpips/gated"]
    assert records(tmp_path / "one")[0]["ldm"] == records(tmp_path / "two")[0]["ldm"]


def test_a_conditional_run(tiny_pipeline, faces, random_preset, tmp_path):
    from run_trainer import command

    from mldm_plugin.training.conditional_ldm import main

    small = [str(w) for k, v in SMALL.items() for w in (f"--{k}", *(v if isinstance(v, list) else [v]))]
    plugin = ("--loss-plugin", "mldm", "--preset", random_preset, "--set", "estimate=ddim-2")
    plugin += ("--set", "losses.masked_lpips.max_timestep=null")
    flags = (*small, *BOTH, "--validation_rows", 0, "--max_train_steps", 2, *plugin)
    assert run_here(main, command(tmp_path / "run", tiny_pipeline, faces, *flags)) == 0
    assert "the network answers the same" in (tmp_path / "run" / "proof.txt").read_text()
