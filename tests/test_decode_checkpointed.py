"""Checkpointing of the decoder: the same pictures and gradients from less memory."""

import pytest
import torch
from diffusers import AutoencoderTiny
from make_step import tiny_vae

from mldm_plugin.decode.checkpointed import Checkpointed
from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.decode.tiny import TinyDecoder
from mldm_plugin.perceptual.frozen import build_seeded, computing_in
from mldm_plugin.planning.tensor_memory import TensorMemory


def pictures_and_gradient(decoder, latents):
    leaf = latents.clone().requires_grad_()
    decoder(latents)  # weights are laid out and rounded, which is not to be counted
    with TensorMemory() as memory:
        pictures = decoder(leaf)
        kept = memory.live
        (gradient,) = torch.autograd.grad(pictures.square().sum(), leaf)
    return pictures.detach(), gradient, kept


def decoder(tiny, checkpointing):
    exact = LatentDecoder(tiny_vae(), checkpointing=checkpointing)
    if not tiny:
        return exact
    return TinyDecoder(exact, build_seeded(lambda: AutoencoderTiny(latent_channels=4)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tiny", [False, True])
def test_pictures_and_gradients_are_the_same_from_less_memory(tiny, dtype):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with computing_in(dtype):
        pictures, gradient, kept = pictures_and_gradient(decoder(tiny, False), latents)
        same, same_gradient, less = pictures_and_gradient(decoder(tiny, True), latents)
    torch.testing.assert_close(same, pictures)
    torch.testing.assert_close(same_gradient, gradient)
    assert less < 0.6 * kept


def test_the_hosts_own_vae_is_not_checkpointed():
    vae = tiny_vae()
    before = list(vae.state_dict())
    LatentDecoder(vae, checkpointing=True)
    assert list(vae.state_dict()) == before
    assert not any(isinstance(m, Checkpointed) for m in vae.modules())
