"""The local variables of loops, as diffusers' scripts call them, and the steps that are read out of them."""

from dataclasses import replace
from types import SimpleNamespace

import torch
from diffusers import EDMEulerScheduler
from make_step import make_step

from mldm_plugin.attach.annotation import Annotation
from mldm_plugin.attach.scope import Scope, read
from mldm_plugin.data.batch import FaceBoxes
from mldm_plugin.engine.schedule import NoiseSchedule

SD = {"latents": "latents", "noise": "noise", "noisy_latents": "noisy_latents", "model_pred": "model_pred"}
SDXL = {"latents": "model_input", "noise": "noise", "noisy_latents": "noisy_model_input", "model_pred": "model_pred"}
FLUX = {"latents": "pixel_latents", "noise": "noise", "noisy_latents": "noisy_model_input", "model_pred": "noise_pred"}


def annotation_of(step):
    n = len(step)
    return Annotation(("a",) * n, step.person_mask, FaceBoxes(step.face_boxes), {})


def variables_of(step, names=SD, **more):
    """The locals of a loop that has computed `step`."""
    own = {name: getattr(step, field) for field, name in names.items()}
    return {**own, "timesteps": step.timesteps, "target": step.target, "args": SimpleNamespace(), **more}


def read_back(step, variables, scheduler, pictures="own", annotation="own", loss=None):
    schedule = NoiseSchedule.from_scheduler(scheduler)
    pictures = step.pixel_values if pictures == "own" else pictures
    annotation = annotation_of(step) if annotation == "own" else annotation
    given = step.model_pred.mean() if loss is None else loss
    step, parts = read(given, Scope(variables), annotation, pictures, schedule, apart=loss is not None)
    if parts is not None:
        parts.check()
    return step


def assert_same(one, other, fields=("latents", "noise", "noisy_latents", "model_pred", "target", "timesteps")):
    for field in fields:
        assert torch.equal(getattr(one, field), getattr(other, field)), field


def edm_step():
    scheduler = EDMEulerScheduler()
    base = make_step((0, 0))
    timesteps = scheduler.timesteps[[100, 800]]
    sigmas = scheduler.sigmas[[100, 800]]
    noisy = scheduler.add_noise(base.latents, base.noise, timesteps)
    return scheduler, replace(
        base, timesteps=timesteps, sigmas=sigmas, noisy_latents=noisy, target=base.latents, base_loss=None
    )
