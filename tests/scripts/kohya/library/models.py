"""Networks, schedulers and flags for the scripts of this folder. Autoencoders keep the mean colour of 8×8 blocks."""

import argparse
from types import SimpleNamespace

import torch
from torch import nn


class Config(SimpleNamespace):
    def get(self, name, default=None):
        return getattr(self, name, default)

    def __getitem__(self, name):
        return getattr(self, name)


class Distribution:
    def __init__(self, mean):
        self.mean = mean

    def sample(self):
        return self.mean + 1e-3 * torch.randn_like(self.mean)

    def mode(self):
        return self.mean


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, images):
        colours = nn.functional.avg_pool2d(images, 8) * self.gain
        mean = torch.cat([colours, colours.mean(1, keepdim=True)], dim=1)
        return torch.cat([mean, torch.full_like(mean, -30.0)], dim=1)


class Decoder(nn.Module):
    num_resolutions = 4

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, latents):
        return nn.functional.interpolate(latents[:, :3], scale_factor=8.0) * self.gain


class AutoencoderKL(nn.Module):
    """As diffusers' one; its config says another scaling factor than the scripts use, as that of kohya's SDXL."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
        self.requires_grad_(False)
        self.config = Config(scaling_factor=0.18215, block_out_channels=(8, 8, 8, 8))

    def encode(self, images, return_dict=True):
        distribution = Distribution(self.encoder(images).chunk(2, dim=1)[0] * 4)
        return SimpleNamespace(latent_dist=distribution) if return_dict else (distribution,)

    def decode(self, latents, return_dict=True):
        return (self.decoder(latents / 4),)


class AutoEncoder(nn.Module):
    """As Flux's in kohya's library: it scales by itself and draws random numbers."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
        self.requires_grad_(False)
        self.scale_factor, self.shift_factor = 0.3611, 0.1159

    def encode(self, images):
        mean, logvar = self.encoder(images).chunk(2, dim=1)
        return self.scale_factor * (mean + (0.5 * logvar).exp() * torch.randn_like(mean) - self.shift_factor)

    def decode(self, latents):
        return self.decoder(latents / self.scale_factor + self.shift_factor)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, noisy_latents, timesteps):
        return self.conv(noisy_latents)


class DDPMScheduler:
    def __init__(self):
        self.config = Config(num_train_timesteps=1000, prediction_type="epsilon")
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        self.alphas_cumprod = torch.cumprod(1 - betas, dim=0)

    def mix(self, one, other, timesteps):
        abar = self.alphas_cumprod[timesteps][:, None, None, None]
        return abar.sqrt() * one + (1 - abar).sqrt() * other

    def add_noise(self, latents, noise, timesteps):
        return self.mix(latents, noise, timesteps)

    def get_velocity(self, latents, noise, timesteps):
        return self.mix(noise, -latents, timesteps)


class FlowMatchEulerDiscreteScheduler:
    def __init__(self):
        self.config = Config(num_train_timesteps=1000)


def parse_args():
    parser = argparse.ArgumentParser()
    for flag in ("flip_aug", "random_crop", "alpha_mask", "cache_latents", "v_parameterization", "masked_loss"):
        parser.add_argument(f"--{flag}", action="store_true")
    for flag in ("train_data_dir", "reg_data_dir", "output_dir"):
        parser.add_argument(f"--{flag}")
    for flag, value in (("resolution", 64), ("train_batch_size", 2), ("max_train_steps", 4), ("max_timestep", 1000)):
        parser.add_argument(f"--{flag}", type=int, default=value)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--min_snr_gamma", type=float)
    parser.add_argument("--loss_type", default="l2")
    return parser.parse_args()


def difference(pred, target, loss_type):
    if loss_type == "l2":
        return nn.functional.mse_loss(pred, target, reduction="none")
    return nn.functional.smooth_l1_loss(pred, target, reduction="none", beta=0.1)


def save(args, network):
    from pathlib import Path

    from safetensors.torch import save_file

    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    generator = {"generator": torch.get_rng_state()}
    save_file({**network.state_dict(), **generator}, Path(args.output_dir) / "weights.safetensors")
