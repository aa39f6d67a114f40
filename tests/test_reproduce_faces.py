"""`mldm reproduce faces-table1` to `5`: the commands, and one table from end to end."""

import csv
import json

import pytest
from click.testing import CliRunner
from weights_entries import needs_weights

from mldm_plugin import load_preset
from mldm_plugin.cli import main
from mldm_plugin.cli.reproduce import FACES as NAMES
from mldm_plugin.errors import MldmError
from mldm_plugin.evaluation.models import parse_models
from mldm_plugin.plugins import load_plugins
from mldm_plugin.reproduce.faces import FacesMini, FacesPaper
from mldm_plugin.reproduce.recipes import RECIPES
from mldm_plugin.reproduce.run import Reproduction
from mldm_plugin.training.command_line import parse, resolve
from mldm_plugin.training.conditional_flags import ConditionalFlags


def flags_of(training):
    """As the trainer reads them, the preset's among them."""
    given = parse(ConditionalFlags, training.words[2:])
    return resolve(ConditionalFlags, given, load_preset(given["preset"]).training)


@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_every_arm_is_a_training_of_its_preset(scale, tmp_path):
    made = FacesMini(tmp_path) if scale == "mini" else FacesPaper(tmp_path, tmp_path / "CelebAMask-HQ")
    assert {name for name in RECIPES if RECIPES[name].family} == set(NAMES)
    arms = {arm.name: arm for name in NAMES for arm in RECIPES[name].arms}
    conditions = {"plain": None, "p2": None, "attributes": ["attributes"], "mask": ["semantic_mask"]}
    conditions |= {"mask_pooled": ["semantic_mask"], "multi": ["attributes", "semantic_mask"]}
    assert arms.keys() == conditions.keys()
    for name, arm in arms.items():
        flags = flags_of(made.training(arm, 3, made.steps))
        assert (flags.condition, flags.seed, flags.use_ema) == (conditions[name], 3, True)
        assert any("pooled=true" in option for option in flags.condition_option or ()) == (name == "mask_pooled")
        base = load_preset(flags.preset, flags.set or (), plugins=load_plugins()).base
        p2 = scale == "paper" or not flags.condition
        assert (base.weighting, base.options.get("gamma")) == (
            ("p2", 0 if name == "plain" else 0.5) if p2 else ("none", None)
        )
        assert flags.prediction_type == ("v_prediction" if scale == "mini" else "epsilon")
        if scale == "paper":
            assert (flags.resolution, flags.num_train_epochs, flags.max_train_steps) == (256, 600, None)
            assert flags.checkpointing_steps == 600 * 521 // 3
        else:
            assert (flags.resolution, flags.max_train_steps, flags.checkpointing_steps) == (128, 8000, 2666)


def test_the_same_arm_of_two_tables_is_one_training(tmp_path):
    """So a table that follows another trains what is new in it alone."""
    made = FacesMini(tmp_path)
    seen = {}
    for name in NAMES:
        for arm in RECIPES[name].arms:
            training = made.training(arm, 0, None)
            assert seen.setdefault(training.folder, training) == training


def test_a_finished_run_of_another_preset_is_not_taken_for_done(tmp_path):
    one = Reproduction(RECIPES["faces-table1"], FacesMini(tmp_path), 1, 1)
    plain = one.scale.training(RECIPES["faces-table1"].arms[0], 0, None)
    flags = flags_of(plain)
    dumped = load_preset(flags.preset, flags.set, plugins=load_plugins()).dump()
    plain.folder.mkdir(parents=True)
    (plain.folder / "model_index.json").touch()
    younger = dumped.replace("estimate: one_step\n", "")  # written when there was no such setting
    others = dumped + "  train_controlnet: {resolution: 512}\n"  # of another trainer
    overridden = dumped.replace("resolution: 128", "resolution: 64")  # by a flag of the command
    assert len({dumped, younger, others, overridden}) == 4
    for alike in (dumped, younger, others, overridden):
        (plain.folder / "preset.yaml").write_text(alike)
        one.check_done()
    for wrong, change in (
        (dumped.replace("learning_rate: 0.001", "learning_rate: 0.1"), "learning_rate was 0.1, is 0.001"),
        (dumped.replace("gamma: 0.0", "gamma: 0.5"), r"base\.gamma was 0\.5, is 0\.0"),
    ):
        assert wrong != dumped
        (plain.folder / "preset.yaml").write_text(wrong)
        with pytest.raises(MldmError, match=rf"plain-s0 was trained with other settings .*{change}.* Move it away"):
            one.check_done()
    (plain.folder / "preset.yaml").unlink()
    with pytest.raises(MldmError, match="plain-s0 was trained with other settings"):
        one.check_done()


