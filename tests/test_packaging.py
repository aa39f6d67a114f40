"""What is published: the wheel and the source distribution hold what a user needs, and nothing else.

They are built by the backend that pip would use, from a copy of the repository in which the large weights are short
stand-ins. The wheel is made from the source distribution, as `python -m build` does.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = ("mldm_plugin", "hooks", "presets")
LARGE = 1_000_000  # bytes
BUILD = "from setuptools import build_meta as b; import sys; print(getattr(b, 'build_' + sys.argv[1])(sys.argv[2]))"


def build(kind, folder, out):
    """Call the backend in `folder`; returns the file it made."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, kind, str(out)], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "absent from the `packages`" not in done.stderr
    return out / done.stdout.split()[-1]


def a_light_copy(source, target):
    """A file, or where it is large its beginning."""
    if Path(source).stat().st_size < LARGE:
        return shutil.copy(source, target)
    return Path(target).write_bytes(b"large")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The names in the source distribution, and the path of the wheel made from it."""
    folder = tmp_path_factory.mktemp("package")
    repository, out = folder / "repository", folder / "dist"
    out.mkdir()
    unwanted = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, repository, ignore=unwanted, copy_function=a_light_copy)
    for stray in ("runs/demo/report.html", "anna/run.yaml", "mldm_plugin/__pycache__/a.cpython-311.pyc"):
        (repository / stray).parent.mkdir(parents=True)
        (repository / stray).touch()
    with tarfile.open(build("sdist", repository, out)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        if sys.version_info >= (3, 12):
            archive.extractall(folder / "unpacked", filter="data")
        else:
            archive.extractall(folder / "unpacked")
    [unpacked] = (folder / "unpacked").iterdir()
    return names, build("wheel", unpacked, out)


def expected():
    """What the wheel must hold: every tracked kind of file of the three folders."""
    kept = {".py", ".yaml", ".json", ".jsonl", ".safetensors", ".txt", ".html", ".js", ".css", ".typed"}
    for source in SOURCES:
        inside = "mldm_plugin" if source == "mldm_plugin" else f"mldm_plugin/{source}"
        for path in (ROOT / source).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.suffix in kept, f"{path}: a kind of file of which it is not known whether it is shipped"
                yield f"{inside}/{path.relative_to(ROOT / source).as_posix()}"


def test_the_wheel_holds_every_file_of_the_package_and_no_other(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == set(expected())
    assert {name.split("/")[0] for name in names} == {"mldm_plugin"}  # nothing called `hooks` beside it


def test_the_source_distribution_holds_no_tests_runs_or_documentation(built):
    names, _ = built
    tops = {name.split("/")[0] for name in names} - {""}
    assert tops == {
        *SOURCES,
        *("LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"),
        "mldm_plugin.egg-info",
    }
    assert not [name for name in names if name.endswith(".pyc")]


def test_what_is_said_about_the_package(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        [path] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        said = Parser().parsestr(archive.read(path).decode())
        assert [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    about = [said[field] for field in ("Name", "License-Expression", "Requires-Python")]
    assert about == ["mldm-plugin", "Apache-2.0", ">=3.10"]
    assert set(said.get_all("Provides-Extra")) == set(PROJECT["project"]["optional-dependencies"])
    from mldm_plugin import __version__

    assert said["Version"] == __version__
    changelog = (ROOT / "docs" / "changelog.md").read_text(encoding="utf-8")
    assert re.findall(r"^## ([\d.]+)", changelog, re.M)[0] == __version__


def test_no_extra_asks_for_a_package_twice():
    for name, wanted in PROJECT["project"]["optional-dependencies"].items():
        packages = [re.split(r"[\[<>=;]", one)[0] for one in wanted]
        assert len(packages) == len({*packages}), name


def test_the_commands_run_from_the_unpacked_wheel(built, tmp_path):
    """Without torch, too: help, presets, weights and the new loss answer at once."""
    _, wheel = built
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    program = """
import sys
sys.modules["torch"] = None  # not installed
from click.testing import CliRunner
from mldm_plugin.cli import main
import mldm_plugin
print(mldm_plugin.__file__)
for command in ("--help", "presets list", "presets show mldm", "weights list", "new-loss brightness"):
    result = CliRunner().invoke(main, command.split())
    assert result.exit_code == 0, (command, result.output, result.exception)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.split()[0]).is_relative_to(tmp_path / "site")
    assert (tmp_path / "test_brightness.py").is_file()


def test_the_image_is_built_from_what_the_wheel_needs():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    assert let_in == {*SOURCES, "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"}
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    extras = re.search(r"^ARG EXTRAS=(.+)$", dockerfile, re.M)[1].split(",")
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])
    [floor] = [d.partition(">=")[2] for d in PROJECT["project"]["dependencies"] if d.startswith("torch>=")]
    assert f"pytorch/pytorch:{floor}." in dockerfile, "the image has the oldest torch that the plugin runs on"
