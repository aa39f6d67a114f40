"""A decoder that keeps few activations: those inside its ResNet blocks are computed again for the backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# The blocks of diffusers' autoencoders. Their own switch is not used: before diffusers 0.32 it worked in training mode
# alone, and frozen networks are never in it.
_BLOCKS = ("ResnetBlock2D", "AutoencoderTinyBlock", "ResBlock", "EfficientViTBlock")


class Checkpointing:
    """Gradient checkpointing of the ResNet blocks of a network, switched on inside `with`.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost".
    """

    def __init__(self, network: nn.Module) -> None:
        self._on = False
        self.blocks = [m for m in network.modules() if type(m).__name__ in _BLOCKS]
        for block in self.blocks:
            block.forward = self._wrap(block.forward)

    @contextlib.contextmanager
    def on(self, on: bool = True) -> Iterator[None]:
        """Inside, and in the backward pass of what is computed inside, activations are not kept; or, if not on, are."""
        before, self._on = self._on, on
        try:
            yield
        finally:
            self._on = before

    def _wrap(self, forward: Any) -> Any:
        def maybe_checkpointed(*args: Any, **kwargs: Any) -> Tensor:
            if self._on and torch.is_grad_enabled():
                return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
            return forward(*args, **kwargs)

        return maybe_checkpointed
