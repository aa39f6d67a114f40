"""Every command tells OpenMP to let threads sleep while they wait, before torch is loaded; the user's word holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SPY = """
import os, runpy, sys
class Spy:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Spy())
sys.argv = {argv!r}
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""
SCRIPT = Path(__file__).parent / "scripts" / "columns.py"
COMMANDS = [
    ("mldm_plugin.cli", ["mldm", "losses"]),
    ("mldm_plugin.training.controlnet", ["train_controlnet.py"]),
    ("mldm_plugin.training.text_to_image_lora", ["train_text_to_image_lora.py"]),
    ("mldm_plugin", ["mldm_plugin", str(SCRIPT), "--preset", "mldm-open"]),
]


def policy_when_torch_is_loaded(module, argv, chosen=None):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if chosen:
        environment["OMP_WAIT_POLICY"] = chosen
    program = SPY.format(module=module, argv=argv)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() or done.stderr


@pytest.mark.parametrize(("module", "argv"), COMMANDS, ids=[module for module, _ in COMMANDS])
def test_threads_sleep_while_they_wait(module, argv):
    assert policy_when_torch_is_loaded(module, argv) == "passive"


def test_what_the_user_chose_holds():
    assert policy_when_torch_is_loaded("mldm_plugin.cli", ["mldm", "losses"], chosen="active") == "active"
