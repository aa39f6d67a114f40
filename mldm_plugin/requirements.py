"""The command that installs what is missing: it holds in a clone as well as beside a published package."""

from __future__ import annotations

import importlib.metadata
import re
import shlex

OURS = "mldm-plugin"


def pip_install(*packages: str) -> str:
    """`pip install` of packages, in the editions that this one asks for; of those it does not know, by their names.

    >>> pip_install("no-such-package")
    'pip install no-such-package'
    """
    known = _requirements()
    return "pip install " + shlex.join(known.get(package.lower(), package) for package in packages)


def installed(package: str) -> str | None:
    """The version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def packages_of(extra: str) -> list[str]:
    """The names of the packages that an extra adds."""
    found = [_parts(line) for line in _declared()]
    return [
        name for name, _, marker in found if extra in re.findall(r"""extra == ["']([\w-]+)""", marker) and name != OURS
    ]


def _requirements() -> dict[str, str]:
    return {name.lower(): name + edition for name, edition, _ in map(_parts, _declared())}


def _declared() -> list[str]:
    try:
        return importlib.metadata.requires(OURS) or []
    except importlib.metadata.PackageNotFoundError:  # run from a folder that was not installed
        return []


def _parts(line: str) -> tuple[str, str, str]:
    """`name>=1; marker` as name, edition and marker."""
    wanted, _, marker = line.partition(";")
    found = re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*\(?([^)]*)", wanted.strip())
    return (found[1], found[2].strip(), marker) if found else (wanted, "", marker)
