"""`--evaluate_steps`: training does not feel it, a resumed run goes on, and the best step is named honestly."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from run_trainer import CONTROLNET, LORA, command, launch, records, run_here, same_weights
from tiny_conditional import BOTH, SMALL
from tiny_data import add_conditions, write_data

import mldm_plugin.evaluation.one_step as one_step_module
import mldm_plugin.evaluation.results as results_module
import mldm_plugin.training.evaluating as evaluating_module
from mldm_plugin.cli import main as cli
from mldm_plugin.evaluation.judges import choose_judges, networks_in
from mldm_plugin.evaluation.models import Run
from mldm_plugin.evaluation.quantities import QUANTITIES
from mldm_plugin.perceptual.face_networks import FaceFeatures
from mldm_plugin.perceptual.lpips_network import LPIPSNetwork
from mldm_plugin.preset import load_preset
from mldm_plugin.training.evaluating import evaluating
from mldm_plugin.training.evaluation_file import EvaluationFile, forget_after

NAMES = [quantity.name for quantity in QUANTITIES]
AT = (100, 600)
LENGTH = ["--max_train_steps", 3, "--learning_rate", 0.01, "--checkpointing_steps", 2]

# What stands in for the pretrained networks in a process of its own.
RANDOM = """
import os
import mldm_plugin.evaluation.one_step as module
from mldm_plugin import hookimpl
from mldm_plugin.perceptual.face_networks import FaceFeatures
from mldm_plugin.perceptual.lpips_network import LPIPSNetwork
from mldm_plugin.training import evaluating
from mldm_plugin.training.evaluation_file import EvaluationFile
module.FaceFeatures = lambda name: FaceFeatures("dlib_resnet", "random")
module.LPIPSNetwork = lambda name: LPIPSNetwork("alex", "random")
module.TIMESTEPS = (100, 600)

class Told(EvaluationFile):
    def write(self):
        super().write()
        self.path.with_name("evaluated-by-" + os.environ["RANK"]).touch()

evaluating.EvaluationFile = Told

@hookimpl
def after_loss(step, report):
    pass
