"""The decode of an autoencoder of diffusers, and what the network's stages make on the way."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mldm_plugin.errors import LossError


def decoded(vae: Any, latents: Tensor, features: bool = False) -> Any:
    """Pictures of `latents` (N, C, h, w), in the network's own scale; with `features` a pair of them and of what
    `stages` gave, one (N, C_l, h_l, w_l) a stage.

    Raises:
        LossError: a network whose stages are not known, or that decodes in tiles.
    """
    if not features:
        return vae.decode(latents, return_dict=False)[0]
    found: list[list[Tensor]] = []
    hooks = []
    for stage in stages(vae):
        own: list[Tensor] = []
        found.append(own)
        hooks.append(stage.register_forward_hook(lambda _module, _given, out, own=own: own.append(out)))
    try:
        pictures = vae.decode(latents, return_dict=False)[0]
    finally:
        for hook in hooks:
            hook.remove()
    if any(sum(map(len, own)) != len(latents) for own in found):
        raise LossError(
            "the VAE decodes in tiles, so its features are not those of whole pictures: switch it off "
            "(vae.disable_tiling()), or leave losses that need pred_features out."
        )
    whole = (torch.cat(own) if len(own) > 1 else own[0] for own in found)  # slicing makes more than one
    return pictures, tuple(stage.squeeze(2) if stage.ndim == 5 else stage for stage in whole)  # films of one frame


def stages(vae: Any) -> list[nn.Module]:
    """The parts of a decoder whose outputs are its features, in order: the middle and each level of an AutoencoderKL,
    what is upsampled next, and the last block, of an AutoencoderTiny.

    Raises:
        LossError: it has no such parts.
    """
    decoder: Any = getattr(getattr(vae, "vae", vae), "decoder", None)  # of a film's autoencoder, see `Still`, its own
    if hasattr(decoder, "up_blocks"):
        middle = getattr(decoder, "mid_block", None)
        return [*([] if middle is None else [middle]), *decoder.up_blocks]
    if hasattr(decoder, "layers"):
        return [before for before, after in pairwise(decoder.layers) if isinstance(after, nn.Upsample)] + [
            decoder.layers[-2]
        ]
    raise LossError(
        f"{type(vae).__name__} has no decoder with up_blocks whose features a loss could compare: leave losses that "
        "need pred_features out."
    )
