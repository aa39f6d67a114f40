"""Tensors in a file of the cache: written whole or not at all, and recognised by their digest."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mldm_plugin.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor


def digest(state: Mapping[str, Tensor]) -> str:
    """sha256 of names, kinds, shapes and contents, in the order of the names: the same whatever file they came in."""
    import torch

    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A new file beside `path` to write into; it becomes `path` at the end, and is removed if anything fails."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)  # mkstemp makes it private; a shared cache is read by others too
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write(state: Mapping[str, Tensor], path: Path, about: Mapping[str, str]) -> None:
    """Write `state` as safetensors, with `about` and its digest in the header."""
    from safetensors.torch import save_file

    with appearing(path) as part:
        tensors = {name: tensor.contiguous().clone() for name, tensor in state.items()}
        save_file(tensors, part, metadata={**about, "digest": digest(state)})


def read(path: Path, expected: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file that `write` made.

    Args:
        path: the file.
        expected: their digest; None takes the one in the file's header, which tells damage but no exchange.

    Raises:
        WeightsError: no such file format, or other tensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            about = opened.metadata() or {}
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (it is no dict)
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError, OverflowError) as error:
        raise WeightsError(f"it is no whole safetensors file ({error}).") from None
    expected = expected or about.get("digest")
    if expected is None:
        raise WeightsError("its header has no digest; expected a file that `mldm weights fetch` wrote.")
    if (found := digest(state)) != expected:
        raise WeightsError(f"the digest of its tensors is {found}, expected {expected}.")
    return state


def metadata(path: Path) -> dict[str, str]:
    """What the header says about the file; empty where it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            return opened.metadata() or {}
    except (SafetensorError, OSError, ValueError):
        return {}
