"""Where pip would get a package from, without running anything of the package.

`pip download` runs an sdist's build program to ask it for its name. So pip is only asked for its settings (index,
mirrors, folders, proxy, certificates), and the one file is looked for in the pages of the index.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from urllib.request import url2pathname

import requests
from requests.adapters import HTTPAdapter

from mldm_plugin.errors import WeightsError

CONNECT_SECONDS = 10  # chosen: of two kinds of source one may be out of reach, and the other is to have its turn soon
TIMEOUT_SECONDS = 30  # chosen: a server that is silent for so long will not answer
RETRIES = 3
# The address that pip takes where no setting names one is known to pip alone.
ASK_PIP = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
_PAGE = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


@dataclass(frozen=True)
class PipSettings:
    """What pip's files and environment variables say of getting packages.

    Args:
        indexes: addresses or folders with a page for each package.
        find_links: pages, folders or files beside them.
        proxy, cert, client_cert, trusted_hosts, timeout: as pip's options of these names.
    """

    indexes: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    proxy: str | None = None
    cert: str | None = None
    client_cert: str | None = None
    trusted_hosts: tuple[str, ...] = ()
    timeout: float = TIMEOUT_SECONDS

    @property
    def timeouts(self) -> tuple[float, float]:
        """For requests: seconds to wait for a connection, and for each answer."""
        return min(CONNECT_SECONDS, self.timeout), self.timeout

    def verify(self, url: str) -> bool | None:
        """For requests: False where the host's certificate is not to be checked, None where as in the session."""
        parts = urlsplit(url)
        return False if {parts.hostname, f"{parts.hostname}:{parts.port}"} & set(self.trusted_hosts) else None


@functools.cache
def pip_settings() -> PipSettings:
    """The settings of this environment's pip; without pip, those in the variables PIP_*.

    Raises:
        WeightsError: a line of pip's settings that cannot be understood.
    """
    listed = run_python("-m", "pip", "config", "list")
    if listed is None:
        here = {k[4:].lower().replace("_", "-"): v for k, v in os.environ.items() if k.startswith("PIP_")}
        return settings_of(here, default_index=None)
    return settings_of(parse_config(listed), default_index=(run_python("-c", ASK_PIP) or "").strip() or None)


def parse_config(listed: str) -> dict[str, str]:
    """`pip config list` as one value an option; as in pip, `download` goes before `global`, variables before both."""
    found: dict[str, str] = {}
    for section in ("global.", "download.", ":env:."):
        for line in listed.splitlines():
            key, equals, value = line.partition("=")
            if equals and key.startswith(section):
                try:
                    found[key.removeprefix(section)] = str(ast.literal_eval(value))
                except (ValueError, SyntaxError):
                    raise WeightsError(f"pip's setting {key} is {value}, expected a quoted text.") from None
    return found


def settings_of(options: Mapping[str, str], default_index: str | None) -> PipSettings:
    """Pip's options, by their long names, as settings."""
    several = {name: tuple(options.get(name, "").split()) for name in ("extra-index-url", "find-links", "trusted-host")}
    index = options.get("index-url") or default_index
    indexes = (*((index,) if index else ()), *several["extra-index-url"])
    if options.get("no-index", "0").lower() in ("1", "true", "yes", "on"):
        indexes = ()
    return PipSettings(
        indexes=indexes,
        find_links=several["find-links"],
        proxy=options.get("proxy") or None,
        cert=options.get("cert") or None,
        client_cert=options.get("client-cert") or None,
        trusted_hosts=several["trusted-host"],
        timeout=float(options.get("timeout") or options.get("default-timeout") or TIMEOUT_SECONDS),
    )


def run_python(*arguments: str) -> str | None:
    """What a Python of this environment prints; None if it fails."""
    told = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    return told.stdout if told.returncode == 0 else None


