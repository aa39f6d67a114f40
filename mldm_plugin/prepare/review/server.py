"""The review's page on this machine: 127.0.0.1 alone, and only for the page that the command opened.

What is asked for is a number of a row, never a path. Every request has to name this server as its host, so that no
other site's name leads here; those that read or write the folder have to carry the token that only the page's address
holds, in a header that other sites' pages cannot send.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

import numpy as np

from mldm_plugin.errors import DataError, MldmError
from mldm_plugin.prepare.review.folder import Review
from mldm_plugin.prepare.review.showing import details, labels_of, listed, shown_picture

TOKEN = "X-Review-Token"
MOST_JSON = 1 << 20  # bytes of a request that is no mask
QUIET = 30  # seconds that a connection may stay silent
# Nothing from elsewhere, nothing inline, in no frame; pictures are made by the page of what it fetched.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_ROW = re.compile(r"/rows/(\d{1,9})(?:/(\w+))?")


class RefusedError(MldmError):
    """A request that is not answered; `status` says why in HTTP's words."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class ReviewServer(ThreadingHTTPServer):
    """Serves one review until it is shut down.

    Args:
        review: the folder; one request at a time reads or changes it.
        port: 0 for any that is free.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, review: Review, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.review = review
        self.lock = threading.Lock()
        self.token = secrets.token_urlsafe(24)
        self.hosts = {f"127.0.0.1:{self.server_port}", f"localhost:{self.server_port}"}

    @property
    def address(self) -> str:
        """The page's. What stands behind # is not sent to anybody: the page's script alone reads it."""
        return f"http://127.0.0.1:{self.server_port}/#{self.token}"


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mldm", ""
    timeout = QUIET

    def do_GET(self) -> None:
        self._answer(self._read)

    def do_PUT(self) -> None:
        self._answer(self._write)

    def _answer(self, act: Callable[[], tuple[str, bytes]]) -> None:
        try:
            self._check_host()
            kind, content = act()
        except RefusedError as error:
            self._refuse(error.status, str(error))
        except DataError as error:
            self._refuse(HTTPStatus.CONFLICT, str(error))
        except OSError as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"the folder cannot be read or written: {error}")
        else:
            self._send(HTTPStatus.OK, kind, content)

    def _read(self) -> tuple[str, bytes]:
        path = self.path.partition("?")[0]
        if path == "/rows":
            self._check_token()
            with self.server.lock:
                return _json(listed(self.server.review))
        if _ROW.fullmatch(path):
            self._check_token()
            number, what = self._row(path)
            readers = {None: details, "picture": shown_picture, "labels": labels_of}
            if what not in readers:
                raise RefusedError(HTTPStatus.NOT_FOUND, f"a row has no {what}.")
            with self.server.lock:
                found = readers[what](self.server.review, number)
            return found if isinstance(found, tuple) else _json(found)
        return _page("review.html" if path == "/" else path.removeprefix("/"))

    def _write(self) -> tuple[str, bytes]:
        self._check_token()
        number, what = self._row(self.path)
        review = self.server.review
        if what == "labels":
            with self.server.lock:
                size = review.findings(number).size or (0, 0)
            body = self._body(exactly=size[0] * size[1])
            labels = np.frombuffer(body, np.uint8).reshape(size[::-1])
            return self._changed(number, lambda: review.paint(number, labels))
        value = self._value()
        writers: dict[str | None, Callable[[], None]] = {
            "decision": lambda: review.decide(number, value.get("decision")),
            "faces": lambda: review.set_faces(number, value.get("faces", [])),
            "original": lambda: review.restore(number),
        }
        if what not in writers:
            raise RefusedError(HTTPStatus.NOT_FOUND, f"a row has no {what} to be written.")
        return self._changed(number, writers[what])

    def _changed(self, number: int, change: Callable[[], None]) -> tuple[str, bytes]:
        with self.server.lock:
            change()
            return _json(details(self.server.review, number))

    def _row(self, path: str) -> tuple[int, str | None]:
        found = _ROW.fullmatch(path)
        if not found or int(found[1]) >= len(self.server.review):
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is no such row.")
        return int(found[1]), found[2]

    def _check_host(self) -> None:
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host not in self.server.hosts:
            raise RefusedError(
                HTTPStatus.FORBIDDEN,
                f"asked for as {host!r}, expected {' or '.join(sorted(self.server.hosts))}. Through a tunnel, use the "
                "same port at both ends (--port).",
            )
        if origin is not None and origin.removeprefix("http://") not in self.server.hosts:
            raise RefusedError(HTTPStatus.FORBIDDEN, "asked for by the page of another site.")

    def _check_token(self) -> None:
        if not hmac.compare_digest(self.headers.get(TOKEN, "").encode(), self.server.token.encode()):
            raise RefusedError(HTTPStatus.FORBIDDEN, "without this review's token: open the address it printed.")

    def _body(self, exactly: int | None = None) -> bytes:
        told = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,12}", told):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "the request does not say how long it is.")
        length = int(told)
        if (exactly is not None and length != exactly) or (exactly is None and length > MOST_JSON):
            expected = f"{exactly}" if exactly is not None else f"at most {MOST_JSON}"
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{length} bytes came, expected {expected}.")
        body = self.rfile.read(length)
        if len(body) < length:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"{len(body)} bytes came, {length} were announced.")
        return body

    def _value(self) -> dict[str, Any]:
        try:
            value = json.loads(self._body())
        except (ValueError, RecursionError) as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"the request is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the request is no JSON object.")
        return value

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self.close_connection = True  # its body may not have been read
        self._send(status, *_json({"error": message}))

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
            **({"Connection": "close"} if self.close_connection else {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: what is saved shows on the page."""


def _json(value: Any) -> tuple[str, bytes]:
    return "application/json", json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def _page(name: str) -> tuple[str, bytes]:
    """One of the page's own files, by its name in the list of them."""
    files = {file.name: file for file in resources.files("mldm_plugin.prepare.review").joinpath("page").iterdir()}
    suffix = f".{name.rpartition('.')[2]}"
    if name not in files or suffix not in KINDS:
        raise RefusedError(HTTPStatus.NOT_FOUND, "there is no such page.")
    return f"{KINDS[suffix]}; charset=utf-8", files[name].read_bytes()
