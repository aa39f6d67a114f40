"""musubi-tuner's own autoencoders, small and random: what the losses decode is what its trainers decode."""

import sys

import torch
from musubi_tuner.flux import flux_models
from musubi_tuner.flux_2 import flux2_models
from musubi_tuner.qwen_image.qwen_image_autoencoder_kl import AutoencoderKLQwenImage
from musubi_tuner.zimage import zimage_utils
from musubi_tuner.zimage.zimage_autoencoder import AutoencoderKL

from mldm_plugin.attach.autoencoders import in_form_of_diffusers
from mldm_plugin.decode.latent_decoder import LatentDecoder

if not torch.cuda.is_available():
    torch.cuda.current_device = lambda: 0  # musubi_tuner.wan asks for it when it is imported
from musubi_tuner.wan.modules.vae import WanVAE, WanVAE_


def check(name, vae, latents, expected):
    decoder = LatentDecoder(*in_form_of_diffusers(vae))
    torch.testing.assert_close(decoder(latents).clamp(-1, 1), expected.clamp(-1, 1), atol=1e-4, rtol=1e-4)
    assert decoder.encode(decoder(latents).detach())[0].shape == latents.shape
    sys.stdout.write(f"{name}\n")


def wan():
    vae = WanVAE.__new__(WanVAE)  # its constructor reads a file
    vae.dtype, vae.mean, vae.std = torch.float32, torch.randn(16), torch.rand(16) + 0.5
    vae.scale = [vae.mean, 1 / vae.std]
    vae.model = WanVAE_(dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval().requires_grad_(False)
    return vae


torch.manual_seed(0)
with torch.no_grad():
    vae = flux2_models.AutoEncoder(flux2_models.AutoEncoderParams(ch=32, ch_mult=[1, 1], num_res_blocks=1)).eval()
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    latents = torch.randn(2, 128, 4, 4)
    check("flux_2", vae, latents, vae.decode(latents))

    params = flux_models.AutoEncoderParams(
        resolution=32,
        in_channels=3,
        ch=32,
        out_ch=3,
        ch_mult=[1, 1],
        num_res_blocks=1,
        z_channels=4,
        scale_factor=0.36,
        shift_factor=0.12,
    )
    vae, latents = flux_models.AutoEncoder(params).eval(), torch.randn(2, 4, 8, 8)
    check("flux_kontext", vae, latents, vae.decode(latents))

    vae = AutoencoderKL(
        block_out_channels=(32, 32),
        layers_per_block=1,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    latents = torch.randn(2, 16, 8, 8)
    check("z_image", vae, latents, vae.decode(zimage_utils.shift_scale_latents_for_decode(latents)))

    vae, latents = (
        AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval(),
        torch.randn(2, 16, 4, 4),
    )
    check("qwen_image", vae, latents, vae.decode_to_pixels(latents[:, :, None]) * 2 - 1)

    vae, latents = wan(), torch.randn(2, 16, 4, 4)
    check("wan", vae, latents, torch.stack(vae.decode(list(latents[:, :, None])))[:, :, 0])
