"""Condition encoders beside text, in the LoRA and the ControlNet trainer: trained, stored, dropped, and drawn with."""

import json
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import StableDiffusionPipeline
from PIL import Image
from run_trainer import WEIGHTS, command, records, run_here
from safetensors.torch import load_file
from tiny_conditional import BOTH
from tiny_data import add_conditions, write_data

from mldm_plugin.cli import main as mldm
from mldm_plugin.conditions.beside_text import BesideText
from mldm_plugin.conditions.conditions import Conditions
from mldm_plugin.data.batch import collate
from mldm_plugin.data.load import open_rows
from mldm_plugin.data.training_set import Columns, TrainingSet
from mldm_plugin.errors import DataError, MldmError
from mldm_plugin.evaluation.evaluate import Asked, Evaluation, Sampling
from mldm_plugin.evaluation.models import load_pipeline, parse_models, set_sampler
from mldm_plugin.evaluation.predicting import Asker
from mldm_plugin.evaluation.sampling import noise_of
from mldm_plugin.plugins import load_plugins
from mldm_plugin.training.controlnet import ControlNetTrainer
from mldm_plugin.training.flags import ControlNetFlags, LoraFlags
from mldm_plugin.training.text_to_image_lora import LoraTrainer

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
KINDS = {"text_to_image_lora": (LoraTrainer, LoraFlags), "controlnet": (ControlNetTrainer, ControlNetFlags)}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces") / "data"
    return write_data(folder, rows=add_conditions(folder))


@pytest.fixture(scope="module")
def train(tiny_pipeline, faces):
    def train(kind, output, *flags):
        main = import_module(f"mldm_plugin.training.{kind}").main
        return run_here(main, command(output, tiny_pipeline, faces, "--learning_rate", 0.01, *flags))

    return train


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def run(kind, train, tmp_path_factory):
    """A finished run with both conditions, a third of them dropped."""
    folder = tmp_path_factory.mktemp("run") / kind
    assert (
        train(kind, folder, *BOTH, "--condition_dropout", 0.3, "--checkpointing_steps", 1, "--max_train_steps", 3) == 0
    )
    return folder


def make_trainer(kind, pipeline, **changes):
    trainer, flags = KINDS[kind]
    given = {"pretrained_model_name_or_path": str(pipeline), "train_data_dir": "data", "resolution": 64}
    given |= {"condition": ["attributes", "semantic_mask"], "condition_option": [BOTH[-1]], **changes}
    torch.manual_seed(0)
    made = trainer(flags(**given), CPU, torch.float32)
    made.move_frozen()
    return made


def stored(folder):
    return load_file(folder / "conditions" / "diffusion_pytorch_model.safetensors")


def look(trainer, faces, row):
    columns = Columns(conditioning="conditioning_image" if trainer.hints else None)
    options = {"resolution": 64, "tokenizer": trainer.tokenizer, "conditions": trainer.conditions}
    found = TrainingSet(open_rows(None, folder=str(faces)), columns, **options)
    return replace(found.look(row), input_ids=found.tokens("a person"))


def load(run):
    [model] = parse_models([f"run={run}"], None)
    return load_pipeline(model.runs[0], CPU, torch.float32)


# Training


def test_encoders_are_trained_and_stored_with_the_run_and_each_checkpoint(kind, run):
    assert [record["step"] for record in records(run)] == [1, 2, 3]
    inside = {"text_to_image_lora": "", "controlnet": "controlnet"}[kind]
    first, last, final = (stored(f) for f in (run / "checkpoint-1" / inside, run / "checkpoint-3" / inside, run))
    assert all(torch.equal(last[name], final[name]) for name in final)
    for part in ("encoders.attributes", "encoders.semantic_mask", "absent.attributes", "absent.semantic_mask"):
        assert any(not torch.equal(first[name], final[name]) for name in final if name.startswith(part)), part
    assert (run / WEIGHTS[kind]).is_file()


def test_what_is_not_asked_for_is_not_there(kind, train, tiny_pipeline, tmp_path):
    assert train(kind, tmp_path / "plain", "--max_train_steps", 1) == 0
    assert not (tmp_path / "plain" / "conditions").exists()
    trainer = make_trainer(kind, tiny_pipeline, condition=None, condition_option=None)
    assert trainer.trained is (trainer.unet if kind == "text_to_image_lora" else trainer.controlnet)


