"""The part of AutoencoderKL's decoder that leads from the latent grid to pixels, as a chain of layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mldm_plugin.errors import PresetError

Normalise = Callable[[nn.GroupNorm, Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """One link of the chain, called with its module, a crop (K, C, h, w) and what normalises.

    Attributes:
        margin: so many pixels at a border of the output see past that border.
        scale: how much larger the output is.
        before: how much larger the input is than the latents.
        halo: so many pixels of the input around a window reach into the window's pixels, by this or a later layer.
    """

    module: Any
    run: Callable[[Any, Tensor, Normalise], Tensor]
    margin: int
    scale: int = 1
    before: int = 1
    halo: int = 0

    @property
    def work(self) -> int:
        """Multiplications for each pixel of the input."""
        convolutions = [m for m in self.module.modules() if isinstance(m, nn.Conv2d)]
        return self.scale**2 * sum(c.weight.numel() for c in convolutions)


def by_itself(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return norm(x)


def moments(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Mean and (biased) variance of each group of `x`, (n, 2, G), float32 or the wider type of `x`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide.unflatten(1, (norm.num_groups, -1)), dim=(2, 3, 4), correction=0)
    return torch.stack([mean, variance], dim=1)


def normalised(norm: nn.GroupNorm, x: Tensor, moments: Tensor) -> Tensor:
    """The group norm of `x` with mean and variance `moments`, (n, 2, G), held fixed: one affine map a channel."""
    mean, variance = moments[..., None].unbind(1)
    scale = torch.rsqrt(variance + norm.eps) * norm.weight.unflatten(0, (norm.num_groups, -1))
    shift = norm.bias.unflatten(0, (norm.num_groups, -1)) - mean * scale
    scale, shift = (v.flatten(1)[:, :, None, None] for v in (scale, shift))
    return torch.addcmul(shift, x, scale).to(x.dtype)


def _residual(block: Any, x: Tensor, normalise: Normalise) -> Tensor:
    """diffusers' ResnetBlock2D without time embedding; its dropout is 0 in evaluation."""
    hidden = block.conv1(block.nonlinearity(normalise(block.norm1, x)))
    hidden = block.conv2(block.nonlinearity(normalise(block.norm2, hidden)))
    shortcut = x if block.conv_shortcut is None else block.conv_shortcut(x)
    return (shortcut + hidden) / block.output_scale_factor


def _upsample(upsampler: Any, x: Tensor, normalise: Normalise) -> Tensor:
    return upsampler(x)


def _output(head: Any, x: Tensor, normalise: Normalise) -> Tensor:
    norm, activation, convolution = head
    return convolution(activation(normalise(norm, x)))


def chain(decoder: Any) -> list[Layer]:
    """The layers after the middle block in order, with their halos: what is needed of a layer's input around a window
    is what is needed of its output plus its margin, divided by its scale and rounded up."""
    links = []
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            links.append(Layer(resnet, _residual, resnet.conv1.padding[0] + resnet.conv2.padding[0]))
        for upsampler in block.upsamplers or ():
            links.append(Layer(upsampler, _upsample, upsampler.conv.padding[0], scale=2))
    head = nn.Sequential(decoder.conv_norm_out, decoder.conv_act, decoder.conv_out)
    links.append(Layer(head, _output, decoder.conv_out.padding[0]))
    halo, before, layers = 0, math.prod(link.scale for link in links), []
    for link in reversed(links):
        halo, before = -(-(halo + link.margin) // link.scale), before // link.scale
        layers.append(Layer(link.module, link.run, link.margin, link.scale, before, halo))
    return layers[::-1]


def norms(decoder: Any) -> Iterator[nn.GroupNorm]:
    """The group norms after the middle block, in the order they are called."""
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            yield from (resnet.norm1, resnet.norm2)
    yield decoder.conv_norm_out


def check(vae: nn.Module) -> None:
    name = type(vae).__name__
    if name != "AutoencoderKL":
        _refuse(f"the VAE is {_a(name)}, expected diffusers' AutoencoderKL")
    decoder: Any = vae.decoder
    if not isinstance(decoder.conv_norm_out, nn.GroupNorm):
        _refuse(f"the VAE's decoder normalises with {type(decoder.conv_norm_out).__name__}, expected GroupNorm")
    for block in decoder.up_blocks:
        if type(block).__name__ != "UpDecoderBlock2D":
            _refuse(f"the VAE's decoder has {_a(type(block).__name__)}, expected only UpDecoderBlock2D")
        for part in (*block.resnets, *(block.upsamplers or ())):
            if not _is_known(part):
                _refuse(f"the VAE's decoder has {_a(type(part).__name__)} of a kind that is not known here")
    for norm in norms(decoder):
        if not norm.affine:
            _refuse("the VAE's decoder has group norms without weights")
    for part in (*decoder.up_blocks, decoder.conv_out):
        for module in part.modules():
            if isinstance(module, nn.Conv2d) and not _keeps_size(module):
                _refuse(f"the VAE's decoder has the convolution {module}, expected one that keeps sizes")


def _is_known(part: Any) -> bool:
    """Whether `part` is a residual block without time embedding, or nearest neighbours and a convolution."""
    if type(part).__name__ == "ResnetBlock2D":
        return part.time_emb_proj is None and part.upsample is None and part.downsample is None
    if type(part).__name__ == "Upsample2D":
        plain = part.use_conv and not part.use_conv_transpose and getattr(part, "interpolate", True)
        return plain and getattr(part, "norm", None) is None and part.name == "conv"
    return False


def _keeps_size(convolution: nn.Conv2d) -> bool:
    """Whether it pads with zeros what its kernel takes away, on all sides alike."""
    side = convolution.kernel_size[0]
    plain = convolution.stride == convolution.dilation == (1, 1) and convolution.padding_mode == "zeros"
    return (
        plain and convolution.kernel_size == (side, side) and convolution.padding == (side // 2,) * 2 and side % 2 == 1
    )


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "AEIOU" else f"a {name}"


def _refuse(what: str) -> None:
    raise PresetError(f"decode: region cannot be used here: {what}. Set decode: full.")