def test_a_dry_run_says_what_it_takes():
    done = CliRunner().invoke(main, ["reproduce", "faces-table1", "--dry-run"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].startswith("mldm data synthetic --portraits --count 6000 --size 128")
    assert [line.split(" # ")[-1].strip() for line in lines[4:6]] == ["8000 steps of 16 pictures"] * 2
    assert lines[-1].count("checkpoint-5332/model") == 2
    small = CliRunner().invoke(main, ["reproduce", "faces-table1", "--side", "64", "--dry-run"]).output.splitlines()
    assert ["--size 64" in small[0], *("--side 64" in line for line in small[2:4])] == [True] * 3
    assert ["--resolution 64" in line for line in small[4:6]] == [True] * 2
    paper = ["reproduce", "faces-table5", "--scale", "paper", "--celeba", "there", "--dry-run"]
    output = CliRunner().invoke(main, paper).output
    assert output.startswith("mldm data celebamask-hq there --out runs/faces/data")
    assert "312600 steps of 48 pictures" in output
    assert "--prompts 5000 --sampler ddim --steps 500 --repetitions 10 --eta 1" in output
    for others in (paper, ["reproduce", "evidence", "--dry-run"]):
        refused = CliRunner().invoke(main, [*others, "--side", "64"])
        assert refused.exit_code == 1
        assert "--side is of the " in refused.output


@needs_weights("vgg16", "alexnet")
def test_two_tables_from_end_to_end_share_data_and_trainings(tmp_path, trainer_here, commands_here, quick_evaluation):
    """Tiny, so that nothing is learnt; what it says of real sizes is in docs/faces.md."""
    small = {"portraits": 18, "side": 64, "autoencoder_steps": 2, "judge_steps": 2, "sampler_steps": 2}
    scale = FacesMini(tmp_path, 3, **small)
    report = Reproduction(RECIPES["faces-table4"], scale, 1, 1, jobs=1).run()
    assert report == tmp_path / "faces-table4" / "report.html"
    results = json.loads((report.parent / "metrics.json").read_text())
    assert [model["name"] for model in results["models"]] == ["mask", "mask_pooled"]
    measured = {metric["name"] for metric in results["metrics"]}
    assert {"mask_miou", "mask_accuracy", "condition_diversity", "kd_vgg16"} <= measured
    assert results["sampling"]["repetitions"] == 10
    assert results["sampling"]["eta"] == 1
    with (report.parent / "parts.csv").open() as file:
        assert {row["metric"] for row in csv.DictReader(file)} == {"mask_miou"}
    # a stage of a training is a model of the evaluation
    step = tmp_path / "runs" / "mask-s0" / "checkpoint-1" / "model"
    assert parse_models([f"early={step}"], None)[0].runs[0].kind == "conditional"
    # another table goes on in the same folder, and another scale does not
    again = Reproduction(RECIPES["faces-table5"], scale, 1, 2)
    assert "2 done already" in again.what_is_trained()
    with pytest.raises(MldmError, match=r"was begun with .*portraits 18, now 6000"):
        Reproduction(RECIPES["faces-table5"], FacesMini(tmp_path, 3, side=64), 1, 2).run()
