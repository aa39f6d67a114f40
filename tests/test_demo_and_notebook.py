"""The demo and docs/notebook.ipynb with few steps, trained in this process: they train the same, the demo first.

The notebook's cells are executed in order; `!` lines are what a shell would get. The trainings take two steps
instead of 120, and draw two pictures.
"""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from PIL import Image
from quick_person import Quick
from weights_entries import needs_weights

from mldm_plugin.cli import main
from mldm_plugin.demo import __main__ as demo
from mldm_plugin.people_mini import unseen

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
RUN, STEPS = Path("runs/notebook"), "STEPS = 120"
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
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0 or arguments == ["doctor"], result.output
    printed.append(result.output)


def show(path):
    """The file's name, if it is a picture."""
    with Image.open(path) as picture:
        picture.verify()
    return Path(path).name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("likeness")


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("mldm_plugin.reproduce.scales.Person", Quick)
    monkeypatch.setattr(demo, "Person", Quick)


@needs_weights("alexnet", "vgg16", "dlib_resnet", "mtcnn")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' scheduler
def test_the_demo_trains_three_times_and_compares(
    here, trainer_here, commands_here, quick_evaluation, monkeypatch, capfd
):
    shutil.rmtree(RUN, ignore_errors=True)  # where the notebook came first, it has trained them
    monkeypatch.setattr(demo, "HELD_OUT", unseen.HELD_OUT[:2])
    monkeypatch.setattr(demo, "processes_here", lambda: 1)
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(RUN), "--steps", "2"])
    assert demo.main() == 0
    told, logged = capfd.readouterr()
    assert told.count("$ accelerate launch") == 2
    assert told.count("--loss-plugin mldm --preset demo") == 2
    assert logged.count("reaches the network") == 2
    assert "alexnet from " in logged
    assert "(CC0)" in logged
    assert "weights: random" not in logged
    results = json.loads((RUN / "report" / "metrics.json").read_text())
    assert [model["name"] for model in results["models"]] == ["masked_ldm", "plain", "plain_same_time"]
    faces = next(metric for metric in results["metrics"] if metric["name"] == "one_step_face")
    assert all(0 < model["value"] < 2 for model in faces["models"].values())
    assert f"{faces['models']['plain']['value']:.3f}" in told
    steps = int(told.partition("as Masked LDM took: ")[2].partition(" steps")[0])
    assert trainer_here[2][trainer_here[2].index("--max_train_steps") + 1] == str(steps)
    assert "held out" not in told + logged, "the photographs are a split of their own"
    assert (RUN / "report" / "report.html").stat().st_size > 50_000
    places = {words[words.index("--train_data_dir") + 1] for words in trainer_here}
    assert places == {str(RUN / "data" / "train")}, "this trainer reads every picture below its folder"
    seen = {path.name for path in (RUN / "data" / "train").glob("*.png")}
    assert not seen & {path.name for path in (RUN / "data" / "validation").glob("*.png")}
    del trainer_here[:]
    before = (RUN / "report" / "metrics.json").read_text()
    assert demo.main() == 0
    assert not trainer_here, "what is trained is not trained again"
    again = json.loads((RUN / "report" / "metrics.json").read_text())
    assert again["metrics"] == json.loads(before)["metrics"]


@needs_weights("alexnet", "vgg16", "dlib_resnet", "faceres", "mtcnn")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' scheduler
def test_every_cell_runs(here, monkeypatch, capsys, trainer_here, commands_here, quick_evaluation):
    is_trained = RUN.exists()
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
    assert namespace["RUN"] == RUN
    assert len(trainer_here) == (0 if is_trained else 3)
    assert shown == ["gallery.png"]
    assert "10 photographs are learnt, 9 are kept back" in (told := capsys.readouterr().out)
    assert "against the first: plain " in told
    assert "identity {'masked_ldm': " in told


def test_it_holds_no_output_of_some_machine():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert not [cell for cell in notebook["cells"] if cell.get("outputs") or cell.get("execution_count")]
    assert NOTEBOOK.stat().st_size < 20_000
