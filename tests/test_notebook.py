"""docs/notebook.ipynb: its cells are executed in order, in an empty folder.

`!` lines are what a shell would get. The trainings take two steps instead of 120, and draw two pictures.
"""

import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from PIL import Image
from quick_person import Quick
from weights_entries import needs_weights

from mldm_plugin.cli import main

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
STEPS = "STEPS = 120"
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
    if arguments[0] == "reproduce":
        arguments += ["--prompts", "2"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0 or arguments == ["doctor"], result.output
    printed.append(result.output)


def show(path):
    """The file's name, if it is a picture."""
    with Image.open(path) as picture:
        picture.verify()
    return Path(path).name


@needs_weights("alexnet", "vgg16", "dlib_resnet", "faceres", "mtcnn")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' scheduler
def test_every_cell_runs(tmp_path, monkeypatch, capsys, trainer_here, commands_here, quick_evaluation):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mldm_plugin.reproduce.scales.Person", Quick)
    monkeypatch.setattr("mldm_plugin.reproduce.commands.processes_here", lambda: 1)
    shown, printed, namespace = [], [], {"__name__": "notebook"}
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.version_info = (9, 0)  # matplotlib asks
    display.Image, display.display = show, shown.append
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    cells = code_cells()
    assert sum(STEPS in cell for cell in cells) == 1
    for cell in cells:
        if cell.startswith("!"):
            for line in cell.splitlines():
                run_shell(filled(line.removeprefix("!"), namespace), printed)
        else:
            exec(compile(cell.replace(STEPS, "STEPS = 2"), "notebook", "exec"), namespace)
    [plan] = [output for output in printed if output.count("accelerate launch") == 3]
    assert plan.count("as many steps as masked_ldm has time for") == 1
    assert str(namespace["RUN"] / "runs" / "masked_ldm-s0") in plan
    assert len(trainer_here) == 3
    assert shown == ["gallery.png"]
    assert "10 photographs are learnt, 9 are kept back" in (told := capsys.readouterr().out)
    assert "against the first: plain " in told
    assert "identity {'masked_ldm': " in told


def test_it_holds_no_output_of_some_machine():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert not [cell for cell in notebook["cells"] if cell.get("outputs") or cell.get("execution_count")]
    assert NOTEBOOK.stat().st_size < 20_000
