"""Losses with random networks, and steps as a trainer on a GPU hands them over."""

import os
import time
from dataclasses import fields, replace

import torch

from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.plugins import load_plugins

LOSSES = {
    "masked_lpips spatial": ("masked_lpips", {"form": "spatial"}),
    "masked_lpips features": ("masked_lpips", {"form": "features"}),
    "masked_lpips alex": ("masked_lpips", {"network": "alex"}),
    "latent_perceptual": ("latent_perceptual", {}),
    "masked_mse": ("masked_mse", {}),
    "face vggface2_resnet50": ("face", {"network": "vggface2_resnet50"}),
    "face vggface2_inception": ("face", {"network": "vggface2_inception", "form": "features"}),
    "face dlib_resnet": ("face", {"network": "dlib_resnet"}),
    "identity": ("identity", {}),
    "dino": ("dino", {}),
    "keypoints": ("keypoints", {"of": "both"}),
}
SIDE = 64
# Of all of `make gpu-check`; MLDM_GPU_SECONDS names another. What is not measured by then is told, and no fault.
SECONDS, STARTED = float(os.environ.get("MLDM_GPU_SECONDS", "360")), time.monotonic()


def share_of_time(waiting):
    """Seconds for one of so many benchmarks that are still to be run, a few kept back for the end."""
    return max((SECONDS - 15 - (time.monotonic() - STARTED)) / waiting, 1.0)


def built(name):
    """One of `LOSSES`, its network random if it has one."""
    kind, options = LOSSES[name]
    network = {} if kind in ("masked_mse", "latent_perceptual") else {"weights": "random"}
    return load_plugins().losses[kind](**options, **network)


def moved(step, device):
    """A step as a trainer on `device` hands it over: boxes stay on the host."""
    tensors = {f.name: getattr(step, f.name) for f in fields(DiffusionStep)}
    there = {n: t.detach().to(device) for n, t in tensors.items() if isinstance(t, torch.Tensor)}
    there["model_pred"].requires_grad_()
    return replace(step, **there)