"""


@pytest.fixture(scope="module", autouse=True)
def random_networks():
    """Seeded random networks judge instead of pretrained ones, at two timesteps."""
    faces, trunk = FaceFeatures("dlib_resnet", "random"), LPIPSNetwork("alex", "random")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_step_module, "FaceFeatures", lambda name: faces)
        patch.setattr(one_step_module, "LPIPSNetwork", lambda name: trunk)
        patch.setattr(one_step_module, "TIMESTEPS", AT)
        patch.setattr(evaluating_module, "TIMESTEPS", AT)
        patch.setattr(results_module, "TIMESTEPS", AT)
        yield


@pytest.fixture(scope="module")
def held_out(make_data, tmp_path_factory):
    """Photographs, every other with a face."""
    return make_data(tmp_path_factory.mktemp("held_out") / "photographs", 5)


@pytest.fixture(scope="module")
def asked(held_out):
    """The flags of an evaluation of two photographs, one with a face."""
    return ["--evaluate_steps", 2, "--evaluate_data_dir", held_out, "--evaluate_photographs", 2]


@pytest.fixture(scope="module")
def controlnet_run(train, asked, tmp_path_factory):
    """The trainer, its flags, and its finished run."""
    run = tmp_path_factory.mktemp("controlnet") / "run"
    flags = [*LENGTH, "--gradient_accumulation_steps", 2, "--train_batch_size", 1]
    assert train(run, *flags, *asked) == 0
    return train, flags, run


@pytest.fixture(scope="module")
def lora_run(train_lora, asked, tmp_path_factory):
    """The same of the LoRA trainer, with all that could stand in the way."""
    folder = tmp_path_factory.mktemp("lora")
    flags = [*LENGTH, "--center_crop", "--cache_latents", "--latents_cache_dir", folder / "latents"]
    flags += ["--mixed_precision", "bf16", "--gradient_checkpointing"]
    assert train_lora(folder / "run", *flags, *asked) == 0
    return train_lora, flags, folder / "run"


@pytest.fixture(params=["controlnet_run", "lora_run"])
def finished(request):
    return request.getfixturevalue(request.param)


def found_in(run: Path) -> dict:
    return json.loads((run / "evaluation.json").read_text())


def test_training_does_not_feel_it(finished, tmp_path):
    trainer, flags, run = finished
    assert trainer(tmp_path / "plain", *flags) == 0
    assert same_weights(tmp_path / "plain", run)
    alone = [{k: v for k, v in r.items() if not k.startswith("evaluate/")} for r in records(run)]
    assert alone == records(tmp_path / "plain")


def test_each_record_and_the_file_say_the_same(finished, held_out):
    run, found = finished[2], found_in(finished[2])
    assert list(found["steps"]) == ["0", "2", "3"]  # before training, every second step, and the end
    assert [r["step"] for r in records(run) if "evaluate/one_step_error" in r] == [2, 3]
    assert [len(v) for v in found["steps"]["3"]["values"].values()] == [2] * len(NAMES)
    for record in records(run)[1:]:
        of_step = found["steps"][str(record["step"])]
        for name in NAMES:
            mean = statistics.mean(v for v in of_step["values"][name] if v is not None)
            assert record[f"evaluate/{name}"] == pytest.approx(mean)
            assert statistics.mean(of_step["by_timestep"][name]) == pytest.approx(mean)
    assert found["steps"]["0"]["values"] != found["steps"]["2"]["values"] != found["steps"]["3"]["values"]
    files = [line["file_name"] for line in map(json.loads, (held_out / "metadata.jsonl").read_text().splitlines())]
    whose = [hashlib.sha256((held_out / files[row]).read_bytes()).hexdigest() for row in found["photographs"]]
    assert found["digests"] == whose
    best = found["best"]
    assert best["criterion"] == "one_step_face"
    means = {s: statistics.mean(filter(None, of["values"]["one_step_face"])) for s, of in found["steps"].items()}
    assert best["step"] == int(min(means, key=means.get))
    assert (best["last"], set(best["by_quantity"])) == (3, set(NAMES))


def test_the_page_that_a_run_leaves_shows_it(finished):
    run, html = finished[2], (finished[2] / "report.html").read_text(encoding="utf-8")
    shown = json.loads(re.search(r'id="results">(.*?)</script>', html, re.DOTALL)[1])["validation"]
    assert shown["steps"] == [0, 2, 3]
    assert [quantity["name"] for quantity in shown["quantities"]] == NAMES
    for quantity in shown["quantities"]:
        logged = [record[f"evaluate/{quantity['name']}"] for record in records(run)[1:]]
        assert quantity["all"]["value"][1:] == pytest.approx(logged, rel=1e-5)
        assert list(quantity["ranges"]) == ["t100-199", "t400-699"]
    assert all(Path(picture["name"]).suffix == ".png" for picture in shown["pictures"].values())
    assert shown["pictures"]


def test_a_resumed_run_goes_on(finished, asked, tmp_path):
    trainer, flags, whole = finished
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    assert trainer(run, *flags, *asked, "--resume_from_checkpoint", "checkpoint-2") == 0
    assert found_in(run) == found_in(whole)
    assert records(run) == records(whole)
    assert same_weights(run, whole)
    assert trainer(run, *flags, "--resume_from_checkpoint", "checkpoint-2") == 0
    assert list(found_in(run)["steps"]) == ["0", "2"], "which this part of the run has not looked at"


def test_mldm_evaluate_ranks_the_checkpoints_by_the_same_numbers(controlnet_run, lora_run, held_out, tmp_path):
    """By a pipeline in float32, whatever the trainer's own path and precision are; the photographs are the run's."""
    for run, close in ((controlnet_run[2], 1e-4), (lora_run[2], 0.2)):
        out = tmp_path / run.parent.name
        flags = ["--checkpoints", str(run), "--photographs", "2", "--out", str(out)]
        result = CliRunner().invoke(cli, ["evaluate", *flags])
        assert result.exit_code == 0, result.output
        results = json.loads((out / "metrics.json").read_text())
        assert [model["name"] for model in results["models"]] == ["final", "step-2"]
        assert {row["name"] for row in results["metrics"]} == set(NAMES)
        assert not results["cases"]
        for row in results["metrics"]:
            for model, step in (("final", "3"), ("step-2", "2")):
                while_training = found_in(run)["steps"][step]["values"][row["name"]]
                assert row["values"][model] == pytest.approx(while_training, rel=close), (run, row["name"])
    means = {m: statistics.mean(filter(None, v)) for m, v in row["values"].items()}
    assert row["name"] == "one_step_face"
    assert f"by face distance of x̂₀, best first: {min(means, key=means.get)} " in result.output
    no_run = CliRunner().invoke(cli, ["evaluate", "--checkpoints", str(held_out), "--out", str(tmp_path / "x")])
    assert "has no checkpoint-N with a LoRA" in no_run.output


def test_a_digest_of_a_checkpoint_is_of_its_weights(lora_run, tmp_path):
    """So that what was measured of it is not taken for what a later run writes in its place."""
    checkpoint = tmp_path / "checkpoint-2"
    shutil.copytree(lora_run[2] / "checkpoint-2", checkpoint)
    before = Run(str(checkpoint), "lora").digest
    shutil.copy(lora_run[2] / "pytorch_lora_weights.safetensors", checkpoint)
    assert Run(str(checkpoint), "lora").digest != before


def test_networks_of_the_runs_losses_do_not_judge(controlnet_run):
    """Of a preset as the trainers have it; those of a run's folder are read from the same text."""
    assert networks_in(load_preset("mldm-open").dump()) == {"vgg16", "dlib_resnet"}
    assert networks_in(load_preset("mldm-open", ["losses.face.weight=0"]).dump()) == {"vgg16"}
    assert set(found_in(controlnet_run[2])["networks"]) == {choose_judges(()).face, choose_judges(()).trunk}


