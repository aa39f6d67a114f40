"""What `mldm bench` measures, by subject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mldm_plugin.bench import distances
from mldm_plugin.bench.expected import Gate, measured_gates
from mldm_plugin.bench.measure import Case
from mldm_plugin.bench.networks import Networks
from mldm_plugin.bench.strategies import DecodeEverything, WholeBatchGate, WithPlugin, plain_loss
from mldm_plugin.bench.workload import Batch, Loss, People, Timesteps, pixel_path, training_step
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.perceptual.masked_distance import masked_squared_norm
from mldm_plugin.plugins import Plugins

PLAIN = "plain step"
OURS = "with the plugin"
CACHED = ", latents cached"
EVERYTHING = "decode everything, then mask"
WHOLE_BATCH = "whole-batch gate, one t"

SPATIAL, PACKAGE = "masked_lpips spatial", "lpips spatial x mask"
FEATURES, LITERAL = "masked_lpips features", "upsample, then mask (eq. 2)"
DISTANCE, LITERAL_DISTANCE = "features, distance alone", "upsample, then mask, alone"
FACE = "face"

LossAlone = tuple[Callable[[], Tensor], list[Tensor]]


def strategies(networks: Networks, stack: LossStack, vae: Any) -> dict[str, tuple[Loss, Gate]]:
    """Ways from a network's output to a loss, and who opens their gate."""
    return {
        PLAIN: (plain_loss, "none"),
        OURS: (WithPlugin(stack), "each image"),
        EVERYTHING: (DecodeEverything(stack, vae, networks.noise_scheduler), "none"),
        WHOLE_BATCH: (WholeBatchGate(stack, vae, networks.noise_scheduler), "whole batch"),
    }


def step_cases(
    networks: Networks, ways: dict[str, tuple[Loss, Gate]], batch: Batch, timesteps: Timesteps
) -> list[Case]:
    """A whole training step. AdamW is the optimizer, as in diffusers' scripts."""
    optimizer = torch.optim.AdamW(networks.controlnet.parameters(), lr=1e-6)
    cases = []
    for name, (loss, gate) in ways.items():
        for cached in (False, True) if name in (PLAIN, OURS) else (False,):
            for k in measured_gates(len(batch), gate):
                run = partial(training_step, networks, optimizer, batch, timesteps(len(batch), k), loss, cached=cached)
                cases.append(Case(name + CACHED * cached, gate, k, run))
    cases[0].run()  # makes the optimizer's state, which is there in every later step
    return cases


def pixel_cases(
    networks: Networks, ways: dict[str, tuple[Loss, Gate]], batch: Batch, timesteps: Timesteps
) -> list[Case]:
    """From the network's output to the gradient there."""
    return [
        Case(name, gate, k, partial(pixel_path, networks, batch, timesteps(len(batch), k), loss))
        for name, (loss, gate) in ways.items()
        for k in measured_gates(len(batch), gate)
    ]


class LossesAlone:
    """The losses of the plugin, and plain versions of them, on pictures at hand.

    Args:
        face_crop: side of the face network's input; None is its own.
    """

    def __init__(self, plugins: Plugins, face_crop: int | None) -> None:
        masked_lpips = plugins.losses["masked_lpips"]
        self.spatial, self.features = (masked_lpips(form=f, weights="random") for f in ("spatial", "features"))
        self.features.network = self.spatial.network  # one VGG16 is enough
        self.face = plugins.losses["face"](weights="random")
        crop = self.face.features.crop
        self.face.features.crop = replace(crop, size=face_crop or crop.size)
        self.package = distances.lpips_package()

    def on(self, people: People) -> dict[str, LossAlone]:
        """Name → the loss of each image, (N,), and the tensors that its gradient goes to."""
        images, package, alphas = people.pixel_values, self.package, self.features.layer_weights
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
        pred_images = (images + 0.2 * noise).requires_grad_()
        step, mask = _step_of(people, pred_images), people.person_mask.to(images)
        package.to(images)
        with torch.no_grad():
            target, predicted = (distances.features(package, x) for x in (images, pred_images))
        leaves = [p.requires_grad_() for p in predicted]
        area = mask.sum(dim=(2, 3))

        def literal() -> Tensor:
            with torch.no_grad():
                of_target = distances.features(package, images)
            return distances.upsample_then_mask(distances.features(package, pred_images), of_target, alphas, mask)

        def distance() -> Tensor:
            layers = zip(alphas, leaves, target, strict=True)
            return sum(a * (masked_squared_norm(p - t, mask) / area).sqrt()[:, 0] for a, p, t in layers)

        return {
            SPATIAL: (lambda: self.spatial(step), [pred_images]),
            PACKAGE: (lambda: distances.spatial_times_mask(package, pred_images, images, mask), [pred_images]),
            FEATURES: (lambda: self.features(step), [pred_images]),
            LITERAL: (literal, [pred_images]),
            DISTANCE: (distance, leaves),
            LITERAL_DISTANCE: (lambda: distances.upsample_then_mask(leaves, target, alphas, mask), leaves),
            FACE: (lambda: self.face(step), [pred_images]),
        }


def loss_cases(functions: dict[str, LossAlone]) -> list[Case]:
    """Value and gradient of each loss alone."""
    return [Case(name, "none", None, partial(value_and_gradient, *of)) for name, of in functions.items()]


def value_and_gradient(function: Callable[[], Tensor], leaves: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The mean over images, and its gradient at `leaves`."""
    value = function().mean()
    value.backward()
    gradients: list[Any] = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return value.detach(), gradients


def _step_of(people: People, pred_images: Tensor) -> DiffusionStep:
    """A step as a loss sees it, of which only the pictures matter."""
    nothing = people.pixel_values.new_zeros(len(people.pixel_values), 4, 1, 1)
    step = DiffusionStep(
        latents=nothing,
        noise=nothing,
        noisy_latents=nothing,
        timesteps=torch.zeros(len(nothing), dtype=torch.long, device=nothing.device),
        model_pred=nothing,
        target=nothing,
        person_mask=people.person_mask,
        face_boxes=people.face_boxes,
    )
    return replace(step, pred_images=pred_images, target_images=people.pixel_values)
