"""Decoding only the windows of a picture that the losses look at, with the group norms of the whole picture.

The decoder of diffusers' AutoencoderKL is a trunk on the latent grid (convolution, middle block with attention) and
a chain of layers (residual blocks, upsamplers, output) that leads to pixels and costs nearly everything. A layer mixes
near pixels only, but for its group norms, which need mean and variance of the whole picture. So the trunk runs on the
whole latents, the chain on windows, and mean and variance are taken once from the clean latents and held fixed.

Before each layer a window is cropped to itself plus the halo that this and all later layers need, so nothing is
approximated but the statistics: with those of the same latents, a window is the full decode to rounding. What is
missing from its gradient is the part that goes through the statistics.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mldm_plugin.errors import PresetError

# Sides of windows are whole multiples of so many latent pixels, so that faces share a batch. Chosen:
# tests/benchmarks/region_decode.py --part grid counts what rounding up costs and how many batches it saves.
GRID = 4

Normalise = Callable[[nn.GroupNorm, Tensor], Tensor]


class Window(NamedTuple):
    """A rectangle of a picture, in latent pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class _Layer:
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


class RegionDecode(nn.Module):
    """Latents to pictures where the losses look; elsewhere the picture that it is given.

    Args:
        vae: an AutoencoderKL. Its decoder becomes part of this module and is frozen, so hand over a copy.

    Raises:
        PresetError: another autoencoder, or a decoder of another structure.
    """

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        _check(vae)
        self.post_quant_conv: Any = getattr(vae, "post_quant_conv", None)
        self.decoder: Any = vae.decoder
        self._layers = _chain(self.decoder)
        self.downscale = math.prod(layer.scale for layer in self._layers)
        self._groups = [norm.num_groups for norm in _norms(self.decoder)]
        self._work = [layer.work for layer in self._layers]
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def statistics(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` needs to know of the clean latents, and their pictures, which are made on the way.

        Args:
            z: (n, C, h, w) in the VAE's own scale.

        Returns:
            (n, S) float32 mean and variance of each group of each norm, to be kept with a picture (S = 1600, 6.4 kB,
            for Stable Diffusion); the pictures (n, 3, H, W). Neither has a gradient.
        """
        measured: list[Tensor] = []

        def normalise(norm: nn.GroupNorm, x: Tensor) -> Tensor:
            measured.append(_moments(norm, x))
            return _normalised(norm, x, measured[-1])

        x = self._trunk(z)
        for layer in self._layers:
            x = layer.run(layer.module, x, normalise)
        return torch.cat(measured, dim=2).flatten(1), x

    def forward(self, z: Tensor, regions: Sequence[Tensor], statistics: Tensor, background: Tensor) -> Tensor:
        """`background` with the windows around `regions` decoded from `z`.

        Nothing here waits for the device.

        Args:
            z: (n, C, h, w) in the VAE's own scale; gradients flow.
            regions: n tensors (K_i, 4) on the CPU, pixel x0, y0, x1, y1, also partly outside; K_i may be 0.
            statistics: (n, S) of the clean latents of the same pictures.
            background: (n, 3, H, W), the pictures outside of the windows.

        Returns:
            (n, 3, H, W) in the dtype of `background`, not clamped. A window holds its region and some pixels more; a
            picture whose windows would cost as much as all of it is plainly decoded whole, its own norms and all.
        """
        latents, layout = z.split(1), defaultdict(list)
        for i, boxes in enumerate(regions):
            for window in self.windows(boxes, *z.shape[-2:]):
                layout[window.height, window.width].append((i, window))
        pictures = list((background + z[:, :0].sum()).split(1))  # a gradient of zeros where there is no region
        rows = sorted({i for batch in layout.values() for i, _ in batch})
        if not rows:
            return torch.cat(pictures)
        features = dict(zip(rows, self._trunk(torch.cat([latents[i] for i in rows])).split(1), strict=True))
        for size, batch in layout.items():
            whole = size == z.shape[-2:]
            normalise = _by_itself if whole else self._held(torch.stack([statistics[i] for i, _ in batch]))
            decoded = self._decode([features[i] for i, _ in batch], [window for _, window in batch], normalise)
            for (i, window), pixels in zip(batch, decoded.split(1), strict=True):
                pictures[i] = _pasted(pictures[i], pixels, window, self.downscale)
        return torch.cat(pictures)

    def windows(self, regions: Tensor, height: int, width: int) -> list[Window]:
        """The windows that are decoded for `regions` (K, 4) of a picture with latents of `height` x `width`.

        Two that cost no more as one are merged. Where two others overlap, both give the same pixels.
        """
        cost = _Cost(self._layers, self._work, height, width)
        kept: list[Window] = []
        for region in regions.tolist():
            window = _cover(region, self.downscale, height, width)
            while window is not None and (partner := cost.partner(window, kept)) is not None:
                kept.remove(partner)
                window = _union(window, partner)
            kept += [window] if window is not None else []
        whole = Window(0, 0, height, width)
        if sum(cost(window) for window in kept) >= cost(whole):
            return [whole]
        return [_on_grid(window, height, width) for window in kept]

    def share(self, regions: Sequence[Tensor], height: int, width: int) -> float:
        """Work of the chain for these pictures, as a part of decoding them whole; memory goes with it."""
        cost = _Cost(self._layers, self._work, height, width)
        done = sum(cost(window) for boxes in regions for window in self.windows(boxes, height, width))
        return done / max(1, len(regions) * cost(Window(0, 0, height, width)))

    def _trunk(self, z: Tensor) -> Tensor:
        """The features (n, C', h, w) that the chain starts from."""
        z = z if self.post_quant_conv is None else self.post_quant_conv(z)
        return self.decoder.mid_block(self.decoder.conv_in(z))

    def _held(self, statistics: Tensor) -> Normalise:
        """Normalises by `statistics` (K, S), whose next mean and variance are taken at each call."""
        given = iter(statistics.unflatten(1, (2, -1)).split(self._groups, dim=2))
        return lambda norm, x: _normalised(norm, x, next(given))

    def _decode(self, features: Sequence[Tensor], windows: Sequence[Window], normalise: Normalise) -> Tensor:
        """The pixels (K, 3, H', W') of K windows of one size.

        Args:
            features: K tensors (1, C', h, w), the trunk's output for the picture of each window.
        """
        height, width = features[0].shape[-2:]
        pieces, held = features, [Window(0, 0, height, width)] * len(windows)
        for layer in self._layers:
            wanted = [_extent(w, layer.before, layer.halo, height, width) for w in windows]
            x = layer.run(layer.module, _crop(pieces, held, wanted), normalise)
            pieces, held = x.split(1), [_scaled(w, layer.scale) for w in wanted]
        return _crop(pieces, held, [_scaled(w, self.downscale) for w in windows])


class _Cost:
    """Multiplications in the chain for a window of a picture with latents of `height` x `width`."""

    def __init__(self, layers: Sequence[_Layer], work: Sequence[int], height: int, width: int) -> None:
        self._layers, self._work, self._size = layers, work, (height, width)

    def __call__(self, window: Window) -> int:
        window = _on_grid(window, *self._size)
        extents = (_extent(window, layer.before, layer.halo, *self._size) for layer in self._layers)
        return sum(work * e.height * e.width for work, e in zip(self._work, extents, strict=True))

    def partner(self, window: Window, others: Sequence[Window]) -> Window | None:
        """The first of `others` that costs no more together with `window` than both do by themselves."""
        mine = self(window)
        return next((o for o in others if self(_union(window, o)) <= mine + self(o)), None)


def _cover(region: Sequence[float], downscale: int, height: int, width: int) -> Window | None:
    """The smallest window that holds the part of a region inside the picture; None if there is none."""
    x0, y0 = (max(0.0, start) for start in region[:2])
    x1, y1 = min(region[2], width * downscale), min(region[3], height * downscale)
    if x1 <= x0 or y1 <= y0:
        return None
    top, left = math.floor(y0 / downscale), math.floor(x0 / downscale)
    return Window(top, left, math.ceil(y1 / downscale) - top, math.ceil(x1 / downscale) - left)


def _union(a: Window, b: Window) -> Window:
    """The smallest window that holds both."""
    top, left = min(a.top, b.top), min(a.left, b.left)
    bottom, right = max(a.top + a.height, b.top + b.height), max(a.left + a.width, b.left + b.width)
    return Window(top, left, bottom - top, right - left)


def _on_grid(window: Window, height: int, width: int) -> Window:
    """`window` with sides rounded up to multiples of GRID or to the picture's, in the middle or shifted inside."""

    def rounded(start: int, length: int, whole: int) -> tuple[int, int]:
        wanted = min(whole, -(-length // GRID) * GRID)
        return min(max(0, start - (wanted - length) // 2), whole - wanted), wanted

    (top, tall), (left, wide) = rounded(*window[::2], height), rounded(*window[1::2], width)
    return Window(top, left, tall, wide)


def _extent(window: Window, scale: int, halo: int, height: int, width: int) -> Window:
    """`window` at a level `scale` times larger, with `halo` pixels around it, shifted into the picture.

    It is shifted, not clipped: windows of one size stay of one size, and where it touches the picture's edge, zero
    padding is what it is in the full decode.
    """

    def along(start: int, length: int, whole: int) -> tuple[int, int]:
        wanted = min(whole * scale, length * scale + 2 * halo)
        return min(max(0, start * scale - halo), whole * scale - wanted), wanted

    (top, tall), (left, wide) = along(*window[::2], height), along(*window[1::2], width)
    return Window(top, left, tall, wide)


def _scaled(window: Window, scale: int) -> Window:
    return Window(*(scale * side for side in window))


def _crop(pieces: Sequence[Tensor], held: Sequence[Window], wanted: Sequence[Window]) -> Tensor:
    """The parts `wanted` of `pieces`, each (1, C, h, w) and showing `held`, as one batch."""
    if list(held) == list(wanted):
        return torch.cat(list(pieces))
    return torch.cat(
        [
            piece[:, :, w.top - h.top :, w.left - h.left :][:, :, : w.height, : w.width]
            for piece, h, w in zip(pieces, held, wanted, strict=True)
        ]
    )


def _pasted(picture: Tensor, pixels: Tensor, window: Window, downscale: int) -> Tensor:
    """A copy of `picture` (1, 3, H, W) with `pixels` in its `window`."""
    top, left, height, width = _scaled(window, downscale)
    picture = picture.clone()
    picture[:, :, top : top + height, left : left + width] = pixels
    return picture


def _by_itself(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return norm(x)


def _moments(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Mean and (biased) variance of each group of `x`, (n, 2, G), float32 or the wider type of `x`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide.unflatten(1, (norm.num_groups, -1)), dim=(2, 3, 4), correction=0)
    return torch.stack([mean, variance], dim=1)


def _normalised(norm: nn.GroupNorm, x: Tensor, moments: Tensor) -> Tensor:
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


def _chain(decoder: Any) -> list[_Layer]:
    """The layers after the middle block in order, with their halos: what is needed of a layer's input around a window
    is what is needed of its output plus its margin, divided by its scale and rounded up."""
    links = []
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            links.append(_Layer(resnet, _residual, resnet.conv1.padding[0] + resnet.conv2.padding[0]))
        for upsampler in block.upsamplers or ():
            links.append(_Layer(upsampler, _upsample, upsampler.conv.padding[0], scale=2))
    head = nn.Sequential(decoder.conv_norm_out, decoder.conv_act, decoder.conv_out)
    links.append(_Layer(head, _output, decoder.conv_out.padding[0]))
    halo, before, layers = 0, math.prod(link.scale for link in links), []
    for link in reversed(links):
        halo, before = -(-(halo + link.margin) // link.scale), before // link.scale
        layers.append(_Layer(link.module, link.run, link.margin, link.scale, before, halo))
    return layers[::-1]


def _norms(decoder: Any) -> Iterator[nn.GroupNorm]:
    """The group norms after the middle block, in the order they are called."""
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            yield from (resnet.norm1, resnet.norm2)
    yield decoder.conv_norm_out


def _check(vae: nn.Module) -> None:
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
    for norm in _norms(decoder):
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
