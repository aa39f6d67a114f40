"""Checkpointing of the decoder: the same pictures and gradients from less memory."""

import pytest
import torch
from diffusers import AutoencoderTiny
from make_step import tiny_vae

from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.planning.tensor_memory import TensorMemory


def pictures_and_gradient(decoder, latents):
    leaf = latents.clone().requires_grad_()
    with TensorMemory() as memory:
        pictures = decoder(leaf)
        kept = memory.live
        (gradient,) = torch.autograd.grad(pictures.square().sum(), leaf)
    return pictures.detach(), gradient, kept


@pytest.mark.parametrize("tiny", [False, True])
def test_pictures_and_gradients_are_the_same_from_less_memory(tiny):
    decoder = LatentDecoder(tiny_vae(), tiny=AutoencoderTiny(latent_channels=4) if tiny else None)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    pictures, gradient, kept = pictures_and_gradient(decoder, latents)
    decoder.checkpointing = True
    same, same_gradient, less = pictures_and_gradient(decoder, latents)
    torch.testing.assert_close(same, pictures)
    torch.testing.assert_close(same_gradient, gradient)
    assert less < 0.6 * kept


def test_a_sixteenth_of_the_picture_tells_what_the_whole_keeps():
    decoder = LatentDecoder(tiny_vae())
    latents = torch.randn(1, 4, 32, 32)
    _, _, kept = pictures_and_gradient(decoder, latents)
    decoder.checkpointing = True  # does not change what would be kept without
    assert decoder.kept_bytes(latents) == pytest.approx(kept, rel=0.05)
    with torch.no_grad():
        assert decoder.kept_bytes(latents) == pytest.approx(kept, rel=0.05)


def test_the_hosts_own_vae_is_not_checkpointed():
    vae = tiny_vae()
    LatentDecoder(vae).checkpointing = True
    assert not any("forward" in vars(m) for m in vae.modules())
