"""Downloads over HTTP: resumed where they broke, checked, and with a progress bar."""

import hashlib
import http.server
import threading

import pytest
import requests

from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual.weights.download import Wanted, download
from mldm_plugin.perceptual.weights.package_index import PipSettings, session_of

CONTENT = bytes(range(256)) * 400
SIZE = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, with ranges if `server.ranges`; breaks off after each number of bytes in `server.breaks`."""

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if start >= len(server.content) and start:
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.breaks.pop(0)] if server.breaks else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.breaks, server.ranges, server.content, server.status = [], [], True, CONTENT, 200
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def get(server, tmp_path, monkeypatch):
    """`get()` downloads the server's file; returns the path it goes to."""
    part = tmp_path / "weights.part"
    url = f"http://127.0.0.1:{server.server_port}/weights"

    monkeypatch.setattr("mldm_plugin.perceptual.weights.download.CHUNK", 1000)

    def run(sha256=SHA256, size=SIZE, progress=False):
        settings = PipSettings()
        with session_of(settings) as session:
            session.trust_env = False  # no proxy stands between the test and itself
            download(Wanted(url, sha256, size), part, settings, session, progress)
        return part

    run.part = part
    return run


def test_a_file_comes_whole(get, server):
    assert get().read_bytes() == CONTENT
    assert server.asked == [None]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_gone_on_with(get, server, ranges):
    server.breaks, server.ranges = [30_000, 50_000] if ranges else [30_000], ranges
    assert get().read_bytes() == CONTENT
    assert server.asked == ([None, "bytes=30000-", "bytes=80000-"] if ranges else [None, "bytes=30000-"])


def test_an_earlier_try_is_gone_on_with(get, server):
    get.part.write_bytes(CONTENT[:1000])
    assert get().read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-"]


def test_a_whole_file_is_not_asked_for_again(get, server):
    get.part.write_bytes(CONTENT)
    get()
    assert server.asked == []
    get(size=None)  # whether it is whole, the server knows
    assert server.asked == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("wrong", [b"?" * 1000, b"?" * len(CONTENT), b"?" * (len(CONTENT) + 5)])
def test_the_beginning_of_another_file_is_thrown_away(get, server, wrong):
    get.part.write_bytes(wrong)
    assert get().read_bytes() == CONTENT
    assert server.asked[-1] is None


def test_without_a_digest_nothing_is_gone_on_with(get, server):
    get.part.write_bytes(b"?" * 1000)
    assert get(sha256=None, size=None).read_bytes() == CONTENT
    assert server.asked == [None]
    server.breaks = [10]
    with pytest.raises(requests.RequestException):
        get(sha256=None, size=None)


def test_a_connection_that_always_breaks_is_an_error_and_what_came_is_kept(get, server):
    server.breaks = [1000] * 9
    with pytest.raises(requests.RequestException):
        get()
    assert get.part.read_bytes() == CONTENT[:5000]


def test_the_wrong_file_is_refused_and_removed(get, server):
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(WeightsError, match=rf"what came is not that file: its sha256 is .*, expected {SHA256}"):
        get()
    assert not get.part.exists()


def test_the_beginning_of_a_digest_is_enough(get):
    assert get(sha256=SHA256[:8]).read_bytes() == CONTENT


def test_an_address_that_says_no_is_asked_once(get, server):
    server.status = 404
    with pytest.raises(requests.HTTPError, match="404"):
        get()
    assert server.asked == [None]


def test_the_progress_bar_counts_bytes_and_can_be_hidden(get, monkeypatch, capsys):
    import tqdm

    told = []
    real = tqdm.tqdm

    def bar(**options):
        told.append(options)
        return real(**options)

    monkeypatch.setattr("mldm_plugin.perceptual.weights.download.tqdm", bar)
    get.part.write_bytes(CONTENT[:1000])
    get(progress=True)
    get.part.unlink()
    get(progress=False)
    assert [(t["total"], t["initial"], t["desc"]) for t in told] == [
        (len(CONTENT), 1000, "weights"),
        (len(CONTENT), 0, "weights"),
    ]
    assert [t["disable"] for t in told] == [None, True]  # None: shown on a terminal only
    assert capsys.readouterr().err == ""