def test_two_processes_share_the_photographs(controlnet_run, asked, tiny_pipeline, tiny_data, tmp_path):
    (tmp_path / "random_networks.py").write_text(RANDOM)
    (tmp_path / "own.yaml").write_text("losses: {}\n")
    flags = ["--loss-plugin", tmp_path / "random_networks.py", "--preset", tmp_path / "own.yaml"]
    flags += [*asked, "--max_train_steps", 1]
    statuses, outputs = launch(command(tmp_path / "run", tiny_pipeline, tiny_data, *flags), tmp_path)
    assert statuses == [0, 0], outputs
    assert [path.name for path in (tmp_path / "run").glob("evaluated-by-*")] == ["evaluated-by-0"]
    together = found_in(tmp_path / "run")["steps"]["0"]["values"]
    alone = found_in(controlnet_run[2])["steps"]["0"]["values"]
    for name in NAMES:
        assert together[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-6), name


def test_the_last_words_name_a_step_and_its_checkpoint(tmp_path):
    file = EvaluationFile(tmp_path, {"photographs": [1, 2]})
    for step, faces in ((0, [0.5, 0.6, 0.7, 0.4]), (2, [0.1, 0.2, 0.3, 0.05]), (4, [0.2, 0.3, 0.4, 0.15])):
        values = {name: [1.0] * 4 for name in NAMES} | {"one_step_face": faces}
        file.add(step, {"values": values, "by_timestep": {}})
    words = "step 2 is the best by face distance of x̂₀ (0.163); not shown to be better than the last, step 4: -0.1"
    assert file.conclusion().startswith(words)
    assert "no checkpoint has its weights" in file.conclusion()
    (tmp_path / "checkpoint-2").mkdir()
    assert file.conclusion().endswith("checkpoint-2 has its weights")
    file.write()
    assert found_in(tmp_path)["best"]["checkpoint"] == "checkpoint-2"
    again = EvaluationFile(tmp_path, {"photographs": [1, 2]})
    again.take_up(2)
    assert found_in(tmp_path)["best"]["last"] == 2
    other = EvaluationFile(tmp_path, {"photographs": [1, 3]})
    other.take_up(2)
    assert other.steps == {}  # the photographs are others, so nothing can be compared
    file.add(6, {"values": {name: [float("nan")] * 4 for name in NAMES}, "by_timestep": {}})
    assert file.conclusion().startswith("step 2 is the best by face distance of x̂₀ (0.163); step 6, the last, was not")


