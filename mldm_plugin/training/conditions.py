"""Condition encoders in training: their options, their tokens, and conditions that are taken away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from mldm_plugin.conditions.conditions import Conditions
from mldm_plugin.conditions.pipeline import MASK
from mldm_plugin.training.flags import TrainerFlags


class TextAndConditions(nn.Module):
    """A network that reads text, and condition encoders whose tokens it reads behind those of the text.

    Args:
        network: a U-Net or a ControlNet of diffusers.
        conditions: as wide as its cross-attention.
    """

    def __init__(self, network: nn.Module, conditions: Conditions) -> None:
        super().__init__()
        self.network, self.conditions = network, conditions

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        text: Tensor,
        values: Mapping[str, Tensor] | None,
        present: Mapping[str, Tensor],
        **options: Any,
    ) -> tuple[Any, Tensor]:
        """The network's answer to z_t (N, C, h, w) at t (N,), and all that it read, (N, L, D); without values that is
        `text` alone."""
        joined = text
        if values is not None:
            tokens = tokens_of(self.conditions, values, present, len(noisy)).to(text.dtype)
            joined = torch.cat([text, tokens], 1)
        return self.network(noisy, timesteps, encoder_hidden_states=joined, return_dict=False, **options), joined


def tokens_of(
    conditions: Conditions, values: Mapping[str, Tensor], present: Mapping[str, Tensor], count: int
) -> Tensor:
    """The tokens of a batch, (N, L, D); every encoder has a part in the gradient, as DDP wants it in each step."""
    tokens = conditions(values, present, count)
    for name, encoder in conditions.each():
        if name not in values:  # no picture of the batch has it
            tokens = tokens + 0 * sum(parameter.sum() for parameter in encoder.parameters())
    return tokens


def with_drops(batch: dict[str, Any], share: float) -> dict[str, Any]:
    """The batch with conditions taken away at random, each by itself from this share of the pictures."""
    if not share:
        return batch
    present = batch.get("present", {})
    kept = {k: v & (torch.rand(v.shape, device=v.device) >= share) for k, v in present.items()}
    return {**batch, "present": kept}


def options_of(flags: TrainerFlags) -> dict[str, dict[str, Any]]:
    """Each condition's options; a semantic mask has the pictures' resolution."""
    options: dict[str, dict[str, Any]] = {name: {} for name in flags.condition or ()}
    if MASK in options:
        options[MASK]["resolution"] = flags.resolution
    for given in flags.condition_option or ():
        name, _, rest = given.partition(".")
        option, _, value = rest.partition("=")
        options[name][option] = yaml.safe_load(value)
    return options


def make_conditions(flags: TrainerFlags, width: int) -> Conditions:
    """The encoders that the flags ask for, as wide as the cross-attention. Draws from the global generator."""
    return Conditions(width=width, conditions=list(options_of(flags).items()))
