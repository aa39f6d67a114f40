"""Trainers that have a door of their own are known by what they import, and the refusal names their recipe."""

from pathlib import Path

import pytest

from mldm_plugin.attach import launcher, trainers
from mldm_plugin.attach.edits import ScriptError

RECIPES = Path(__file__).parents[1] / "docs" / "recipes"


@pytest.mark.parametrize("trainer", trainers.OTHERS, ids=lambda t: t.name)
def test_a_script_is_known_by_its_imports_and_points_to_a_recipe_that_is_there(trainer, tmp_path):
    script = tmp_path / "anything.py"
    for package in trainer.packages:
        text = f"import os\n\ndef main():\n    from {package}.some import thing\n"
        assert trainers.trainer_of(text) is trainer
        with pytest.raises(ScriptError, match=f"a script of {trainer.name}.*docs/recipes/{trainer.recipe}"):
            launcher.splice_all(text, script)
    assert (RECIPES / trainer.recipe).is_file()


def test_other_scripts_are_read_as_before():
    assert trainers.trainer_of("import torch\nfrom library import train_util\nimport modules_of_mine\n") is None
    assert trainers.trainer_of("def broken(:\n") is None


def test_a_script_of_onetrainer_outside_a_checkout_is_told_so(tmp_path, capsys):
    script = tmp_path / "train.py"
    script.write_text("from modules.util import create\n", encoding="utf-8")
    assert launcher.main([str(script), "--preset", "lora-sd15", "--set", "losses={}"]) == 1
    assert "run it from its checkout" in capsys.readouterr().err