def test_stopped_and_resumed_is_uninterrupted(kind, run, train, tmp_path):
    flags = (*BOTH, "--condition_dropout", 0.3, "--checkpointing_steps", 1)
    assert train(kind, tmp_path / "run", *flags, "--max_train_steps", 1) == 0
    again = ("--max_train_steps", 3, "--resume_from_checkpoint", "latest")
    assert train(kind, tmp_path / "run", *flags, *again) == 0
    assert all(torch.equal(value, stored(run)[name]) for name, value in stored(tmp_path / "run").items())
    one, other = (load_file(folder / WEIGHTS[kind]) for folder in (run, tmp_path / "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert records(run) == records(tmp_path / "run")


def test_a_run_of_before_these_flags_is_resumed(kind, train, tmp_path):
    assert train(kind, tmp_path, "--max_train_steps", 1, "--checkpointing_steps", 1) == 0
    told = json.loads((tmp_path / "arguments.json").read_text())
    older = {name: value for name, value in told.items() if not name.startswith("condition_") and name != "condition"}
    (tmp_path / "arguments.json").write_text(json.dumps(older))
    flags = ("--max_train_steps", 2, "--checkpointing_steps", 1, "--resume_from_checkpoint", "latest")
    assert train(kind, tmp_path, *flags) == 0


def test_every_weight_has_a_gradient_in_every_step(kind, tiny_pipeline, faces):
    """DDP stops otherwise: with all conditions there, with one of them in no picture, and with none."""
    trainer = make_trainer(kind, tiny_pipeline)
    batch = collate([look(trainer, faces, row) for row in (0, 1)])
    for names in (("attributes", "semantic_mask"), ("attributes",), ()):
        some = {what: {name: batch[what][name] for name in names} for what in ("conditions", "present")}
        trainer.trained.zero_grad(set_to_none=True)
        noisy = torch.randn(2, 4, 8, 8)
        trainer.predict(trainer.trained, {**batch, **some}, noisy, torch.tensor([1, 2])).square().sum().backward()
        trained = {n: p for n, p in trainer.trained.named_parameters() if p.requires_grad}
        assert [name for name, parameter in trained.items() if parameter.grad is None] == []


# Drawing


@torch.no_grad()
def test_the_loaded_pipeline_predicts_what_was_trained_and_without_a_condition_by_its_token(
    kind, run, tiny_pipeline, faces
):
    trainer = make_trainer(kind, tiny_pipeline)
    trainer.load(run)
    trainer.trained.eval()
    example, noisy = look(trainer, faces, 2), torch.randn(1, 4, 8, 8)
    batch = collate([example])
    ask = Asker(load(run))
    answers = []
    for names in (("attributes", "semantic_mask"), ("attributes",), ("semantic_mask",), ()):
        dropped = {name: torch.tensor([name in names]) for name in example.conditions}
        by_trainer = trainer.predict(trainer.trained, {**batch, "present": dropped}, noisy, torch.tensor([300]))
        some = {name: value for name, value in example.conditions.items() if name in names}
        by_pipeline = ask(noisy, 300, "a person", replace(example, conditions=some))
        assert torch.allclose(by_trainer, by_pipeline, atol=1e-5)
        answers.append(by_pipeline)
    gaps = [(one - other).abs().max() for k, one in enumerate(answers) for other in answers[:k]]
    assert min(gaps) > 1e-5, "each condition reaches the answer"


def test_an_evaluation_draws_with_the_conditions_of_its_rows(kind, run, faces, tmp_path):
    sampling = Sampling(steps=2, resolution=64)
    asked = Asked([f"run={run}"], tmp_path / "out", data=faces, sampling=sampling, number=2, metrics=(), photographs=0)
    evaluation = Evaluation(asked, load_plugins())
    evaluation.run("a test")
    pipeline, case = load(run), evaluation.cases[0]
    drawn = np.asarray(Image.open(next((tmp_path / "out" / "pictures" / "run" / "0").glob(f"{case.key}*.png"))))
    example = evaluation.photographs.look(case.row)
    options = {"num_inference_steps": 2, "height": 64, "width": 64}
    if kind == "controlnet":
        options["image"] = example.conditioning_pixel_values[None]
    alone = []
    for given in ([example.conditions], []):
        set_sampler(pipeline, "dpm++")
        pipeline.beside_text.given = given
        alone.append(np.asarray(pipeline([case.text], generator=[noise_of(0, case, 0)], **options).images[0]))
    assert np.array_equal(drawn, alone[0])
    assert not np.array_equal(drawn, alone[1])


@torch.no_grad()
def test_guidance_leads_away_from_the_empty_prompt_and_absent_conditions(tiny_pipeline):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
    plain = pipeline.encode_prompt("a person", CPU, 2, True)
    conditions = Conditions(width=16, conditions=[("attributes", {"hidden": 4})])
    beside = BesideText(pipeline, conditions)
    value = torch.ones(40)
    beside.given = [{"attributes": value, "unknown": value}]
    text, negative = pipeline.encode_prompt("a person", CPU, 2, True)
    assert torch.equal(text[:, :-1], plain[0])
    assert torch.equal(negative[:, :-1], plain[1])
    assert torch.equal(text[:, -1], conditions.encoders["attributes"](value[None])[0].expand(2, -1))
    assert torch.equal(negative[:, -1], conditions.absent["attributes"].expand(2, -1))
    beside.given = [{}] * 3
    with pytest.raises(DataError, match="conditions of 3 pictures came for 2"):
        pipeline.encode_prompt("a person", CPU, 2, True)
    with pytest.raises(MldmError, match="tokens of conditions are 8 wide, the pipeline reads 16"):
        BesideText(pipeline, Conditions(width=8, conditions=[]))


def sample(run, out, *words):
    words = ("sample", run, "--prompt", "a person", "--steps", 1, "--out", out, *words)
    return CliRunner().invoke(mldm, [str(word) for word in words])


def test_a_prompt_alone_is_drawn_with_absent_conditions_or_refused(train, run, kind, tmp_path):
    hints = ("--conditioning", "none") if kind == "controlnet" else ()
    for name, share in (("dropped", 0.3), ("never", 0)):
        flags = (*BOTH, "--condition_dropout", share, "--max_train_steps", 1, *hints)
        assert train(kind, tmp_path / name, *flags) == 0
    done = sample(tmp_path / "dropped", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "conditions absent" in done.output
    refused = sample(tmp_path / "never", tmp_path / "out")
    assert refused.exit_code == 1
    assert "was trained with conditions in every picture (--condition_dropout 0)" in refused.output
    exported = sample(tmp_path / "dropped", tmp_path / "out", "--push-to-hub", "somebody/something")
    assert "which no other program reads: it is not exported or uploaded" in exported.output


# What is refused


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--condition", "atributes"), "unknown condition 'atributes': did you mean 'attributes'"),
        (("--condition_dropout", "0.1"), "drops nothing without --condition"),
        (("--condition", "attributes", "--condition_option", "attributes.hiden=3"), "hiden"),
        (
            ("--condition", "semantic_mask", "--resolution", 72),
            "semantic_mask: resolution is 72, expected a multiple of 32",
        ),
    ],
)
def test_what_the_flags_cannot_be(kind, train, the_error, tmp_path, flags, message):
    assert train(kind, tmp_path / "run", *flags) == 1
    assert message in the_error()


def test_a_data_set_without_the_columns_is_refused(kind, train, tiny_data, the_error, tmp_path):
    assert train(kind, tmp_path / "run", *BOTH, "--train_data_dir", tiny_data) == 1
    assert "has no column 'attributes', which the condition attributes is read from" in the_error()


def test_a_controlnet_starts_from_one_with_its_conditions_or_says_so(train, the_error, tmp_path):
    assert train("controlnet", tmp_path / "first", *BOTH, "--max_train_steps", 1) == 0
    start = ("--controlnet_model_name_or_path", tmp_path / "first", "--max_train_steps", 1)
    assert train("controlnet", tmp_path / "second", *start, *BOTH, "--learning_rate", 0) == 0
    first, second = stored(tmp_path / "first"), stored(tmp_path / "second")
    assert all(torch.equal(first[n], second[n]) for n in first if "running" not in n and "num_batches" not in n)
    assert train("controlnet", tmp_path / "third", *start) == 1
    assert "has encoders of conditions: give the --condition that it was trained with" in the_error()
