"""A ControlNet's layers: how far they are from the U-Net they were copied from, and whether it says anything at all."""

from __future__ import annotations

import math
import re
from pathlib import Path

from torch import Tensor

from mldm_plugin.doctor.layers import Changes, Layer, total
from mldm_plugin.doctor.tensors import DENOISER, Base, TensorFile
from mldm_plugin.errors import MldmError

# What `ControlNetModel` begins at zero: all that it adds to the U-Net, and all that it hears of its hint.
_ZERO = re.compile(r"controlnet_(down_blocks\.\d+|mid_block|cond_embedding\.conv_out)\.(weight|bias)")
_HINT = "controlnet_cond_embedding."


def read_controlnet(path: Path, start: Base | None) -> Changes:
    """Every layer's ‖W − W₀‖ beside ‖W₀‖.

    W₀ is the U-Net's layer of that name, or zero for a zero convolution; of the rest of the hint's embedding, which is
    drawn at random, it is not known. A ControlNet whose hint was taken away has an embedding of zeros alone, which is
    left out.

    Args:
        start: what it began as, the U-Net or another ControlNet; None where that is not known.

    Raises:
        MldmError: it cannot be read, or is no ControlNet.
    """
    file = TensorFile(path)
    if not any(map(_ZERO.fullmatch, file.names)):
        raise MldmError(
            f"{path} holds no zero convolutions (controlnet_down_blocks.…): it is no ControlNet of a U-Net."
        )
    found = Changes("ControlNet", tensors=len(file.names))
    modules: dict[str, list[str]] = {}
    for name in file.names:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    copied = start is None or start.get(DENOISER, "controlnet_mid_block.weight") is None
    hintless = not any(file[name].any() for name in file.names if name.startswith(_HINT))
    for module, names in modules.items():
        if not (hintless and module.startswith(_HINT)):
            _measure(module, {name: file[name] for name in names}, start, copied, found)
    return found


def _measure(module: str, tensors: dict[str, Tensor], start: Base | None, copied: bool, found: Changes) -> None:
    broken = [name for name, tensor in tensors.items() if not math.isfinite(tensor.double().norm().item())]
    if broken:
        found.broken += broken
        return
    if copied and any(map(_ZERO.fullmatch, tensors)):
        found.zero.append(Layer(module, total(tensor.double().norm().item() for tensor in tensors.values())))
        return
    before = {name: None if start is None else start.get(DENOISER, name) for name in tensors}
    known = {name: tensor for name, tensor in before.items() if tensor is not None}
    if len(known) < len(tensors):
        found.unmeasured += list(tensors)
    elif any(known[name].shape != tensor.shape for name, tensor in tensors.items()):
        found.misfits.append(module)
    else:
        moved = total((tensors[name].double() - known[name].double()).norm().item() for name in tensors)
        found.layers.append(Layer(module, moved, total(known[name].double().norm().item() for name in tensors)))
