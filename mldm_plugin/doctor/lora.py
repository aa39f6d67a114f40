"""A LoRA's layers, in diffusers' names or kohya's: how large the change is that each of them makes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mldm_plugin.doctor.layers import Changes, Layer, printable
from mldm_plugin.doctor.tensors import DENOISER, Base, TensorFile
from mldm_plugin.errors import MldmError

# X.lora.down.weight, X.lora_A.weight, X.lora_linear_layer.down.weight of diffusers; X.lora_down.weight of kohya.
_NAME = re.compile(r"(?P<layer>.+?)[._](?:lora|lora_linear_layer)[._](?P<side>down|up|A|B)(?:\.\w+)?\.weight")
_DOWN = ("down", "A")
_ALPHA, _TUCKER = ".alpha", ".lora_mid.weight"
_SETTINGS = "lora_adapter_metadata"  # under which diffusers keeps peft's settings in the file
_LARGEST = 1e30  # of an α that is a number at all; chosen
_PLAIN = re.compile(
    r"\^?(?P<name>[\w.-]+)"
)  # a pattern of peft's that is a name and no more; ^ if nothing may precede it
_PARTS = {
    "unet.": DENOISER,
    "transformer.": DENOISER,
    "lora_unet_": DENOISER,
    "text_encoder.": "text_encoder",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    **{f"text_encoder_{k}.": f"text_encoder_{k}" for k in (2, 3)},
    **{f"lora_te{k}_": f"text_encoder_{k}" for k in (2, 3)},
}


@dataclass(frozen=True)
class _Pair:
    """The names of a layer's two matrices, and of its α where it has one."""

    layer: str
    down: str
    up: str
    alpha: str | None


def read_lora(path: Path, base: Base | None) -> Changes:
    """Every layer's ‖ΔW‖ = α/r ‖B A‖, beside ‖W₀‖ of the base.

    B is zero before training, so a layer with ‖ΔW‖ = 0 has not moved.

    Args:
        base: that it goes onto; None where it is not known.

    Raises:
        MldmError: it cannot be read, or is no LoRA.
    """
    file = TensorFile(path)
    pairs = {name: pair for pair in _pairs(file) for name in (pair.down, pair.up, pair.alpha) if name}
    if not pairs:
        raise MldmError(
            f"{path} holds no LoRA of two matrices a layer (lora_down and lora_up, or lora_A and lora_B); its tensors "
            f"are called {printable(', '.join(file.names[:2])) or 'nothing'}."
        )
    found = Changes("LoRA", tensors=len(file.names), unmeasured=[name for name in file.names if name not in pairs])
    settings = _settings(file)
    for pair in dict.fromkeys(pairs.values()):
        _measure(pair, file, settings, base, found)
    return found


def _pairs(file: TensorFile) -> Iterator[_Pair]:
    sides: dict[str, dict[bool, str]] = {}
    tucker = {name.removesuffix(_TUCKER) for name in file.names if name.endswith(_TUCKER)}
    for name in file.names:
        if (match := _NAME.fullmatch(name)) and match["layer"] not in tucker:
            sides.setdefault(match["layer"], {})[match["side"] in _DOWN] = name
    names = set(file.names)
    for layer, of in sides.items():
        if len(of) == 2:
            alpha = f"{layer}{_ALPHA}"
            yield _Pair(layer, of[True], of[False], alpha if alpha in names else None)


