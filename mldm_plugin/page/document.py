"""A page as one HTML file: its data, its script and its style inside it, and a policy that lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

DIGITS = 6  # significant; chosen: more than a page's pixels tell apart
HOUSE = "page/assets"
SHARED = ("elements", "hints", "marks", "scales", "theme")  # scripts that stand before a page's own


@dataclass(frozen=True)
class Design:
    """What makes a kind of page.

    Args:
        folder: of its own assets, in the package.
        style: its own, after the house's.
        scripts: its own, in order.
        first: the id of the section that a keyboard may skip to.
        instead: what is told where there is no JavaScript.
        more: elements beside the page itself.
    """

    folder: str
    style: str
    scripts: Sequence[str]
    first: str
    instead: str
    more: str = ""


def document(design: Design, title: str, data: Any) -> str:
    """The page.

    Whatever a prompt, a caption or a name says stays text: scripts make it with the DOM's text nodes alone, and the
    page's policy lets no script run but its own, by digest.
    """
    style = asset(f"{HOUSE}/house.css") + "\n" + asset(f"{design.folder}/{design.style}")
    files = [f"{HOUSE}/{name}.js" for name in SHARED] + [f"{design.folder}/{name}.js" for name in design.scripts]
    script = "'use strict';\n" + "\n".join(map(asset, files))
    parts = {
        "title": html.escape(title),
        "style": style,
        "script": script,
        "style_digest": digest_of(style),
        "script_digest": digest_of(script),
        "first": design.first,
        "instead": design.instead,
        "more": design.more,
        "data": as_json(short(data)),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], asset(f"{HOUSE}/document.html"))


def asset(path: str) -> str:
    """A file of the package."""
    return (resources.files("mldm_plugin") / path).read_text(encoding="utf-8")


def as_json(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or begins another."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def short(value: Any) -> Any:
    """`value` with its numbers cut to `DIGITS`."""
    if isinstance(value, dict):
        return {key: short(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [short(inner) for inner in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def digest_of(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
