"""What the VAE and the text encoder make of a data set, kept on disk so that it is computed once.

An entry is a safetensors file of one tensor: of a picture the parameters of the VAE's posterior, of a caption the text
encoder's output. Its name is the sha256 of all that it depends on, so an entry is never out of date: another picture,
another transform or another network has another name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from mldm_plugin.data.annotations import read_picture
from mldm_plugin.errors import DataError

log = logging.getLogger(__name__)


class LatentsCache:
    """The entries of one transform and one pair of networks, in a folder that any number of them may share.

    Args:
        folder: made when first written to.
        transform: what is done to a picture before it is encoded, but for its mirroring.
        vae, text_encoder: their `network_digest`.
    """

    def __init__(self, folder: Path, transform: Mapping[str, Any], vae: str, text_encoder: str) -> None:
        self.folder = folder
        self._transform = json.dumps(transform, sort_keys=True)
        self._vae = vae
        self._text_encoder = text_encoder

    def posterior_key(self, picture: str, mirrored: bool) -> str:
        """The key of a picture, given by its `picture_digest`."""
        return _sha256("posterior", self._vae, self._transform, picture, "mirrored" if mirrored else "as it is")

    def text_key(self, input_ids: Tensor) -> str:
        """The key of a caption, given by its tokens (L,)."""
        return _sha256("text", self._text_encoder, json.dumps(input_ids.tolist()))

    def path(self, key: str) -> Path:
        """Where an entry is or would be."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def read(self, key: str) -> Tensor:
        """An entry, on the CPU.

        Raises:
            DataError: it is not there, or is not what was written.
        """
        path = self.path(key)
        try:
            entry = load(path.read_bytes())
        except FileNotFoundError as error:
            raise DataError(
                f"{path} is missing from the latents cache: start again and it is made. Several machines need one "
                "folder that all of them see (--latents_cache_dir)."
            ) from error
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is damaged ({error}): start again and it is made anew.") from error
        if entry.keys() != {"value", "sha256"} or not entry["sha256"].equal(_checksum(key, entry["value"])):
            raise DataError(f"{path} is damaged (its checksum is wrong): start again and it is made anew.")
        return entry["value"]

    def holds(self, key: str) -> bool:
        """Whether an entry is there and whole; one that is damaged is named in the log."""
        if not self.path(key).exists():
            return False
        try:
            self.read(key)
        except DataError as error:
            log.warning(f"{error} That is done now.")
            return False
        return True

    def write(self, key: str, value: Tensor) -> None:
        """Store an entry: the file appears whole or not at all, whoever else writes the same.

        Raises:
            DataError: it cannot be written.
        """
        path = self.path(key)
        value = value.detach().cpu().contiguous()
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(save({"value": value, "sha256": _checksum(key, value)}))
            partial.replace(path)
        except OSError as error:
            raise DataError(
                f"{self.folder} cannot be written ({error}): make room, or name another --latents_cache_dir; what is "
                "kept already is not encoded again."
            ) from error


def picture_digest(stored: Mapping[str, Any], name: str) -> str:
    """The sha256 of a stored picture's file; of its pixels where there is no file at hand.

    Raises:
        DataError: it is missing, or cannot be read.
    """
    content, path = stored.get("bytes"), Path(stored.get("path") or "")
    if content is None and path.is_file():
        content = path.read_bytes()
    if content is None:
        picture = read_picture(stored, name)
        return _sha256(picture.mode, str(picture.size), hashlib.sha256(picture.tobytes()).hexdigest())
    return hashlib.sha256(content).hexdigest()


def network_digest(network: nn.Module, config: Mapping[str, Any]) -> str:
    """The sha256 of a network: its weights as they are now, their precision, and its configuration.

    What a configuration says about its own file (where it lay, the version that wrote it) does not count.
    """
    told = {k: v for k, v in config.items() if not k.startswith("_") and k != "transformers_version"}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, weight in sorted(network.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(_bytes(weight))
    return digest.hexdigest()


def _checksum(key: str, value: Tensor) -> Tensor:
    """uint8 (32,): that this value belongs to this key."""
    digest = hashlib.sha256(f"{key} {value.dtype} {tuple(value.shape)}".encode())
    digest.update(_bytes(value))
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _sha256(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
