"""The pieces of the demo; test_demo_and_notebook.py runs it."""

import forked
import pytest

from mldm_plugin.demo import __main__ as demo
from mldm_plugin.errors import WeightsError
from mldm_plugin.reproduce.recipes import RECIPES
from mldm_plugin.reproduce.run import Reproduction
from mldm_plugin.reproduce.scales import Person

pytest.importorskip("openpeople")


def test_the_proof_is_told_as_the_training_told_it(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "2026 INFO x\nStart-up proof (convex mix)\n  face 0.5 reaches\n  decode resembles\n2026 INFO y\n  z\n"
    )
    assert demo.proof_in(log) == ["Start-up proof (convex mix)", "  face 0.5 reaches", "  decode resembles"]
    log.write_text("nothing\n")
    assert demo.proof_in(log) == []


def test_without_the_judge_the_network_of_the_loss_judges_and_that_is_said(monkeypatch, capsys):
    def fetch(name):
        if name == demo.JUDGE:
            raise WeightsError("npm is not here")

    monkeypatch.setattr("mldm_plugin.perceptual.weights.fetch", fetch)
    assert demo.fetch_weights() == "identity_dlib"
    assert "judged by the network that Masked LDM trains on" in capsys.readouterr().out
    monkeypatch.setattr("mldm_plugin.perceptual.weights.fetch", lambda name: None)
    assert demo.fetch_weights() == "identity"


def test_the_table_says_the_first_against_each_other(tmp_path, monkeypatch, capsys):
    """What the evaluation says of the others against the first, turned round."""
    gaps = {"plain": {"low": -0.2, "high": -0.1}, "plain_same_time": {"low": None, "high": None}}
    models = {name: {"value": 0.5} for name in ("masked_ldm", *gaps)}
    metrics = [{"name": name, "models": models, "differences": gaps} for name in demo.COLUMNS]
    monkeypatch.setattr(demo, "seconds_a_step", lambda folder: 2.0)
    monkeypatch.setattr(Reproduction, "mean_seconds", lambda self, arm: 2.0 if arm.name == "masked_ldm" else 1.0)
    one = Reproduction(RECIPES["likeness"], Person(tmp_path, 30, "P009"), 1, 8)
    demo.print_table(one, {"metrics": metrics})
    told = capsys.readouterr().out
    assert told.count("+0.100 to +0.200") == len(demo.COLUMNS)
    assert "masked_ldm − plain" in told
    rows = [line.split()[:3] for line in told.splitlines() if line.startswith("   ") and "0.500" in line]
    assert rows == [["masked_ldm", "30", "1.0"], ["plain", "30", "1.0"], ["plain_same_time", "60", "2.0"]]


def test_its_command_line_is_a_program_that_takes_it(tmp_path):
    """What `accelerate launch` starts, up to what the trainer says of a folder without pictures."""
    done = forked.run(*Person(tmp_path, 2, "P009").training(RECIPES["likeness"].arms[0], 0, 2).words)
    assert done.returncode == 1
    assert "mldm: " in done.stderr
    assert str(tmp_path / "data") in done.stderr


def test_the_commands_differ_in_the_losses_and_the_length_alone(tmp_path):
    one = Person(tmp_path, 7, "P009")
    masked, plain, longer = (
        one.training(arm, 0, n) for arm, n in zip(RECIPES["likeness"].arms, (7, 7, 9), strict=True)
    )
    assert [word for word in masked.words if word not in plain.words] == [str(masked.folder)]
    assert [word for word in plain.words if word not in masked.words] == ["--set", "losses={}", str(plain.folder)]
    assert [word for word in longer.words if word not in plain.words] == ["9", str(longer.folder)]
