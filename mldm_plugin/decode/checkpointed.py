"""A decoder that keeps few activations: those inside its ResNet blocks are computed again for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

# The blocks of diffusers' autoencoders. Their own switch is not used: it keeps whole levels, and before diffusers 0.32
# it worked in training mode alone, and frozen networks are never in it.
_BLOCKS = ("ResnetBlock2D", "AutoencoderTinyBlock", "ResBlock", "EfficientViTBlock")


class Checkpointed(nn.Module):
    """A block whose inside is computed again in the backward pass.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost".
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.block(*args, **kwargs)
        return checkpoint(self.block, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def checkpoint_blocks(network: nn.Module) -> int:
    """Put a `Checkpointed` around every ResNet block of `network`; how many there are."""
    found = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if type(child).__name__ in _BLOCKS
    ]
    for parent, name, child in found:
        setattr(parent, name, Checkpointed(child))
    return len(found)
