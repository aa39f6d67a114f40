"""A value whose gradient has been computed already, as a part of somebody else's graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Known = tuple[Tensor, Tensor]  # a tensor of somebody's graph, and the gradient there


def with_gradient(value: Tensor, of: Tensor, gradient: Tensor | None) -> Tensor:
    """`value` as a function of `of`, whose gradient is known.

    So activations can be freed as soon as a part of a loss has its gradient, long before the backward pass that asks
    for it. It can be differentiated once.

    Args:
        value: a scalar, or (n,) one value for each image of `of`. A gradient that it has already stays beside this one.
        of: (n, …).
        gradient: ∂(sum of `value`)/∂`of`, in the shape of `of`. Each value depends on its own image alone. None, or an
            `of` that wants no gradient, gives back `value` as it is.

    Returns:
        `value`, whose backward pass hands `of` the gradient times what comes from above.

    >>> x = torch.tensor([2.0, 3.0], requires_grad=True)
    >>> with_gradient(x.detach() ** 2, x, 2 * x.detach()).sum().backward()
    >>> x.grad
    tensor([4., 6.])
    """
    if gradient is None or not of.requires_grad or not torch.is_grad_enabled():
        return value
    known: Tensor = _Known.apply(of, value, gradient)
    return known


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, of: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = of.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = ctx.saved_tensors
        each = upstream.reshape(-1, *[1] * (gradient.ndim - 1))
        return (each * gradient).to(ctx.dtype), upstream, None
