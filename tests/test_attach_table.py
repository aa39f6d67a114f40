"""docs/attach_table.md is what docs/attach_table.py makes of the scripts and of what real runs of them gave."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers_more import MASKED, MORE, REFUSED
from diffusers_scripts import EXAMPLES, SCRIPTS, needs_examples

SCRIPT = Path(__file__).parent.parent / "docs" / "attach_table.py"
SPEC = importlib.util.spec_from_file_location("attach_table", SCRIPT)
attach_table = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(attach_table)


@needs_examples
def test_the_page_is_up_to_date():
    page = attach_table.PAGE.read_text(encoding="utf-8")
    assert attach_table.PART.search(page)
    assert attach_table.regenerate(page, EXAMPLES) == page, f"run `python docs/attach_table.py {EXAMPLES} --write`"


@needs_examples
def test_every_script_whose_places_are_found_has_an_outcome():
    found = [p for p in attach_table.scripts(EXAMPLES) if attach_table.attaches(EXAMPLES / p) == "yes"]
    assert {script.path for script in (SCRIPTS | MORE).values()} < set(found)
    assert not set(found) - attach_table.runs().keys()


def test_the_outcomes_are_those_of_the_tests():
    """tests/test_attach_diffusers.py asserts them."""
    runs = attach_table.runs()
    assert {runs[script.path] for script in (SCRIPTS | MORE).values()} == {"trains"}
    added_to = "trains with combine: additive (its loss is of a part of each picture)"
    assert {runs[script.path] for script in MASKED.values()} == {added_to}
    for words, scripts in REFUSED.items():
        assert {runs[script.path] for script in scripts.values()} == {f"refused in the first step: {words}"}


def test_one_row_a_script_with_the_reason(tmp_path):
    folder = tmp_path / "some" / "where"
    folder.mkdir(parents=True)
    (folder / "train_a.py").write_text("import torch\naccelerator.backward(loss)\n", encoding="utf-8")
    (folder / "other.py").write_text("import torch\n", encoding="utf-8")
    attached = (Path(__file__).parent / "scripts" / "columns.py").read_text(encoding="utf-8")
    (tmp_path / "some" / "train_b.py").write_text(attached, encoding="utf-8")
    assert attach_table.scripts(tmp_path) == ["some/train_b.py", "some/where/train_a.py"]
    assert attach_table.attaches(tmp_path / "some" / "train_b.py") == "yes"
    reason = attach_table.attaches(folder / "train_a.py")
    assert reason.startswith("line 2, accelerator.backward") or reason.startswith("expected variables")
    assert str(tmp_path) not in reason
    assert "mldm-by-frame" not in reason


@pytest.mark.parametrize("arguments", [[], ["nowhere"], ["--write"]])
def test_a_wrong_call_says_how_it_is_called(arguments):
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("usage: ")


def test_outcomes_of_scripts_that_are_gone_are_named(tmp_path):
    with pytest.raises(SystemExit, match="train_controlnet"):
        attach_table.table(tmp_path)


def test_the_page_on_flux_names_the_scripts_that_were_seen_to_train():
    trains = {Path(path).name for path, outcome in attach_table.runs().items() if outcome == "trains"}
    page = (SCRIPT.parent / "how_to" / "flux.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(train_\w+\.py)`", page)) == {name for name in trains if "flux" in name}
