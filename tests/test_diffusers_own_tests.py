"""diffusers' own tests of its examples, unmodified, each script going through our launcher with weights zero.

`MLDM_DIFFUSERS_EXAMPLES` names the examples of a checkout; what is asserted is what docs/attach_own_tests.yaml records.
A checkout of one test file, which is ours, shows how an outcome is found where there is no other.
"""

from __future__ import annotations

from pathlib import Path

import diffusers_own_tests
import pytest
from diffusers_hub import NAME
from diffusers_own_tests import both, cases, outcome, recorded
from diffusers_scripts import needs_examples

KINDS = ("passes", "refused: ", "fails through us: ", "fails without us: ", "skips itself: ")
COLUMNS = Path(__file__).parent / "scripts" / "columns.py"
OURS = f"""
import os, shutil, tempfile
import pytest
from test_examples_utils import Launched, run_command

class TestColumns(Launched):
    def start(self, *flags):
        with tempfile.TemporaryDirectory() as folder:
            command = ["{COLUMNS}", "--train_data_dir", "GROUND/people", "--vae", "GROUND/vae", "--output_dir", folder]
            run_command([*self._launch_args, *command, *flags])
            assert os.path.exists(os.path.join(folder, "weights.safetensors"))
            if "HERE" in os.environ:
                shutil.copytree(folder, os.environ["HERE"])

    def test_trains(self):
        self.start()

    def test_breaks(self):
        self.start("--fail_in_step")

    def test_expects_too_much(self):
        self.start()
        assert False, "too much was expected"

    def test_has_no_loop(self):
        run_command([*self._launch_args, "examples/some/nothing.py", "--output_dir", "nowhere"])

    @pytest.mark.skipif(True, reason="needs a moon")
    def test_skips(self):
        self.start()
"""
UTILS = """
def run_command(command, return_stdout=False):
    raise AssertionError("the test's own way to run commands has to be replaced")

class Launched:
    _launch_args = ["accelerate", "launch", "--config_file", "a.yml"]
"""


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@needs_examples
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("case", cases())
def test_a_case_gives_what_is_recorded(case, hub):
    expected = recorded().get(case, "not run yet")
    if not expected.startswith(KINDS[:3]):
        pytest.skip(expected)
    seen = outcome(case, hub, attached=True)
    assert seen.partition(":")[0] == expected.partition(":")[0], seen  # which check refuses first is up to the noise


@needs_examples
def test_the_record_names_cases_of_the_checkout():
    assert len(cases()) == 133
    assert len({case.partition("::")[0] for case in cases()}) == 26
    assert recorded().keys() <= set(cases())
    assert NAME.findall("pretrained hf-internal-testing/tiny-sd3-pipe,") == ["hf-internal-testing/tiny-sd3-pipe"]


def test_every_outcome_is_of_a_known_kind():
    assert recorded()
    assert all(seen.startswith(KINDS) for seen in recorded().values())


@pytest.fixture
def our_checkout(tmp_path, attach_ground, monkeypatch):
    """A checkout whose one test file starts tests/scripts/columns.py."""
    examples = tmp_path / "checkout" / "examples"
    (examples / "some").mkdir(parents=True)
    (examples / "test_examples_utils.py").write_text(UTILS, encoding="utf-8")
    text = OURS.replace("GROUND", str(attach_ground))
    (examples / "some" / "test_columns_here.py").write_text(text, encoding="utf-8")
    (examples / "some" / "nothing.py").write_text("import argparse\n", encoding="utf-8")
    monkeypatch.setattr(diffusers_own_tests, "EXAMPLES", examples)
    return examples


OUTCOMES = {
    "trains": "passes",
    "breaks": 'fails without us: KeyError: "a fault of the script\'s own"',
    "expects_too_much": "fails without us: AssertionError: too much was expected",
    "has_no_loop": "refused: expected one call of accelerator.backward",
    "skips": "skips itself: needs a moon",
}


@pytest.mark.parametrize(("name", "expected"), OUTCOMES.items(), ids=OUTCOMES)
def test_an_outcome_is_found_by_running(our_checkout, tmp_path, name, expected):
    (case,) = [case for case in cases(our_checkout) if case.endswith(f"::test_{name}")]
    assert case == f"some/test_columns_here.py::TestColumns::test_{name}"
    assert both(case, tmp_path / "hub").startswith(expected)


def test_a_case_passes_through_us_as_without_us(our_checkout, tmp_path, monkeypatch):
    case = "some/test_columns_here.py::TestColumns::test_trains"
    for attached in (False, True):
        monkeypatch.setenv("HERE", str(tmp_path / str(attached)))
        assert outcome(case, tmp_path / "hub", attached=attached) == "passes"
    assert not (tmp_path / "False" / "mldm").exists()
    plain, ours = ((tmp_path / str(a) / "weights.safetensors").read_bytes() for a in (False, True))
    assert plain == ours
    lines = (tmp_path / "True" / "mldm" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
