"""Latents to pictures: the trainer's scale, shift and normalisation undone, and made again by `encode`."""

import pytest
import torch
from make_step import tiny_vae

from mldm_plugin.decode.latent_decoder import LatentDecoder

MEAN, STD = [0.5, -0.25, 1.0, 0.0], [2.0, 0.5, 1.0, 4.0]


@pytest.mark.parametrize(
    ("own", "trainers"),
    [
        ({}, lambda z: z * 0.5),
        ({"scaling_factor": 0.13025}, lambda z: z * 0.13025),
        (
            {"latents_mean": MEAN, "latents_std": torch.tensor(STD).reshape(1, 4, 1, 1)},
            lambda z: (z - torch.tensor(MEAN)[:, None, None]) * 0.5 / torch.tensor(STD)[:, None, None],
        ),
    ],
)
def test_decodes_what_the_trainer_scaled(own, trainers):
    vae = tiny_vae()
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        z = vae.encode(pictures).latent_dist.mode()
        expected = vae.decode(z).sample
    decoder = LatentDecoder(vae, **own)
    assert torch.allclose(decoder(trainers(z)), expected, atol=1e-5)
    assert torch.allclose(decoder.encode(pictures)[0], trainers(z), atol=1e-5)


def test_a_shift_of_the_vae_is_added_back():
    vae = tiny_vae()
    vae.register_to_config(shift_factor=0.3)
    z = torch.randn(1, 4, 8, 8)
    assert torch.allclose(LatentDecoder(vae)((z - 0.3) * 0.5), vae.decode(z).sample, atol=1e-5)
