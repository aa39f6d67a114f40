"""Models that draw from conditions, beside each other: what they are given, what is measured, what is said."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_conditional import ATTRIBUTES, MASK, SIDE, make_conditional, write_conditional, write_faces, write_judges

from mldm_plugin.conditions.celeba import COLOURS
from mldm_plugin.conditions.conditions import Conditions
from mldm_plugin.data.batch import Example
from mldm_plugin.errors import DataError, MldmError
from mldm_plugin.evaluation.cases import open_photographs
from mldm_plugin.evaluation.conditional import ConditionAsker, as_picture, coloured, encoders_of, in_words
from mldm_plugin.evaluation.evaluate import Asked, Evaluation, Sampling, evaluate
from mldm_plugin.evaluation.models import parse_models
from mldm_plugin.evaluation.sampling import noise_of
from mldm_plugin.plugins import load_plugins

PLUGIN = str(Path(__file__).parent / "brightness.py")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return write_faces(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    return write_judges(tmp_path_factory.mktemp("judges"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    top = tmp_path_factory.mktemp("models")
    kinds = {"multi": (ATTRIBUTES, MASK), "attributes": (ATTRIBUTES,), "nothing": ()}
    return {name: write_conditional(top / name, conditions) for name, conditions in kinds.items()}


def run(out, models, data, **options):
    metrics = options.pop("metrics", ("brightness", "attribute_accuracy", "mask_accuracy", "mask_miou"))
    sampling = options.pop("sampling", Sampling(steps=2))
    given = {"photographs": 0, "metrics": metrics, "sampling": sampling, "data": data, **options}
    return evaluate(Asked([f"{n}={p}" for n, p in models.items()], out, **given), load_plugins([PLUGIN]))


@pytest.fixture(scope="module")
def done(models, faces, judges, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation") / "out"
    return out, run(out, {**models, "again": models["multi"]}, faces, judges=judges)


def drawn(out, name):
    return {path.stem: np.asarray(Image.open(path)) for path in sorted((out / "pictures" / name / "0").glob("*.png"))}


# What is drawn


def test_a_folder_is_known_by_what_it_says(models, tiny_pipeline):
    kinds = {m.name: m.runs[0].kind for m in parse_models([f"a={models['multi']}", f"b={tiny_pipeline}"], None)}
    assert kinds == {"a": "conditional", "b": "pipeline"}


def test_each_model_gets_of_a_row_what_it_knows_and_the_same_noise(done, models, faces):
    from mldm_plugin.conditions.pipeline import ConditionalLDMPipeline
    from mldm_plugin.evaluation.models import set_sampler

    out, results = done
    assert len(results["cases"]) == 4
    photographs = open_photographs(faces, SIDE, conditions=encoders_of([str(models["multi"])]))
    for name, known in (("multi", ("attributes", "mask")), ("attributes", ("attributes",)), ("nothing", ())):
        pipeline = ConditionalLDMPipeline.from_pretrained(models[name])
        set_sampler(pipeline, "dpm++")
        pictures = drawn(out, name)
        for case in Evaluation(Asked([f"a={models[name]}"], out, data=faces), load_plugins()).cases:
            row = photographs.look(case.row).conditions
            given = {"attributes": row["attributes"], "mask": row["semantic_mask"]}
            wanted = pipeline(
                **{n: given[n] for n in known}, num_inference_steps=2, generator=[noise_of(0, case, 0)]
            ).images[0]
            assert np.array_equal(pictures[f"{case.key}-0"], np.asarray(wanted)), name
    assert all(np.array_equal(picture, drawn(out, "multi")[n]) for n, picture in drawn(out, "again").items())
    assert len({picture.tobytes() for picture in drawn(out, "multi").values()}) == 4


def test_what_is_drawn_is_not_drawn_again_but_for_other_data(done, models, faces, judges):
    out, results = done
    before = {path: path.stat().st_mtime_ns for path in out.glob("pictures/*/*/*.png")}
    again = run(out, {**models, "again": models["multi"]}, faces, judges=judges)
    assert again["metrics"] == results["metrics"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    how = json.loads((out / "pictures/multi/0/made.json").read_text())
    assert how["hints"], "the pictures depend on the data, whose conditions they are drawn from"
    assert "eta" not in how["sampling"], "what was drawn before there was an eta is still as it was"


def test_noise_in_each_step_is_drawn_from_the_case_too(models, faces, tmp_path):
    still, moved = ({"multi": models["multi"]} for _ in range(2))
    ddim = {"steps": 3, "sampler": "ddim"}
    for name, which, eta in (("a", still, 0.0), ("b", moved, 1.0), ("c", moved, 1.0)):
        run(tmp_path / name, which, faces, metrics=("brightness",), sampling=Sampling(**ddim, eta=eta), number=2)
    a, b, c = (drawn(tmp_path / name, "multi") for name in "abc")
    assert all(not np.array_equal(a[name], b[name]) and np.array_equal(b[name], c[name]) for name in a)
    with pytest.raises(MldmError, match="--eta 1 says nothing to DPMSolverMultistepScheduler: give --sampler ddim"):
        run(tmp_path / "d", still, faces, metrics=("brightness",), sampling=Sampling(steps=2, eta=1.0))


# What is refused or said


def test_data_without_a_condition_is_refused_in_a_line(models, tiny_data, tmp_path):
    with pytest.raises(DataError, match="no column 'attributes', which the condition attributes is read from"):
        run(tmp_path / "out", {"multi": models["multi"]}, tiny_data)


def test_another_size_is_refused_in_a_line(models, faces, tmp_path):
    with pytest.raises(MldmError, match="draws 64 pixels and no other size, asked were 32: leave out --resolution"):
        run(tmp_path / "a", {"a": models["attributes"]}, faces, sampling=Sampling(steps=2, resolution=32))
    with pytest.raises(MldmError, match=r"the mask is \(1, 32, 32\), expected \(1, 64, 64\)"):
        run(tmp_path / "b", {"multi": models["multi"]}, faces, sampling=Sampling(steps=2, resolution=32))


def test_cases_without_conditions_are_told_of(models, faces, tmp_path):
    (tmp_path / "prompts.txt").write_text("a face\nanother face\n")
    results = run(
        tmp_path / "out",
        {"multi": models["multi"]},
        None,
        prompts_from=str(tmp_path / "prompts.txt"),
        metrics=("brightness", "attribute_accuracy"),
    )
    assert "multi drew 2 of 2 pictures without conditions." in dict(results["warnings"])
    assert results["missing"]["attribute_accuracy"] == "it needs --judges, what `mldm faces judges` trains"


def test_guidance_away_from_what_was_never_learnt_is_told_of(faces, tmp_path):
    stiff, told = write_conditional(tmp_path / "stiff", (ATTRIBUTES,)), []
    for share, guidance in ((0, 3.0), (0, None), (0.1, 3.0)):
        (stiff / "arguments.json").write_text(json.dumps({"condition_dropout": share}))
        options = {"metrics": ("brightness",), "sampling": Sampling(steps=1, guidance=guidance), "number": 1}
        results = run(tmp_path / f"{share}-{guidance}", {"stiff": stiff}, faces, **options)
        told.append("stiff was guided away from what it never learnt." in dict(results["warnings"]))
    assert told == [True, False, False]


# What is measured


def test_what_is_asked_for_is_judged_and_by_part(done):
    out, results = done
    metrics = {metric["name"]: metric for metric in results["metrics"]}
    assert metrics.keys() == {"brightness", "attribute_accuracy", "mask_accuracy", "mask_miou"}
    parts = results["parts"]
    assert parts.keys() == {"attribute_accuracy", "mask_miou"}
    for name, table in parts.items():
        for model in ("multi", "attributes", "nothing"):
            assert table["all"][model] == pytest.approx(metrics[name]["models"][model]["value"])
        singly = [values["multi"] for part, values in table.items() if part != "all"]
        if name == "attribute_accuracy":
            assert np.mean(singly) == pytest.approx(table["all"]["multi"])
        assert table["all"]["multi"] == table["all"]["again"]
    lines = (out / "parts.csv").read_text().splitlines()
    assert lines[0] == "metric,part,of,value"
    assert any(line.startswith("mask_miou,skin,photographs,") for line in lines)


def test_what_is_asked_for_is_shown(done, faces):
    out, results = done
    key = results["cases"][0]["key"]
    shown = results["conditions_of_cases"][key]
    rows = [json.loads(line) for line in (faces / "validation/metadata.jsonl").read_text().splitlines()]
    so = [name.replace("_", " ") for name, yes in rows[results["cases"][0]["row"]]["attributes"].items() if yes]
    assert shown["words"] == ", ".join(so)
    mask = np.asarray(Image.open(out / shown["path"]))
    assert mask.shape == (SIDE, SIDE, 3)
    assert {tuple(colour) for colour in mask.reshape(-1, 3)} <= set(COLOURS)
    page = (out / "report.html").read_text()
    assert shown["words"] in page


def test_one_step_is_asked_with_the_photographs_conditions():
    pipeline = make_conditional()
    given = {"attributes": torch.ones(40), "semantic_mask": torch.full((1, SIDE, SIDE), 3, dtype=torch.uint8)}
    example = Example(torch.zeros(3, SIDE, SIDE), conditions={**given, "of_others": torch.zeros(2)})
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    own = pipeline.scheduler
    found = ConditionAsker(pipeline)(noisy, 321, "says nothing", example)
    with torch.no_grad():
        tokens = pipeline.conditions({name: value[None] for name, value in given.items()})
        assert torch.equal(found, pipeline.unet(noisy, torch.tensor(321), tokens).sample)
        assert not torch.equal(found, pipeline.unet(noisy, torch.tensor(321), pipeline.conditions({})).sample)
    assert pipeline.scheduler is own


# Words and colours


def test_conditions_in_words_and_colours():
    encoders = dict(Conditions(width=8, conditions=[("attributes", {"names": ["Is_Tall", "Smiling"]}), MASK]).each())
    labels = torch.arange(SIDE * SIDE).reshape(1, SIDE, SIDE) % 19
    given = {"attributes": torch.tensor([1.0, 0.0]), "semantic_mask": labels.to(torch.uint8)}
    assert in_words(given, encoders) == "Is Tall"
    assert in_words({"attributes": torch.zeros(2)}, encoders) == "none of the 2 attributes"
    assert as_picture(given, encoders).getpixel((18, 0)) == COLOURS[18]
    assert as_picture({"attributes": torch.zeros(2)}, encoders) is None
    assert len(set(COLOURS)) == 19
    assert coloured(torch.tensor([[19, 38]])).getpixel((1, 0)) == COLOURS[0], "they begin again"
