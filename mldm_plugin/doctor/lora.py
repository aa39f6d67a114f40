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

from mldm_plugin.doctor.layers import Changes, Layer
from mldm_plugin.doctor.tensors import DENOISER, Base, TensorFile
from mldm_plugin.errors import MldmError

# X.lora.down.weight, X.lora_A.weight, X.lora_linear_layer.down.weight of diffusers; X.lora_down.weight of kohya.
_NAME = re.compile(r"(?P<layer>.+?)[._](?:lora|lora_linear_layer)[._](?P<side>down|up|A|B)(?:\.\w+)?\.weight")
_DOWN = ("down", "A")
_ALPHA, _TUCKER = ".alpha", ".lora_mid.weight"
_SETTINGS = "lora_adapter_metadata"  # under which diffusers keeps peft's settings in the file
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
            f"are called {', '.join(file.names[:2]) or 'nothing'}."
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


def _measure(pair: _Pair, file: TensorFile, settings: dict[str, object], base: Base | None, found: Changes) -> None:
    down, up = file[pair.down], file[pair.up]
    broken = [n for n, t in ((pair.down, down), (pair.up, up)) if not torch.isfinite(t.float()).all()]
    if broken:
        found.broken += broken
        return
    if up.flatten(1).shape[1] != len(down):
        found.unmeasured += [pair.down, pair.up]
        return
    part, name = _part_of(pair.layer)
    scale = _scale(part, name, len(down), None if pair.alpha is None else file[pair.alpha].item(), settings)
    before = None if base is None else base.get(part, f"{name}.weight")
    if before is not None and before.flatten(1).shape != (len(up), down.flatten(1).shape[1]):
        found.misfits.append(pair.layer)
        before = None
    norm = None if before is None else before.double().norm().item()
    found.layers.append(Layer(pair.layer, abs(scale) * product_norm(up, down), norm))


def product_norm(up: Tensor, down: Tensor) -> float:
    """‖B A‖ of B (out, r, …) and A (r, in, …), from matrices of r x r alone: ‖B A‖² = tr(BᵀB AAᵀ).

    >>> product_norm(torch.tensor([[3.0], [0.0]]), torch.tensor([[0.0, 4.0]]))
    12.0
    """
    b, a = up.double().flatten(1), down.double().flatten(1)
    return ((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt().item()


def _part_of(layer: str) -> tuple[str, str]:
    """The network that a layer is of, and its name in there."""
    for prefix, part in _PARTS.items():
        if layer.startswith(prefix):
            return part, layer.removeprefix(prefix)
    return DENOISER, layer


def _settings(file: TensorFile) -> dict[str, object]:
    try:
        return dict(json.loads(file.about.get(_SETTINGS, "{}")))
    except (ValueError, TypeError):
        return {}


def _scale(part: str, name: str, rank: int, alpha: float | None, settings: dict[str, object]) -> float:
    """α/r; 1 where nothing says α, as diffusers reads such a file. With rank-stabilised LoRA α/√r."""
    prefix = next((p for p in ("unet", "transformer", part) if f"{p}.lora_alpha" in settings), part)
    if alpha is None:
        patterns = settings.get(f"{prefix}.alpha_pattern")
        told = settings.get(f"{prefix}.lora_alpha", rank)
        for pattern, own in (patterns if isinstance(patterns, dict) else {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", name):
                told = own
                break
        alpha = float(told) if isinstance(told, (int, float)) else float(rank)
    return alpha / (math.sqrt(rank) if settings.get(f"{prefix}.use_rslora") else rank)
