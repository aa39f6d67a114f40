"""Autoencoders of hosts in the form of diffusers: each decodes as its host does.

The classes are as in kohya-ss/musubi-tuner at 30c658c4: `flux_2/flux2_models.py`, `zimage/zimage_autoencoder.py`,
`qwen_image/qwen_image_autoencoder_kl.py` and `wan/modules/vae.py`. tests/scripts/musubi/autoencoders.py is given the
real ones, where MLDM_MUSUBI names the folder of a checkout and MLDM_MUSUBI_PYTHON the interpreter of its environment.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import VQModel
from make_step import tiny_vae
from torch import nn
from torch.nn import functional as F

from mldm_plugin.attach.autoencoders import in_form_of_diffusers
from mldm_plugin.decode.latent_decoder import LatentDecoder

CHECKOUT = Path(os.environ.get("MLDM_MUSUBI", "checkout-of-musubi-tuner"))
PYTHON = os.environ.get("MLDM_MUSUBI_PYTHON", sys.executable)
MEAN, STD = [0.3, -0.2, 0.1, 0.5], [2.0, 0.5, 1.5, 1.0]


class Flux2(nn.Module):
    """Batch norm over 2×2 patches of its latents."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.ps = nn.Conv2d(3, 8, 4, 4), nn.ConvTranspose2d(4, 3, 4, 4), [2, 2]
        self.decoder.num_resolutions = 3
        self.bn = nn.BatchNorm2d(16, eps=1e-4, affine=False)
        self.bn.running_mean.normal_()
        self.bn.running_var.uniform_(0.5, 2)
        self.bn.eval()

    def encode(self, x):
        return self.bn(F.pixel_unshuffle(self.encoder(x).chunk(2, dim=1)[0], 2))

    def decode(self, z):
        scale = (self.bn.running_var + self.bn.eps).sqrt()[:, None, None]
        return self.decoder(F.pixel_shuffle(z * scale + self.bn.running_mean[:, None, None], 2))


class Silent:
    """A config that has every attribute, None where it was not given."""

    def __init__(self, **kwargs):
        self.__dict__.update(kwargs)

    def get(self, key, default=None):
        return self.__dict__.get(key, default)

    def __getattr__(self, name):
        return self.__dict__.get(name)


class Plain(nn.Module):
    """Decodes to a tensor, encodes to a posterior (Z-Image)."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(3, 4, 4, 4), nn.ConvTranspose2d(4, 3, 4, 4)
        self.config = Silent(scaling_factor=0.36, shift_factor=0.12, block_out_channels=(1, 1, 1))

    def encode(self, x, return_dict=True):
        mean = self.encoder(x)
        return SimpleNamespace(mode=lambda: mean, std=torch.zeros_like(mean))

    def decode(self, z, return_dict=True):
        return self.decoder(z)


class Film(nn.Module):
    """Statistics as attributes, films, tuples (Qwen-Image)."""

    def __init__(self):
        super().__init__()
        self.latents_mean, self.latents_std = MEAN, STD
        self.encoder = nn.Conv3d(3, 4, (1, 4, 4), (1, 4, 4))
        self.decoder = nn.Sequential(nn.Conv3d(4, 4, 1), nn.ConvTranspose3d(4, 3, (1, 4, 4), (1, 4, 4)))

    def encode(self, x, return_dict=True):
        mean = self.encoder(x)
        return (SimpleNamespace(mode=lambda: mean, std=torch.zeros_like(mean)),)

    def decode(self, z, return_dict=True):
        return (self.decoder(z).clamp(-1, 1),)


class Scaled(Film):
    """Scales by what it is given, and encodes to the mean (the network of Wan's)."""

    def encode(self, x, scale):
        return (self.encoder(x) - scale[0]) * scale[1]

    def decode(self, z, scale):
        return self.decoder(z / scale[1] + scale[0])


def statistics(z):
    mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    return (z - mean) / std, z * std + mean


def of_flux_2():
    vae = Flux2()
    return vae, vae.encode, vae.decode


def of_z_image():
    vae = Plain()
    return vae, lambda x: (vae.encoder(x) - 0.12) * 0.36, lambda z: vae.decoder(z / 0.36 + 0.12)


def of_qwen_image():
    vae = Film()
    return vae, *as_stills(vae)


def of_wan():
    network = Scaled()
    del network.latents_mean, network.latents_std
    return SimpleNamespace(model=network, mean=torch.tensor(MEAN), std=torch.tensor(STD)), *as_stills(network)


def as_stills(network):
    return (
        lambda x: statistics(network.encoder(x[:, :, None])[:, :, 0])[0],
        lambda z: network.decoder(statistics(z)[1][:, :, None])[:, :, 0],
    )


@pytest.mark.parametrize("make", [of_flux_2, of_z_image, of_qwen_image, of_wan])
def test_they_decode_and_encode_as_their_hosts_do(make):
    torch.manual_seed(3)
    vae, encode, decode = make()
    adapted, factor = in_form_of_diffusers(vae)
    assert factor is None
    images = torch.rand(2, 3, 32, 16) * 2 - 1
    with torch.no_grad():
        latents = encode(images)
    decoder = LatentDecoder(adapted, factor)
    torch.testing.assert_close(decoder.encode(images)[0], latents)
    latents.requires_grad_()
    pictures = decoder(latents)
    torch.testing.assert_close(pictures, decode(latents))
    assert torch.autograd.grad(pictures.sum(), latents)[0].abs().min() > 0
    assert decoder.image_size(latents) == (32, 16)


def test_those_of_diffusers_and_unknown_ones_stay_as_they_are():
    vae, unknown = tiny_vae(), nn.Linear(2, 2)
    assert in_form_of_diffusers(vae, 0.2) == (vae, 0.2)
    assert in_form_of_diffusers(unknown)[0] is unknown
    assert in_form_of_diffusers(None) == (None, None)


@pytest.mark.timeout(1800)
@pytest.mark.skipif(not CHECKOUT.is_dir(), reason="MLDM_MUSUBI names no folder")
def test_the_real_ones_decode_as_their_trainer_does():
    script = Path(__file__).parent / "scripts" / "musubi" / "autoencoders.py"
    here = os.pathsep.join([str(Path(__file__).parents[1]), str(CHECKOUT / "src")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    done = subprocess.run([PYTHON, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-5:] == ["flux_2", "flux_kontext", "z_image", "qwen_image", "wan"]


def test_kandinskys_latents_are_not_scaled_and_not_quantised():
    """As its pipelines decode, whatever the autoencoder's config says of a scale."""
    torch.manual_seed(0)
    widths = {"block_out_channels": (32, 32), "latent_channels": 4, "norm_num_groups": 8, "vq_embed_dim": 4}
    ends = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = VQModel(num_vq_embeddings=12, norm_type="spatial", **widths, **ends).eval()
    assert vae.config.scaling_factor == 0.18215
    decoder = LatentDecoder(*in_form_of_diffusers(vae))
    latents, picture = torch.randn(1, 4, 4, 4), torch.randn(1, 3, 8, 8)
    assert torch.allclose(decoder(latents), vae.decode(latents, force_not_quantize=True).sample, atol=1e-6)
    assert not torch.allclose(decoder(latents), vae.decode(latents).sample, atol=1e-2)
    assert torch.allclose(decoder.encode(picture)[0], vae.encode(picture).latents, atol=1e-6)
    assert decoder.image_size(latents) == (8, 8)
