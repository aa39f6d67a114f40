"""A page on this machine: 127.0.0.1 alone, and only for the page that the command opened.

Every request has to name this server as its host, so that no other site's name leads here; those that read or change
anything have to carry the token that only the page's address holds, in a header that other sites' pages cannot send.
The page's own files are found by their names in a list of them: what is asked for is never a path.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import re
import secrets
import sys
import threading
import webbrowser
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, ClassVar

from mldm_plugin.errors import DataError, MldmError

TOKEN = "X-Page-Token"
MOST_JSON = 1 << 22  # bytes of a request that is no mask, or has one of 1024 pixels squared inside
QUIET = 30  # seconds that a connection may stay silent
SHARED, HEAD = "page/local", "head.html"  # what all such pages have
# Nothing from elsewhere, nothing inline, in no frame; pictures are made by the page of what it fetched.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
KINDS = {".css": "text/css", ".js": "text/javascript"}
Answer = tuple[str, bytes]  # content type and content


class RefusedError(MldmError):
    """A request that is not answered; `status` says why in HTTP's words."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class LocalServer(ThreadingHTTPServer, ABC):
    """Serves one page until it is shut down.

    Args:
        port: 0 for any that is free.

    Class attributes:
        what: it is, for people.
        folder: of the page's own files, in the package.
        name: of its own script and style, and of the file that is its body.
        title: of the page.

    Attributes:
        lock: for what one request at a time may do.
    """

    daemon_threads = True
    block_on_close = False
    what: ClassVar[str]
    folder: ClassVar[str]
    name: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.lock = threading.Lock()
        self.token = secrets.token_urlsafe(24)
        self.hosts = {f"127.0.0.1:{self.server_port}", f"localhost:{self.server_port}"}

    @property
    def address(self) -> str:
        """The page's. What stands behind # is not sent to anybody: the page's script alone reads it."""
        return f"http://127.0.0.1:{self.server_port}/#{self.token}"

    @abstractmethod
    def read(self, path: str) -> Answer:
        """What is at a path that is no file of the page; raises RefusedError or DataError."""

    @abstractmethod
    def write(self, path: str, body: Body) -> Answer:
        """What is answered to a change; raises RefusedError or DataError."""

    def file(self, path: str) -> Answer | None:
        """One of the page's own files; None if there is none of this name."""
        folders = [resources.files("mldm_plugin") / folder for folder in (SHARED, self.folder)]
        files = {file.name: file for folder in folders for file in folder.iterdir()}
        if path == "/":
            head = files[HEAD].read_text(encoding="utf-8")
            head = head.replace("{{title}}", self.title).replace("{{name}}", self.name)
            return "text/html; charset=utf-8", head.encode() + files[f"{self.name}.html"].read_bytes()
        name = path.removeprefix("/")
        suffix = f".{name.rpartition('.')[2]}"
        if name not in files or suffix not in KINDS:
            return None
        return f"{KINDS[suffix]}; charset=utf-8", files[name].read_bytes()


class Body:
    """What a request brings, read when it is known how long it may be."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._handler = handler

    def content(self, exactly: int | None = None) -> bytes:
        """So many bytes, or at most `MOST_JSON`.

        Raises:
            RefusedError: another length came, or none was told.
        """
        told = self._handler.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,12}", told):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "the request does not say how long it is.")
        length = int(told)
        if (exactly is not None and length != exactly) or (exactly is None and length > MOST_JSON):
            expected = f"{exactly}" if exactly is not None else f"at most {MOST_JSON}"
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{length} bytes came, expected {expected}.")
        body = self._handler.rfile.read(length)
        if len(body) < length:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"{len(body)} bytes came, {length} were announced.")
        return body

    def value(self) -> dict[str, Any]:
        """A JSON object; raises RefusedError for anything else."""
        try:
            value = json.loads(self.content())
        except (ValueError, RecursionError) as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"the request is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the request is no JSON object.")
        return value


class _Handler(BaseHTTPRequestHandler):
    server: LocalServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mldm", ""
    timeout = QUIET

    def do_GET(self) -> None:
        self._answer(self._read)

    def do_PUT(self) -> None:
        self._answer(self._write)

    def _answer(self, act: Callable[[], Answer]) -> None:
        try:
            self._check_host()
            kind, content = act()
        except RefusedError as error:
            self._refuse(error.status, str(error))
        except MldmError as error:
            self._refuse(HTTPStatus.CONFLICT, str(error))
        except OSError as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"the folder cannot be read or written: {error}")
        except Exception as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")
            raise  # the terminal has the traceback
        else:
            self._send(HTTPStatus.OK, kind, content)

    def _read(self) -> Answer:
        path = self.path.partition("?")[0]
        if (own := self.server.file(path)) is not None:
            return own
        self._check_token()
        return self.server.read(path)

    def _write(self) -> Answer:
        self._check_token()
        return self.server.write(self.path, Body(self))

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
            what = self.server.what
            raise RefusedError(HTTPStatus.FORBIDDEN, f"without this {what}'s token: open the address it printed.")

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self.close_connection = True  # its body may not have been read
        self._send(status, *as_json({"error": message}))

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
        try:
            self.end_headers()
            self.wfile.write(content)
        except ConnectionError:  # whoever asked has left, as a page does that is loaded anew
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: what happens shows on the page."""


def as_json(value: Any) -> Answer:
    """A value as it is sent."""
    return "application/json", json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def serve(make: Callable[[], LocalServer], port: int, told: Sequence[str], opens_browser: bool) -> LocalServer:
    """Serve a page until Ctrl-C, and let what is being done end.

    Args:
        make: the server.
        port: that it was asked to use.
        told: lines before and after the one with the address.

    Raises:
        DataError: the port is taken.
    """
    try:
        server = make()
    except OSError as error:
        raise DataError(f"port {port} cannot be used ({error.strerror}): name another --port, or none.") from error
    with server, contextlib.suppress(KeyboardInterrupt):
        first, last = told
        sys.stdout.write(f"{first}\nopen {server.address}\n{last}\n")
        sys.stdout.flush()
        if opens_browser:
            webbrowser.open(server.address)
        server.serve_forever()
    server.lock.acquire()
    return server
