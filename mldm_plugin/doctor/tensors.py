"""Reading tensors one by one, from safetensors alone: nothing is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mldm_plugin.doctor.layers import printable
from mldm_plugin.errors import MldmError

DENOISER = "denoiser"  # U-Net or transformer
_DENOISERS = ("unet", "transformer")
_PREFIXES = ("model.diffusion_model.",)  # of a checkpoint in one file


class TensorFile:
    """The tensors of a .safetensors file by name.

    Raises:
        MldmError: it cannot be read as one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file: Any = safe_open(path, "pt")
        except (SafetensorError, OSError) as error:
            raise MldmError(f"{path} cannot be read as safetensors ({printable(str(error))}): is it whole?") from error
        self.names: list[str] = list(self._file.keys())
        self.about: dict[str, str] = self._file.metadata() or {}

    def __getitem__(self, name: str) -> Tensor:
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except (SafetensorError, AttributeError, KeyError) as error:  # a kind of number that torch has not
            raise MldmError(f"A tensor of {self._path} cannot be read ({printable(str(error))}).") from error
        return tensor


class Base:
    """The weights that a training began from, found by their names however these are written.

    Args:
        path: a pipeline's folder, the folder of one network, or a checkpoint in one file.
        variant: of its files, for example fp16, to be taken where there are several.
    """

    def __init__(self, path: Path, variant: str | None = None) -> None:
        self._files: dict[Path, TensorFile] = {}
        self._places: dict[tuple[str, str], tuple[Path, str]] = {}
        for part, file in _files(path, variant):
            self._files[file] = TensorFile(file)
            for name in self._files[file].names:
                plain = name
                for prefix in _PREFIXES:
                    plain = plain.removeprefix(prefix)
                self._places.setdefault((part, _plain(plain)), (file, name))

    def __len__(self) -> int:
        return len(self._places)

    def get(self, part: str, name: str) -> Tensor | None:
        """A tensor of a part (`DENOISER`, text_encoder, …); None where there is none, or it is quantised.

        Raises:
            MldmError: it holds NaN or infinity.
        """
        place = self._places.get((part, _plain(name)))
        if place is None:
            return None
        tensor = self._files[place[0]][place[1]]
        if not tensor.is_floating_point():
            return None
        if not torch.isfinite(tensor.float()).all():
            raise MldmError(f"{place[0]}, the base, holds NaN or infinity: nothing can be compared with it.")
        return tensor


def find_base(name: str, variant: str | None = None) -> Base | None:
    """The base of that name: a path, or one of the Hub that this machine has. None where it has no safetensors here."""
    path = Path(name)
    if not path.exists():
        try:
            from huggingface_hub import snapshot_download

            path = Path(snapshot_download(name, local_files_only=True))
        except (ImportError, OSError, ValueError):  # no such package; not in its cache; no name of the Hub
            return None
    base = Base(path, variant)
    return base if len(base) else None


def _files(path: Path, variant: str | None) -> list[tuple[str, Path]]:
    if path.is_file():
        return [(DENOISER, path)] if path.suffix == ".safetensors" else []
    found = []
    for folder in (path, *sorted(p for p in path.iterdir() if p.is_dir())):
        part = DENOISER if folder in (path, *(path / name for name in _DENOISERS)) else folder.name
        # X.fp16.safetensors holds the same as X.safetensors, rounded: unless it was asked for, it stands behind.
        files = sorted(
            folder.glob("*.safetensors"), key=lambda f: (f".{variant}." not in f.name, f.name.count("."), f.name)
        )
        found += [(part, file) for file in files]
    return found


def _plain(name: str) -> str:
    return name.replace(".", "_")
