"""What `mldm bench` measures, by subject."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mldm_plugin.bench import others
from mldm_plugin.bench.host import Batch, Host, Loss, decoded_step, shrink_faces, timesteps_of
from mldm_plugin.bench.measure import Candidate, Gate, gated_numbers
from mldm_plugin.bench.sizes import Size
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.perceptual.masked_distance import masked_squared_norm
from mldm_plugin.plugins import Plugins

PLAIN = "plain step"
OURS = "with the plugin"
CACHED = ", latents cached"
EVERYTHING = "decode everything, then mask"
WHOLE_BATCH = "whole-batch gate, one t"
MEASURED = "with the plugin, gradients measured"
ANSWERS = {2: "with the plugin, ddim-2", 4: "with the plugin, ddim-4"}

SPATIAL, PACKAGE = "masked_lpips spatial", "lpips spatial x mask"
FEATURES, LITERAL = "masked_lpips features", "upsample, then mask (eq. 2)"
DISTANCE, LITERAL_DISTANCE = "features, distance alone", "upsample, then mask, alone"
FACE, IDENTITY = "face", "identity"

Ways = dict[str, tuple[Loss, Gate]]  # from a network's output to a loss, and who opens their gate
LossAlone = tuple[Callable[[], Tensor], list[Tensor]]  # of each image, (N,), and where its gradient goes


def ways_to_a_loss(host: Host, stack: LossStack, vae: Any) -> Ways:
    """The plugin, and what stands beside it, decoding with `vae`."""
    return {
        PLAIN: (others.plain_loss, "none"),
        OURS: (lambda step: stack(step).loss, "each image"),
        EVERYTHING: (others.DecodeEverything(stack, vae, host.noise_scheduler), "none"),
        WHOLE_BATCH: (others.WholeBatchGate(stack, vae, host.noise_scheduler), "whole batch"),
    }


def step_candidates(host: Host, stack: LossStack, ways: Ways, batch: Batch) -> list[Candidate]:
    """A whole training step. AdamW is the optimizer, as in diffusers' scripts."""
    optimizer = torch.optim.AdamW(host.controlnet.parameters(), lr=1e-6)
    candidates = []
    for name, (loss, gate) in ways.items():
        for cached in (False, True) if name in (PLAIN, OURS) else (False,):
            runs = {
                k: partial(host.train, optimizer, batch, _timesteps(host, stack, batch, k), loss, cached=cached)
                for k in gated_numbers(len(batch), gate)
            }
            candidates.append(Candidate(name + CACHED * cached, gate, runs))
    numbers = gated_numbers(len(batch), "each image")
    act = partial(host.train, optimizer, batch, cached=False)
    for name, loss, gated in (
        (MEASURED, partial(_measured, stack), [k for k in numbers if k]),
        *((name, partial(_asked_again, stack, answers), numbers) for answers, name in ANSWERS.items()),
    ):
        runs = {k: partial(act, timesteps=_timesteps(host, stack, batch, k), loss=loss) for k in gated}
        candidates.append(Candidate(name, "each image", runs))
    next(iter(candidates[0].runs.values()))()  # makes the optimizer's state, which is there in every later step
    return candidates


def _measured(stack: LossStack, step: DiffusionStep) -> Tensor:
    """A step as one in `stack.audit.every` is, after a reading: each loss's own gradient is computed, too."""
    stack.audit.read(0)
    return stack(step).loss


def _asked_again(stack: LossStack, answers: int, step: DiffusionStep) -> Tensor:
    """A step whose losses look at the clean estimate of so many answers."""
    before, stack.schedule.answers = stack.schedule.answers, answers
    try:
        return stack(step).loss
    finally:
        stack.schedule.answers = before


def pixel_candidates(host: Host, stack: LossStack, ways: Ways, batch: Batch) -> list[Candidate]:
    """From the network's output to the gradient there."""
    return [
        Candidate(
            name, gate, {k: _after_the_network(host, stack, batch, k, loss) for k in gated_numbers(len(batch), gate)}
        )
        for name, (loss, gate) in ways.items()
    ]


def closed_candidates(host: Host, stack: LossStack, ways: Ways, batch: Batch) -> list[Candidate]:
    """`pixel_candidates` with a closed gate: what the plugin itself takes, steadier than a difference of steps."""
    return [
        Candidate(name, "none", {0: _after_the_network(host, stack, batch, 0, ways[name][0])}) for name in (PLAIN, OURS)
    ]


def _after_the_network(host: Host, stack: LossStack, batch: Batch, k: int, loss: Loss) -> Callable[[], Any]:
    return partial(host.after_the_network, batch, _timesteps(host, stack, batch, k), loss)


def _timesteps(host: Host, stack: LossStack, batch: Batch, k: int) -> Tensor:
    return timesteps_of(stack, len(batch), k, host.device)


class LossesAlone:
    """The losses of the plugin, and plain versions of them, on pictures at hand."""

    def __init__(self, plugins: Plugins, size: Size) -> None:
        masked_lpips = plugins.losses["masked_lpips"]
        self.spatial, self.features = (masked_lpips(form=f, weights="random") for f in ("spatial", "features"))
        self.features.network = self.spatial.network  # one VGG16 is enough
        self.face = plugins.losses["face"](weights="random")
        self.identity = plugins.losses["identity"](weights="random")
        for loss in (self.face, self.identity):
            shrink_faces(loss, size)
        self.package = others.lpips_package()

    def on(self, people: dict[str, Any]) -> dict[str, LossAlone]:
        """By name, of pictures as `draw_people` makes them."""
        images, package, alphas = people["pixel_values"], self.package, self.features.layer_weights
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
        pred_images = (images + 0.2 * noise).requires_grad_()
        step, mask = decoded_step(people, pred_images), people["person_mask"].to(images)
        package.to(images)
        with torch.no_grad():
            target, predicted = (others.lpips_features(package, x) for x in (images, pred_images))
        leaves = [p.requires_grad_() for p in predicted]
        area = mask.sum(dim=(2, 3))

        def literal() -> Tensor:
            with torch.no_grad():
                of_target = others.lpips_features(package, images)
            return others.upsample_then_mask(others.lpips_features(package, pred_images), of_target, alphas, mask)

        def distance() -> Tensor:
            layers = zip(alphas, leaves, target, strict=True)
            return sum(a * (masked_squared_norm(p - t, mask) / area).sqrt()[:, 0] for a, p, t in layers)

        return {
            SPATIAL: (lambda: self.spatial(step), [pred_images]),
            PACKAGE: (lambda: others.spatial_times_mask(package, pred_images, images, mask), [pred_images]),
            FEATURES: (lambda: self.features(step), [pred_images]),
            LITERAL: (literal, [pred_images]),
            DISTANCE: (distance, leaves),
            LITERAL_DISTANCE: (lambda: others.upsample_then_mask(leaves, target, alphas, mask), leaves),
            FACE: (lambda: self.face(step), [pred_images]),
            IDENTITY: (lambda: self.identity(step), [pred_images]),
        }


def loss_candidates(functions: dict[str, LossAlone]) -> list[Candidate]:
    """Value and gradient of each loss alone."""
    return [Candidate(name, "none", {1: partial(value_and_gradient, *of)}) for name, of in functions.items()]


def value_and_gradient(function: Callable[[], Tensor], leaves: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The mean over images, and its gradient at `leaves`."""
    value = function().mean()
    value.backward()
    gradients: list[Any] = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return value.detach(), gradients
