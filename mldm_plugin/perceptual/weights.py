"""The weights of the networks: where they come from, how they are checked, where they lie.

Importing this module is cheap (no torch), so that the command line can list the table.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import lzma
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from mldm_plugin.errors import WeightsError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
TIMEOUT_SECONDS = 30  # chosen: a server that is silent for so long will not answer


@dataclass(frozen=True)
class WeightFile:
    """One file of weights.

    Args:
        name: what presets and `mldm weights` call it.
        file_name: its name in the cache folder.
        url: address a program can fetch it from.
        licence: terms of use, in a sentence.
        sha256: hexadecimal digest, or None where none is published.
        size: bytes, or None where not known.
        page: address for a browser, where the file's host may refuse programs.
        member: its name in the zip archive that lies at `url`; None where the file itself lies there.
        also_in: folder in which the package that the file belongs to keeps it.
        instead: what there is without it, a clause.
    """

    name: str
    file_name: str
    url: str
    licence: str
    sha256: str | None = None
    size: int | None = None
    page: str | None = None
    member: str | None = None
    also_in: str | None = None
    instead: str = "`weights: random` is for tests and demos alone"


_TABLE = (
    WeightFile(
        name="vgg16",
        file_name="vgg16-397923af.pth",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
        licence="BSD-3-Clause (torchvision); trained on ImageNet, pictures for non-commercial research.",
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        size=553_433_881,
    ),
    # cydonia999/VGGFace2-pytorch publishes no digest. The file is unpickled as arrays alone.
    WeightFile(
        name="vggface2_resnet50",
        file_name="resnet50_ft_weight.pkl",
        url="https://drive.usercontent.google.com/download"
        "?id=1A94PAAnwk6L7hXdBXLFosB_s0SzEhAFU&export=download&confirm=t",
        licence="VGGFace2's own: CC BY-SA 4.0 by its authors' word, CC BY-NC 4.0 in mirrors of the data; "
        "first trained on MS-Celeb-1M, withdrawn, research only. The conversion is MIT (cydonia999).",
        page="https://drive.google.com/file/d/1A94PAAnwk6L7hXdBXLFosB_s0SzEhAFU/view",
    ),
    WeightFile(
        name="vggface2_inception",
        file_name="facenet_vggface2.safetensors",
        url="https://huggingface.co/py-feat/facenet/resolve/main/model.safetensors",
        licence="MIT (py-feat, facenet-pytorch); trained on VGGFace2, CC BY-SA 4.0 by its authors' word, "
        "CC BY-NC 4.0 in mirrors of the data.",
        sha256="060b24840d57519af854efb1c1d86f110842a1312220afbde4aebb0df1448c9d",
        size=111_831_500,
    ),
    # No digest is published by insightface: this is the one that Hugging Face computed of immich-app/buffalo_l's copy.
    WeightFile(
        name="scrfd_10g",
        file_name="det_10g.onnx",
        url="https://github.com/deepinsight/insightface/releases/download/v0.7/buffalo_l.zip",
        licence="insightface's own: for non-commercial research only; trained on WIDER FACE.",
        sha256="5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
        size=16_923_827,
        member="det_10g.onnx",
        also_in="~/.insightface/models/buffalo_l",
        instead="`--faces lbp` and `--faces keypoints` need no weights",
    ),
    # The digest begins as the file name says; the rest is what public repositories that pin the file agree on.
    WeightFile(
        name="mask_rcnn",
        file_name="maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
        url="https://download.pytorch.org/models/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
        licence="BSD-3-Clause (torchvision); trained on COCO, annotations CC BY 4.0, pictures under Flickr's terms.",
        sha256="73cbd0190fcbe3ba339921fbce2c3a0b6bb9126c9a133c85e43a2a8e060a109e",
        size=185_828_065,
        instead="give masks of your own",
    ),
)
WEIGHT_FILES: dict[str, WeightFile] = {file.name: file for file in _TABLE}


def weight_file(name: str) -> WeightFile:
    """The table's entry for `name`.

    Raises:
        WeightsError: no such entry; the nearest names are given.
    """
    try:
        return WEIGHT_FILES[name]
    except KeyError:
        raise WeightsError(f"No weights are called {name!r}; {nearest(name, WEIGHT_FILES)}") from None


def _hub_folder() -> Path:
    import torch

    return Path(torch.hub.get_dir())


def cache_folder() -> Path:
    """Where weights are kept: the environment variable MLDM_WEIGHTS, else `mldm` in torch's hub folder."""
    if folder := os.environ.get("MLDM_WEIGHTS"):
        return Path(folder).expanduser()
    return _hub_folder() / "mldm"


def locate(name: str) -> Path | None:
    """The file of `name` on this machine, or None. What torchvision or insightface downloaded counts too."""
    file = weight_file(name)
    folders = [cache_folder(), _hub_folder() / "checkpoints"]
    if file.also_in is not None:
        folders.append(Path(file.also_in).expanduser())
    return next((folder / file.file_name for folder in folders if (folder / file.file_name).is_file()), None)


