"""TAESD: a decoder of 1.2 million parameters that reads the latents of Stable Diffusion's families.

It takes 0.28 TFLOP for a picture of 512² with its gradient, where the VAE takes 5.08. What that costs in exactness the
start-up table says for each loss: the cosine of its gradient with that of the VAE.

Source: Ollin Boer Bohan, github.com/madebyollin/taesd (MIT).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mldm_plugin.decode.checkpointed import checkpoint_blocks
from mldm_plugin.decode.latent_decoder import LatentDecoder, Method, said
from mldm_plugin.decode.stages import decoded
from mldm_plugin.errors import PresetError, WeightsError
from mldm_plugin.perceptual.frozen import Frozen
from mldm_plugin.requirements import pip_install

# Hub names by channels and scaling factor of the latents: SD 1.x and 2.x, SDXL, SD 3, FLUX.1 (and Z-Image, HiDream).
FAMILIES: dict[tuple[int, float], str] = {
    (4, 0.18215): "madebyollin/taesd",
    (4, 0.13025): "madebyollin/taesdxl",
    (16, 1.5305): "madebyollin/taesd3",
    (16, 0.3611): "madebyollin/taef1",
}


class TinyDecoder:
    """A tiny autoencoder in the VAE's place.

    Args:
        exact: the VAE, there until the start-up checks are done.
        tiny: an AutoencoderTiny, which reads latents as the denoiser sees them.
    """

    stand_in: str | None = "a tiny autoencoder"

    def __init__(self, exact: LatentDecoder, tiny: nn.Module) -> None:
        self.exact, self.checkpointing = exact, exact.checkpointing
        if self.checkpointing:
            checkpoint_blocks(tiny)
        self._decode = Frozen(Method(tiny, decoded))

    def __call__(self, latents: Tensor) -> Tensor:
        return self._decode(latents)

    def with_features(self, latents: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self._decode(latents, features=True)

    def image_size(self, latents: Tensor) -> tuple[int, int]:
        return self.exact.image_size(latents)

    def settle(self) -> None:
        self.exact.leave()
        self._decode.rest()


def load_tiny(name: str, config: Any) -> nn.Module:
    """The tiny autoencoder that stands in for a VAE with `config`.

    Args:
        name: `taesd` for the one of the VAE's family, else a folder or a name on the Hub.
        config: of the VAE, a mapping or an object, with latent_channels, scaling_factor and block_out_channels.

    Raises:
        PresetError: a VAE that does not say what it is, of no known family, or latents of another shape.
        WeightsError: it cannot be had.
    """
    try:
        from diffusers import AutoencoderTiny
    except ImportError as error:
        raise PresetError(f"vae: {name} needs diffusers: {pip_install('diffusers')}") from error
    channels, factor = said(config, "latent_channels"), said(config, "scaling_factor")
    levels = said(config, "block_out_channels") or said(config, "encoder_block_out_channels")
    if channels is None or factor is None or levels is None:
        raise PresetError(
            f"vae: {name} stands in for a VAE whose config has scaling_factor, latent_channels and block_out_channels; "
            "this one lacks some: use vae: model."
        )
    if name == "taesd":
        if (channels, factor) not in FAMILIES:
            raise PresetError(
                f"vae: taesd has no member for latents of {channels} channels and scaling factor {factor:g}: name an "
                "AutoencoderTiny of this model by folder or Hub name, or use vae: model."
            )
        name = FAMILIES[channels, factor]
    try:
        tiny = AutoencoderTiny.from_pretrained(name, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"vae: {name} cannot be loaded ({' '.join(str(error).split())[:200]}): on a machine without a network, "
            f"run `hf download {name} --local-dir FOLDER` elsewhere, and give the folder as vae."
        ) from error
    if tiny.config.latent_channels != channels or len(tiny.config.decoder_block_out_channels) != len(levels):
        raise PresetError(
            f"vae: {name} reads latents of {tiny.config.latent_channels} channels at 1/"
            f"{2 ** (len(tiny.config.decoder_block_out_channels) - 1)} of the picture, this model's have {channels} "
            f"at 1/{2 ** (len(levels) - 1)}: name the one of the model's family."
        )
    return tiny
