"""Candidates that should give the same results do, or nothing is timed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mldm_plugin.bench import candidates as names
from mldm_plugin.bench.candidates import LossesAlone
from mldm_plugin.bench.host import Host, attach, draw_people, timesteps_of
from mldm_plugin.errors import CheckError
from mldm_plugin.plugins import Plugins
from mldm_plugin.preset import Preset

# Relative. Values of the ways to decode are compared in float32, in which the order of additions differs.
TOLERANCE = 1e-4
# Of their gradients: where rounding turns a ReLU the other way, a whole column of layers below it changes. Two equal
# VGG16 at different places in memory gave gradients that differ by up to 7e-3.
RELU_TOLERANCE = 2e-2
IMAGES, SIDE = 2, 256  # in which the ways to decode are compared, or smaller


@dataclass(frozen=True)
class Difference:
    """Relative differences of a candidate's value and gradient to ours; `held_to` is None where they may differ."""

    candidate: str
    value: float
    gradient: float
    held_to: float | None


def exact(preset: Preset) -> bool:
    """Whether the plugin computes what the plain ways do, rather than a cheaper stand-in for it."""
    return preset.decode == "full" and preset.vae == "model" and preset.precision != "bfloat16"


def compare_ways(host: Host, preset: Preset, plugins: Plugins, resolution: int) -> list[Difference]:
    """Loss and gradient at the network's output of all ways to decode, in float32: one image gated, all, and none.

    A preset that decodes with a stand-in is compared, and not held to anything. `host` is in float32.

    Raises:
        CheckError: they are further apart than they may be.
    """
    batch = host.draw(IMAGES, min(resolution, SIDE))
    stack = attach(host, preset, plugins)
    ways = names.ways_to_a_loss(host, stack, host.vae)
    results = {}
    with full_float32():
        for k in (1, IMAGES, 0):
            timesteps = timesteps_of(stack, IMAGES, k, host.device)
            for name in (names.OURS, names.EVERYTHING, *([names.WHOLE_BATCH] if k != 1 else [])):
                results[name, k] = host.after_the_network(batch, timesteps, ways[name][0])
    held_to = TOLERANCE if exact(preset) else None
    return [
        difference(f"{name}, k={k}", result, results[names.OURS, k], held_to, RELU_TOLERANCE)
        for (name, k), result in results.items()
        if name != names.OURS
    ]


def compare_losses(losses: LossesAlone, device: torch.device) -> list[Difference]:
    """The losses that have a plain version beside them, on small pictures in float64.

    In float32 the gradients of two versions differ by up to 1 % (measured), because rounding turns some ReLUs the other
    way; in float64 it does not, so a difference is one of formulas.

    Raises:
        CheckError: they are further apart than they may be.
    """
    functions = losses.on(draw_people(1, 64, device, torch.float64))
    pairs = {
        names.PACKAGE: names.SPATIAL,
        names.LITERAL: names.FEATURES,
        names.LITERAL_DISTANCE: names.DISTANCE,
    }
    found = []
    for plain, ours in pairs.items():
        its, own = (names.value_and_gradient(*functions[name]) for name in (plain, ours))
        found.append(difference(plain, its, own, TOLERANCE, TOLERANCE))
    return found


def difference(candidate: str, its: Any, ours: Any, held_to: float | None, gradient_held_to: float) -> Difference:
    """Compares (value, gradients) with (value, gradients).

    Raises:
        CheckError: they are further apart than they may be.
    """
    value, gradient = _distance([its[0]], [ours[0]]), _distance(its[1], ours[1])
    if held_to is not None and not (value <= held_to and gradient <= gradient_held_to):
        raise CheckError(
            f"{candidate!r} and the plugin differ by {value:.2g} in value and {gradient:.2g} in gradient, expected "
            f"at most {held_to:g} and {gradient_held_to:g}: they do not compute the same, so their times would say "
            "nothing. This is a bug."
        )
    return Difference(candidate, value, gradient, held_to)


def _distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """‖one − other‖ / ‖other‖ over all tensors together."""
    a, b = (torch.cat([t.double().flatten() for t in tensors]) for tensors in (one, other))
    gap, size = (a - b).norm().item(), b.norm().item()
    return gap / size if size else gap


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Without TF32, which rounds to ten bits and does so in other places for other batch sizes."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