def test_a_file_that_is_damaged_or_of_other_photographs_is_begun_anew(tmp_path, caplog):
    found = {"values": {name: [1.0] * 2 for name in NAMES}, "by_timestep": {}}
    about = {"photographs": [1, 2], "digests": ["a", "b"]}
    file = EvaluationFile(tmp_path, about)
    file.add(2, found)
    whole = file.path.read_text()
    file.take_up(2)
    assert file.path.read_text() == whole
    others = EvaluationFile(tmp_path, {**about, "digests": ["a", "c"]})  # a row is another photograph now
    others.take_up(2)
    assert others.steps == {}
    for text in (whole[:50], "[" * 5000, "[]", '{"steps": {}}', whole.replace('"2": {', '"two": {')):
        file.path.write_text(text)
        file.take_up(2)
        assert file.steps == {}, text
        assert "begun anew" in caplog.records[-1].message


def test_a_run_that_goes_on_without_looking_forgets_what_came_later(tmp_path):
    found = {"values": {name: [1.0] * 2 for name in NAMES}, "by_timestep": {}}
    file = EvaluationFile(tmp_path, {"photographs": [1, 2]})
    for step in (0, 2, 4):
        file.add(step, found)
    forget_after(tmp_path, 4)
    assert list(found_in(tmp_path)["steps"]) == ["0", "2", "4"]
    forget_after(tmp_path, 3)
    assert list(found_in(tmp_path)["steps"]) == ["0", "2"]
    assert found_in(tmp_path)["best"]["last"] == 2
    assert found_in(tmp_path)["photographs"] == [1, 2]
    file.path.write_text("{")
    forget_after(tmp_path, 3)
    assert file.path.read_text() == "{"
    for _ in "12":
        forget_after(tmp_path, 0)
        assert not file.path.exists(), "a run that begins has looked at nothing"


def test_modes_are_put_back_whatever_happens():
    network = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.Dropout().eval()))
    before = [module.training for module in network.modules()]
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == before
    with contextlib.suppress(KeyError), evaluating(network):
        raise KeyError
    assert [module.training for module in network.modules()] == before == [True, True, True, False]


@pytest.mark.parametrize(
    ("trainer", "given", "words"),
    [
        (CONTROLNET, [], "has no split 'validation' or 'test' to evaluate on: put photographs"),
        (LORA, [], "trains on every picture of"),
        (LORA, ["--evaluate_data_dir", "{inside}"], "trains on every picture of"),
        (CONTROLNET, ["--evaluate_data_dir", "{no_hints}"], "has no hint: add the column 'conditioning_image'"),
        (CONTROLNET, ["--evaluate_data_dir", "{nowhere}"], "cannot be opened"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line_and_nothing_is_written(
    train, train_lora, make_data, tiny_data, tmp_path, the_error, trainer, given, words
):
    rows = {i: {"conditioning_image_file_name": None} for i in range(3)}
    places = {"inside": tiny_data / "validation", "nowhere": tmp_path / "nowhere"}
    places["no_hints"] = make_data(tmp_path / "no_hints", 3, rows=rows)
    flags = ["--evaluate_steps", 1, *(text.format(**places) for text in given)]
    assert (train if trainer == CONTROLNET else train_lora)(tmp_path / "run", *flags) == 1
    assert words in the_error()
    assert not (tmp_path / "run").exists()


def test_a_model_of_conditions_is_looked_at_without_captions(tiny_pipeline, tmp_path):
    from mldm_plugin.training.conditional_ldm import main

    faces, held_out = (write_data(tmp_path / n, rows=add_conditions(tmp_path / n)) for n in ("faces", "held_out"))
    flags = (*SMALL, *BOTH, "--evaluate_steps", 1, "--evaluate_data_dir", held_out, "--evaluate_photographs", 2)
    words = command(tmp_path / "run", tiny_pipeline, faces, *flags, "--max_train_steps", 2)
    assert run_here(main, words) == 0
    assert all(f"evaluate/{NAMES[0]}" in record for record in records(tmp_path / "run"))
    assert list(found_in(tmp_path / "run")["steps"]) == ["0", "1", "2"]


def test_weights_that_are_not_there_stop_the_run_before_it_begins(
    train, asked, tmp_path, weights_cache, monkeypatch, the_error
):
    monkeypatch.setattr(one_step_module, "FaceFeatures", FaceFeatures)
    monkeypatch.setenv("MLDM_WEIGHTS_SOURCE", "nowhere")
    assert train(tmp_path / "run", *asked) == 1
    assert "nowhere" in the_error()
    assert not (tmp_path / "run").exists()