def _measure(
    pair: _Pair, file: TensorFile, settings: dict[str, object] | None, base: Base | None, found: Changes
) -> None:
    names = [name for name in (pair.down, pair.up, pair.alpha) if name]
    tensors = {name: file[name] for name in names}
    down, up = tensors[pair.down], tensors[pair.up]
    if broken := [name for name, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]:
        found.broken += broken
        return
    if not _fit(up, down):
        found.unmeasured += [pair.down, pair.up]
        return
    part, name = _part_of(pair.layer)
    own = None if pair.alpha is None else tensors[pair.alpha]
    scale = _scale(part, name, len(down), settings) if own is None else _own_scale(part, len(down), own, settings)
    if scale is None:
        found.unscaled.append(pair.layer)
        return
    moved = abs(scale) * product_norm(up, down)
    if not math.isfinite(moved):
        found.broken += names
        return
    before = None if base is None else base.get(part, f"{name}.weight")
    shape = (len(up), down.flatten(1).shape[1])
    if before is not None and (before.dim() < 2 or before.flatten(1).shape != shape):
        found.misfits.append(pair.layer)
        before = None
    norm = None if before is None else before.double().norm().item()
    found.layers.append(Layer(pair.layer, moved, norm))


def _fit(up: Tensor, down: Tensor) -> bool:
    """Whether they are B (out, r, …) and A (r, in, …) of numbers, none of these 0."""
    if not all(side.is_floating_point() and side.dim() >= 2 and side.numel() for side in (up, down)):
        return False
    return up.flatten(1).shape[1] == len(down)


def product_norm(up: Tensor, down: Tensor) -> float:
    """‖B A‖ of B (out, r, …) and A (r, in, …), from matrices of r x r alone: ‖B A‖² = tr(BᵀB AAᵀ). Where r is more than
    out or in, from B A itself, so that nothing larger than B and A is made.

    >>> product_norm(torch.tensor([[3.0], [0.0]]), torch.tensor([[0.0, 4.0]]))
    12.0
    """
    b, a = up.double().flatten(1), down.double().flatten(1)
    if len(a) > min(len(b), a.shape[1]):
        return (b @ a).norm().item()
    return ((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt().item()


def _part_of(layer: str) -> tuple[str, str]:
    """The network that a layer is of, and its name in there."""
    for prefix, part in _PARTS.items():
        if layer.startswith(prefix):
            return part, layer.removeprefix(prefix)
    return DENOISER, layer


def _settings(file: TensorFile) -> dict[str, object] | None:
    """None where there are some that cannot be read."""
    try:
        return dict(json.loads(file.about.get(_SETTINGS, "{}")))
    except (ValueError, TypeError, RecursionError):
        return None


def _scale(part: str, name: str, rank: int, settings: dict[str, object] | None) -> float | None:
    """α/r by the file's settings, None where they do not tell it; 1 where there are none, as diffusers reads such a
    file. With rank-stabilised LoRA α/√r."""
    if settings is None:
        return None
    prefix = _prefix(part, settings)
    told = settings.get(f"{prefix}.lora_alpha", rank)
    patterns = settings.get(f"{prefix}.alpha_pattern") or {}
    if not isinstance(patterns, dict):
        return None
    for pattern, own in patterns.items():
        plain = _PLAIN.fullmatch(pattern)
        if plain is None:  # a regular expression, and that of a stranger: it is not run
            return None
        if name == plain["name"] or (pattern[0] != "^" and name.endswith(f".{plain['name']}")):
            told = own
            break
    if isinstance(told, bool) or not isinstance(told, (int, float)) or not abs(told) < _LARGEST:
        return None
    return told / _divisor(rank, prefix, settings)


def _own_scale(part: str, rank: int, alpha: Tensor, settings: dict[str, object] | None) -> float | None:
    """The scale of a layer by the α that the file has for it alone, None if that is not one number."""
    told = settings or {}
    return None if alpha.numel() != 1 else alpha.item() / _divisor(rank, _prefix(part, told), told)


def _prefix(part: str, settings: dict[str, object]) -> str:
    """What peft's settings of that network are called by."""
    return next((p for p in ("unet", "transformer", part) if f"{p}.lora_alpha" in settings), part)


def _divisor(rank: int, prefix: str, settings: dict[str, object]) -> float:
    return math.sqrt(rank) if settings.get(f"{prefix}.use_rslora") else rank
