"""mldm weights: list, fetch, where."""

import pytest
from click.testing import CliRunner

from mldm_plugin.cli import main
from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual.weights import WEIGHT_FILES


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLDM_WEIGHTS", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "cache"


def run(*arguments):
    return CliRunner().invoke(main, ["weights", *arguments])


def place(cache, name):
    cache.mkdir(exist_ok=True)
    path = cache / WEIGHT_FILES[name].file_name
    path.write_bytes(b"weights")
    return path


def test_list_tells_size_checksum_licence_and_presence(empty_cache):
    path = place(empty_cache, "vgg16")
    output = run("list").output
    for name, file in WEIGHT_FILES.items():
        assert f"{name}\n    file     {file.file_name}, " in output
        assert file.licence.split(maxsplit=1)[0] in output
        assert (file.page or file.url) in output
    assert f"sha256   {WEIGHT_FILES['vgg16'].sha256}" in output
    assert "sha256   not published" in output
    assert "size not published" in output
    assert "528 MiB" in output
    assert f"present  {path}\n" in output
    assert "present  no; mldm weights fetch vggface2_resnet50\n" in output


def test_where_is_the_folder_or_a_file(empty_cache):
    assert run("where").output == f"{empty_cache}\n"
    result = run("where", "vgg16")
    assert result.exit_code == 1
    assert str(empty_cache / "vgg16-397923af.pth") in result.stderr
    path = place(empty_cache, "vgg16")
    assert run("where", "vgg16").output == f"{path}\n"


def test_fetch_gives_the_paths(monkeypatch):
    monkeypatch.setattr("mldm_plugin.perceptual.weights.fetch", lambda name: f"/cache/{name}")
    assert run("fetch", "vgg16", "vgg16").output == "vgg16: /cache/vgg16\n"
    assert run("fetch", "all").output.splitlines() == [f"{n}: /cache/{n}" for n in WEIGHT_FILES]


def test_fetch_goes_on_after_a_failure_and_ends_with_status_1(monkeypatch):
    def fetch(name):
        if name == "vggface2_resnet50":
            raise WeightsError(f"{name} cannot be fetched.")
        return name

    monkeypatch.setattr("mldm_plugin.perceptual.weights.fetch", fetch)
    result = run("fetch", "all")
    assert result.exit_code == 1
    others = ("vgg16", "vggface2_inception", "scrfd_10g", "mask_rcnn")
    assert result.stdout.splitlines() == [f"{name}: {name}" for name in others]
    assert result.stderr == "mldm: vggface2_resnet50 cannot be fetched.\n"


def test_an_unknown_name_is_told_before_anything_is_fetched(monkeypatch):
    fetched = []
    monkeypatch.setattr("mldm_plugin.perceptual.weights.fetch", fetched.append)
    result = run("fetch", "vgg16", "vgg17")
    assert result.exit_code == 1
    assert "'vgg16'" in result.stderr
    assert fetched == []


def test_fetch_wants_a_name():
    assert run("fetch").exit_code == 2
