"""Networks whose tensors have shapes and no data, computing in the precisions that a GPU would."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

META = torch.device("meta")


@contextlib.contextmanager
def building(dtype: torch.dtype, device: torch.device = META) -> Iterator[None]:
    """Networks made inside are on `device` and in `dtype` from the start."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def compute_like_cuda_autocast(network: nn.Module, dtype: torch.dtype) -> None:
    """Have `network` convert as under `torch.autocast("cuda", dtype)`, on whatever device it is.

    Convolutions and linear layers compute in `dtype`, of weights that are converted each time and kept for the
    backward pass; normalisations compute in float32 and give float32. `torch.autocast` itself needs a CUDA device, and
    on the CPU it leaves normalisations in half precision, which keeps half of what a GPU keeps.

    Source: PyTorch's documentation, "Automatic Mixed Precision package", CUDA op-specific behaviour.
    """
    for module in network.modules():
        if type(module) in (nn.Conv2d, nn.Linear):
            module.forward = _in_half(module, dtype)
        elif type(module) in (nn.GroupNorm, nn.LayerNorm):
            module.forward = _in_float32(module)


def _in_half(module: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        weight, bias = module.weight.to(dtype), None if module.bias is None else module.bias.to(dtype)
        if isinstance(module, nn.Linear):
            return F.linear(x.to(dtype), weight, bias)
        return module._conv_forward(x.to(dtype), weight, bias)

    return forward


def _in_float32(module: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        weight, bias = (None if p is None else p.float() for p in (module.weight, module.bias))
        if isinstance(module, nn.GroupNorm):
            return F.group_norm(x.float(), module.num_groups, weight, bias, module.eps)
        return F.layer_norm(x.float(), module.normalized_shape, weight, bias, module.eps)

    return forward


@contextlib.contextmanager
def flash_attention() -> Iterator[None]:
    """Attention that keeps queries, keys, values, its output and a number a row, as the kernels of GPUs do.

    Tensors without data would take the implementation that keeps the whole attention map.
    """
    original = F.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, is_causal: bool = False, **__: Any) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, is_causal)[0]

    F.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original