class _SystemCertificates(HTTPAdapter):
    """Trusts what the operating system trusts, as pip does, besides requests' own list."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> Any:
        context = ssl.create_default_context()
        context.load_verify_locations(requests.certs.where())
        return super().init_poolmanager(*arguments, ssl_context=context, **options)


def session_of(settings: PipSettings) -> requests.Session:
    """A session with pip's proxy and certificates. Names and passwords come from addresses or .netrc."""
    from urllib3.util import Retry

    session = requests.Session()
    busy = (502, 503, 504)
    retries = Retry(total=RETRIES, connect=0, backoff_factor=0.5, status_forcelist=busy, raise_on_status=False)
    kind = HTTPAdapter if settings.cert else _SystemCertificates
    for scheme in ("https://", "http://"):
        session.mount(scheme, kind(max_retries=retries))
    if settings.cert:
        session.verify = settings.cert
    if settings.client_cert:
        session.cert = settings.client_cert
    if settings.proxy:
        session.proxies = {"http": settings.proxy, "https": settings.proxy}
    return session


def find(project: str, archive: str, sha256: str, settings: PipSettings, session: requests.Session) -> list[str]:
    """Addresses (http, https or file) of the file `archive` of `project`, the user's own folders first.

    A file that its page gives another sha256 is passed over.

    Raises:
        WeightsError: no place has it; every place that was asked is named with what it said.
    """
    name = re.sub(r"[-_.]+", "-", project).lower()
    places = [*settings.find_links, *(f"{index.rstrip('/')}/{name}/" for index in settings.indexes)]
    if not places:
        raise WeightsError("pip has no index; name one with `pip config set global.index-url` or PIP_INDEX_URL")
    found, said = [], []
    for place in places:
        try:
            links = [link for link in _links(place, settings, session) if _names(link, archive, sha256)]
            found += [urldefrag(link).url for link in links]
            if not links:
                said.append(f"{_shown(place)} has no {archive}")
        except (OSError, ValueError) as error:  # also of requests; one place that is down hides no other
            said.append(f"{_shown(place)}: {told(error)}")
    if not found:
        raise WeightsError("; ".join(said))
    return found


def local_path(url: str) -> Path | None:
    """The path that a file address or a plain path means; None for an address on a network."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if parts.scheme in ("http", "https") else Path(url).expanduser()


def _names(link: str, archive: str, sha256: str) -> bool:
    address, fragment = urldefrag(link)
    if unquote(urlsplit(address).path).rsplit("/", 1)[-1] != archive:
        return False
    return not fragment.startswith("sha256=") or fragment == f"sha256={sha256}"


def _links(place: str, settings: PipSettings, session: requests.Session) -> Iterator[str]:
    """The links of a page, a folder or a file; those of a page keep the sha256 that it gives as their fragment."""
    path = local_path(place)
    if path is None:
        answer = session.get(place, headers={"Accept": _PAGE}, timeout=settings.timeouts, verify=settings.verify(place))
        answer.raise_for_status()
        if "json" in answer.headers.get("Content-Type", ""):
            yield from _links_of_json(answer.url, answer.json())
        else:
            yield from _links_of_html(answer.url, answer.text)
        return
    index = path / "index.html"
    if path.is_dir() and not index.is_file():
        yield from (child.absolute().as_uri() for child in path.iterdir())
    elif path.suffix == ".html" or path.is_dir():
        page = index if path.is_dir() else path
        yield from _links_of_html(page.absolute().as_uri(), page.read_text(encoding="utf-8"))
    else:
        path.stat()  # raises OSError where there is nothing
        yield path.absolute().as_uri()


def _links_of_json(base: str, page: Any) -> Iterator[str]:
    """The JSON form of the simple index, PEP 691."""
    for file in page.get("files", []) if isinstance(page, dict) else []:
        digest = (file.get("hashes") or {}).get("sha256")
        yield urljoin(base, file["url"]) + (f"#sha256={digest}" if digest else "")


def _links_of_html(base: str, text: str) -> Iterator[str]:
    """The HTML form of the simple index, PEP 503."""
    anchors = _Anchors()
    anchors.feed(text)
    yield from (urljoin(base, link) for link in anchors.links)


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a" and (link := dict(attrs).get("href")):
            self.links.append(link)


def _shown(place: str) -> str:
    """An address without the name and password that it may hold."""
    return re.sub(r"//[^/@]*@", "//", place)


def told(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, requests.ConnectionError) and error.request is not None and error.request.url:
        return f"{urlsplit(str(error.request.url)).hostname} cannot be reached"
    return _shown(str(error).partition("\n")[0] or type(error).__name__)
