"""docs/notebook.ipynb: its cells are executed in order, in an empty folder.

`!` lines are what a shell would get. The trainings, minutes long, are the demo's, which test_demo_run.py runs: here
their commands are printed, and a report of the same form lies where they would leave one.
"""

import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from evaluation_results import make_results
from PIL import Image

from mldm_plugin.cli import main
from mldm_plugin.evaluation.report import write_report

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
TRAINING = ["reproduce", "likeness"]
pytest.importorskip("openpeople")


def code_cells():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def filled(line, namespace):
    """A shell line with {names} replaced, as IPython does."""
    return re.sub(r"\{(\w+)\}", lambda name: str(namespace[name[1]]), line)


def run_shell(line, printed):
    name, *arguments = shlex.split(line)
    if name == "pip":
        extras = re.findall(r"\[(\w+)\]", line)
        assert arguments[0] == "install"
        assert all(f"\n{extra} = " in (ROOT / "pyproject.toml").read_text(encoding="utf-8") for extra in extras)
        return
    assert name == "mldm", line
    if arguments[:2] == TRAINING and "--dry-run" not in arguments:
        arguments.append("--dry-run")
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0 or arguments == ["doctor"], result.output
    printed.append(result.output)


def show(path):
    """The file's name, if it is a picture."""
    with Image.open(path) as picture:
        picture.verify()
    return Path(path).name


def test_every_cell_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shown, printed, namespace = [], [], {"__name__": "notebook"}
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.version_info = (9, 0)  # matplotlib asks
    display.Image, display.display = show, shown.append
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    for cell in code_cells():
        if cell.startswith("!"):
            for line in cell.splitlines():
                run_shell(filled(line.removeprefix("!"), namespace), printed)
        else:
            exec(compile(cell, "notebook", "exec"), namespace)
        if "RUN" in namespace and not (report := Path(namespace["RUN"]) / "report").exists():
            report.mkdir(parents=True)
            results = make_results(report, models=("masked_ldm", "plain", "plain_same_time"), cases=2)
            (report / "metrics.json").write_text(json.dumps(results), encoding="utf-8")
            write_report(results, report)
    trainings = [output for output in printed if "train" in output and "--max_train_steps 120" in output]
    assert len(trainings) == 2  # shown, then run
    assert all(output.count("accelerate launch") == 3 for output in trainings)
    assert all(str(namespace["RUN"] / "runs" / "masked_ldm-s0") in output for output in trainings)
    assert shown == ["gallery.png"]
    assert "10 photographs are learnt, 9 are kept back" in (told := capsys.readouterr().out)
    assert "against the first: plain " in told


def test_it_holds_no_output_of_some_machine():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert not [cell for cell in notebook["cells"] if cell.get("outputs") or cell.get("execution_count")]
    assert NOTEBOOK.stat().st_size < 20_000