def fetch(name: str, progress: bool = True) -> Path:
    """The checked file of `name`, downloaded if this machine does not have it yet.

    Args:
        name: an entry of `WEIGHT_FILES`.
        progress: show a progress bar on a terminal.

    Returns:
        Its path. It appears there only when whole and checked, whatever interrupts the download.

    Raises:
        WeightsError: no network, not the expected file, or a folder that cannot be written. The message
            names the file, its address and where to put it. A bad download is not kept; a bad file that
            was there before is named and left alone.
    """
    file = weight_file(name)
    if path := locate(name):
        if fault := _fault(file, path):
            raise WeightsError(f"{path} is not the file expected for {name!r}: {fault}. Delete it and try again.")
        return path
    target = cache_folder() / file.file_name
    part = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, part_name = tempfile.mkstemp(prefix=f".{file.file_name}.", suffix=".part", dir=target.parent)
        part = Path(part_name)
        with os.fdopen(handle, "wb") as stream:
            if file.member is None:
                _download(file, stream, progress)
            else:
                with tempfile.TemporaryFile(dir=target.parent) as archive:
                    _download(file, archive, progress)
                    _unpack(file, archive, stream)
        if fault := _fault(file, part):
            raise WeightsError(_by_hand(file, target, f"what came is not that file: {fault}"))
        part.chmod(0o644)  # mkstemp makes it private; a shared cache is read by others too
        part.replace(target)
    except OSError as error:  # also urllib's URLError, HTTPError and time-outs
        raise WeightsError(_by_hand(file, target, str(error) or type(error).__name__)) from error
    finally:
        if part is not None:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
    return target


def _by_hand(file: WeightFile, target: Path, reason: str) -> str:
    what = "it" if file.member is None else f"its member {file.member}"
    return (
        f"Cannot fetch the weights {file.name!r} ({file.file_name}) from {file.url}: {reason}. "
        f"Download {file.page or file.url} elsewhere and save {what} as {target} "
        f"(MLDM_WEIGHTS names another folder); {file.instead}."
    )


def _download(file: WeightFile, stream: IO[bytes], progress: bool) -> None:
    from urllib.request import Request, urlopen

    from tqdm import tqdm

    logger.info("downloading %s from %s", file.file_name, file.url)
    request = Request(file.url, headers={"User-Agent": "mldm-plugin"})
    with urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        length = answer.headers.get("Content-Length")
        total = int(length) if length else file.size if file.member is None else None
        hide = None if progress else True  # None: shown on a terminal only
        with tqdm(total=total, desc=file.file_name, unit="B", unit_scale=True, disable=hide) as bar:
            came = 0
            while chunk := answer.read(CHUNK):
                stream.write(chunk)
                came += len(chunk)
                bar.update(len(chunk))
    if length and came != int(length):
        raise OSError(f"the connection broke after {came} of {length} bytes")


def _unpack(file: WeightFile, archive: IO[bytes], stream: IO[bytes]) -> None:
    """Write the one member of a zip archive to `stream`. No name in the archive is used as a path.

    Raises:
        OSError: no archive, a damaged one, or one whose member is missing or not of the expected size.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            info = next((info for info in opened.infolist() if info.filename == file.member), None)
            if info is None:
                raise OSError(f"the archive has no {file.member}")
            if file.size is not None and info.file_size != file.size:  # no more than file_size is ever unpacked
                raise OSError(f"{file.member} in the archive has {info.file_size} bytes, expected {file.size}")
            with opened.open(info) as member:
                shutil.copyfileobj(member, stream, CHUNK)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, ValueError, RuntimeError) as error:  # also if encrypted
        raise OSError(f"what came is no whole zip archive: {error}") from error


def _fault(file: WeightFile, path: Path) -> str | None:
    """What is wrong with the bytes at `path`, or None."""
    with path.open("rb") as stream:
        start = stream.read(256).lstrip().lower()
        if not start:
            return "it is empty"
        if start.startswith((b"<!doctype", b"<html", b"<?xml")):
            return "it is a web page (the host may want a click in a browser)"
        if file.size is not None and (size := path.stat().st_size) != file.size:
            return f"{size} bytes, expected {file.size}"
        if file.sha256 is None:
            return None
        stream.seek(0)
        digest = hashlib.sha256()
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != file.sha256:
        return f"its sha256 is {digest.hexdigest()}, expected {file.sha256}"
    return None


def load_state_dict(name: str) -> dict[str, Tensor]:
    """The tensors of `name` on the CPU, fetched on first use. No code of the file is ever run.

    Raises:
        WeightsError: as `fetch`, or a file that does not hold plain tensors.
    """
    path = fetch(name)
    try:
        return _read(path)
    except WeightsError as error:
        raise WeightsError(f"{path} is refused: {error} Delete it and fetch {name!r} again.") from None
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(
            f"{path} cannot be read ({type(error).__name__}: {reason}): it is damaged or not the file "
            f"expected for {name!r}. Delete it and fetch it again."
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix == ".pkl":
        from mldm_plugin.perceptual.arrays_only import load_arrays

        with path.open("rb") as stream:
            return load_arrays(stream)
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def fill(network: nn.Module, state: Mapping[str, Tensor], name: str, ignore: Iterable[str] = ()) -> nn.Module:
    """Put the tensors of `state` into `network`, all of them or none.

    Args:
        network: receives the weights.
        state: name → tensor. `num_batches_tracked` may be missing: it counts training steps only.
        name: of the weights, for the message.
        ignore: beginnings of names that the network has no use for, such as a classifier.

    Returns:
        `network`.

    Raises:
        WeightsError: entries missing, unexpected or of another shape, all named.
    """
    ignore = tuple(ignore)
    used = {key: value for key, value in state.items() if not key.startswith(ignore)}
    own = network.state_dict()
    missing = [key for key in own if key not in used and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in used if key not in own]
    shapes = [
        f"{key} {tuple(used[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in used and used[key].shape != own[key].shape
    ]
    faults = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    if found := [f"{what}: {', '.join(keys)}" for what, keys in faults if keys]:
        raise WeightsError(
            f"The weights {name!r} do not fit {type(network).__name__}; {'; '.join(found)}. "
            "Fetch the file that `mldm weights list` names."
        )
    network.load_state_dict(used, strict=False)
    return network
