"""mldm doctor: what is there, and what does not go together."""

import importlib
import importlib.metadata
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from mldm_plugin.cli import environment, main
from mldm_plugin.project.photos import WEIGHTS

VERSIONS = {
    "torch": "2.6.0+cu124",
    "torchvision": "0.21.0",
    "onnxruntime": "1.22.0",
    "diffusers": "0.40.0",
    "lpips": "0.1.4",
}

OURS = [
    "torch>=2.6",
    'peft>=0.17; extra == "train"',
    'scipy>=1.11; extra == "data"',
    'onnxruntime>=1.20; extra == "data"',
]


@pytest.fixture
def world(monkeypatch):
    """An environment whose packages the test sets; modules import unless `broken` holds their error."""
    versions, requirements, broken = dict(VERSIONS), {"torchvision": ["numpy", "torch==2.6.0"], "mldm-plugin": OURS}, {}

    def version(package):
        if package not in versions:
            raise importlib.metadata.PackageNotFoundError(package)
        return versions[package]

    real = importlib.import_module

    def import_module(name, package=None):
        if name in broken:
            raise broken[name]
        if name == "onnxruntime":
            return SimpleNamespace(get_available_providers=lambda: ["CPUExecutionProvider"])
        return real(name, package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda p: requirements[p])
    monkeypatch.setattr(environment.importlib, "import_module", import_module)
    return SimpleNamespace(versions=versions, requirements=requirements, broken=broken)


def run():
    return CliRunner().invoke(main, ["doctor"])


def test_a_sound_environment(world):
    result = run()
    assert result.exit_code == 0, result.output
    assert "  torch 2.6.0+cu124\n" in result.output
    assert "  peft not installed; pip install 'peft>=0.17'\n" in result.output
    assert "  onnxruntime runs on CPUExecutionProvider\n" in result.output
    assert "conflicts: none\n" in result.output
    for name in ("vgg16", "vggface2_resnet50"):
        assert f"  {name}: " in result.output


def test_the_last_line_says_whether_it_is_ready(world, monkeypatch):
    assert run().output.splitlines()[-1] == (
        "missing: accelerate, peft, transformers, datasets, tensorboard, scipy (pip install accelerate 'peft>=0.17' "
        "transformers datasets tensorboard 'scipy>=1.11')"
    )
    world.versions |= dict.fromkeys(environment.TO_TRAIN, "1.0")
    monkeypatch.setattr("mldm_plugin.perceptual.weights.locate", lambda name: "x")
    assert run().output.splitlines()[-1] == 'ready: mldm start PHOTOS --who "anna woman"'
    monkeypatch.setattr("mldm_plugin.perceptual.weights.locate", lambda name: "x" if name != "vgg16" else None)
    assert run().output.splitlines()[-1].endswith("; fetched on first use, or now by `mldm weights fetch vgg16`")
    world.versions["onnxruntime-gpu"] = "1.22.0"
    assert run().output.splitlines()[-1].startswith("not ready: ")


def test_the_weights_of_the_verdict_are_those_that_photographs_are_looked_at_with():
    assert set(environment.WEIGHTS) > set(WEIGHTS)


def test_this_environment_is_told_whole():
    result = run()
    for package in environment.PACKAGES:
        assert f"  {package} " in result.output


def test_two_onnxruntimes_are_a_conflict_with_the_commands_that_mend_it(world):
    world.versions["onnxruntime-gpu"] = "1.22.0"
    result = run()
    assert result.exit_code == 1
    assert "onnxruntime and onnxruntime-gpu are both installed" in " ".join(result.output.split())
    assert "      pip uninstall -y onnxruntime onnxruntime-gpu\n      pip install onnxruntime-gpu" in result.output


def test_an_onnxruntime_without_its_files_is_a_conflict(world):
    del world.versions["onnxruntime"]
    world.versions["onnxruntime-gpu"] = "1.22.0"
    world.broken["onnxruntime"] = AttributeError("no attribute get_available_providers")
    result = run()
    assert result.exit_code == 1
    assert "pip install --force-reinstall --no-deps onnxruntime-gpu" in result.output
    assert "onnxruntime does not work: AttributeError" in result.output


def test_no_onnxruntime_is_no_conflict(world):
    del world.versions["onnxruntime"]
    world.broken["onnxruntime"] = ModuleNotFoundError("onnxruntime")
    result = run()
    assert result.exit_code == 0
    assert "  onnxruntime not installed; pip install 'onnxruntime>=1.20'\n" in result.output
    assert "  onnxruntime is not installed\n" in result.output


@pytest.mark.parametrize("wanted", ["torch==2.7.0", "torch (>=2.14.0)"])
def test_a_torchvision_of_another_torch_is_a_conflict(world, wanted):
    world.requirements["torchvision"] = [wanted]
    result = run()
    assert result.exit_code == 1
    assert "torchvision 0.21.0 needs torch" in result.output
    assert "pip install --upgrade torch torchvision" in result.output


def test_without_packaging_versions_are_not_compared(world, monkeypatch):
    world.requirements["torchvision"] = ["torch==2.7.0"]
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    assert run().exit_code == 0


def test_a_torchvision_that_does_not_import_is_a_conflict(world):
    world.broken["torchvision"] = RuntimeError("operator torchvision::nms does not exist\nmore")
    result = run()
    assert result.exit_code == 1
    assert "torchvision::nms does not exist" in " ".join(result.output.split())
    assert "pip install --force-reinstall torch torchvision" in result.output


def test_a_missing_torchvision_is_a_conflict(world, monkeypatch):
    del world.versions["torchvision"]

    def requires(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    result = run()
    assert result.exit_code == 1
    assert "torchvision is missing" in result.output


def test_it_works_where_torch_does_not(tmp_path, monkeypatch):
    """That is when it is needed: whatever is broken is told, and nothing ends in a traceback."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.12 is missing')\n")
    (tmp_path / "pack-1.0.dist-info").mkdir()
    (tmp_path / "pack-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: pack\nVersion: 1.0\n")
    (tmp_path / "pack-1.0.dist-info" / "entry_points.txt").write_text("[mldm]\nsoft = soft_pack\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("MLDM_WEIGHTS", raising=False)
    command = [sys.executable, "-m", "mldm_plugin.cli", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == ""
    assert "  torch does not import: ImportError: libcudart.so.12 is missing\n" in done.stdout
    assert "  vgg16: " in done.stdout, "which weights are here is told without torch"
    assert "  soft: not known, ImportError" in done.stdout
    assert "      pip install --force-reinstall torch torchvision\n" in done.stdout


def test_gpus_are_told_with_their_memory(monkeypatch):
    gib = 2**30
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (60 * gib, 80 * gib))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    assert list(environment.devices())[:2] == [
        "GPU 0: Some GPU, 60.0 of 80.0 GiB free",
        "torch is built for CUDA 12.4",
    ]


def test_installed_plugins_are_told(monkeypatch):
    monkeypatch.setattr("mldm_plugin.plugins.installed_plugins", lambda: {"soft": "soft_pack"})
    (line,) = environment.plugins()
    assert line.startswith("soft: does not load: plugin 'soft' is no entry point")
