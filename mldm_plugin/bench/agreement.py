"""Candidates that should give the same results do, or nothing is timed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mldm_plugin.bench import candidates as names
from mldm_plugin.bench.candidates import LossesAlone
from mldm_plugin.bench.networks import Networks
from mldm_plugin.bench.workload import Batch, Loss, People, Timesteps, pixel_path
from mldm_plugin.errors import CheckError
from mldm_plugin.preset import Preset

# Relative, in float32: the order of additions differs. Values of `features` are closer, and held to it.
TOLERANCE = 1e-4
FEATURES_TOLERANCE = 1e-5
# Of gradients in float32: where rounding turns a ReLU the other way, a whole column of layers below it changes. Two
# equal VGG16 at different places in memory gave gradients that differ by up to 7e-3.
RELU_TOLERANCE = 2e-2


@dataclass(frozen=True)
class Agreement:
    """Relative differences of a candidate's value and gradient to ours; `held_to` is None where they may differ."""

    candidate: str
    value: float
    gradient: float
    held_to: float | None

    @classmethod
    def of(
        cls, candidate: str, its: Any, ours: Any, held_to: float | None, gradient_held_to: float = RELU_TOLERANCE
    ) -> Agreement:
        """Compares (value, gradients) with (value, gradients).

        Raises:
            CheckError: they are further apart than they may be.
        """
        value, gradient = _difference([its[0]], [ours[0]]), _difference(its[1], ours[1])
        if held_to is not None and not (value <= held_to and gradient <= gradient_held_to):
            raise CheckError(
                f"{candidate!r} and the plugin differ by {value:.2g} in value and {gradient:.2g} in gradient, expected "
                f"at most {held_to:g} and {gradient_held_to:g}: they do not compute the same, so their times would say "
                "nothing. This is a bug."
            )
        return cls(candidate, value, gradient, held_to)


def exact(preset: Preset) -> bool:
    """Whether the plugin computes what the plain strategies do, rather than a cheaper stand-in for it."""
    return preset.decode == "full" and preset.vae == "model" and preset.precision != "bfloat16"


def compare_strategies(
    networks: Networks, ways: Mapping[str, tuple[Loss, Any]], batch: Batch, timesteps: Timesteps, preset: Preset
) -> list[Agreement]:
    """Loss and gradient at the network's output of all strategies, in float32: one image gated, all, and none.

    `ways` decode in float32. A preset that decodes with a stand-in is compared, and not held to anything.
    """
    held_to = TOLERANCE if exact(preset) else None
    batch = replace(batch, latents=batch.latents.float(), noise=batch.noise.float())
    n, found = len(batch), []
    for name, gated in ((names.EVERYTHING, (min(1, n), n, 0)), (names.WHOLE_BATCH, (n, 0))):
        for k in gated:
            with full_float32():
                its, ours = (pixel_path(networks, batch, timesteps(n, k), ways[w][0]) for w in (name, names.OURS))
            found.append(Agreement.of(f"{name}, k={k}", (its[0], [its[1]]), (ours[0], [ours[1]]), held_to))
    return found


def compare_losses(losses: LossesAlone, people: People) -> list[Agreement]:
    """The losses that have a plain version beside them: values on `people`, and both on small pictures in float64.

    In float32 the gradients of two versions differ by up to 1 % (measured), because rounding turns some ReLUs the other
    way; in float64 it does not, so a difference is one of formulas.
    """
    small = People.draw(len(people.pixel_values), 64, people.pixel_values.device, torch.float64)
    found = []
    with full_float32():
        for small_or_not, where in ((small, "float64, 64²"), (people, "float32")):
            functions = losses.on(small_or_not)
            for plain, ours, held_to in (
                (names.PACKAGE, names.SPATIAL, TOLERANCE),
                (names.LITERAL, names.FEATURES, FEATURES_TOLERANCE),
                (names.LITERAL_DISTANCE, names.DISTANCE, FEATURES_TOLERANCE),
            ):
                its, own = (names.value_and_gradient(*functions[name]) for name in (plain, ours))
                gradient_held_to = TOLERANCE if small_or_not is small else RELU_TOLERANCE
                found.append(Agreement.of(f"{plain}, {where}", its, own, held_to, gradient_held_to))
    return found


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


def _difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """‖one − other‖ / ‖other‖ over all tensors together."""
    gap = math.sqrt(sum((a.double() - b.double()).square().sum().item() for a, b in zip(one, other, strict=True)))
    size = math.sqrt(sum(b.double().square().sum().item() for b in other))
    return gap / size if size else gap
