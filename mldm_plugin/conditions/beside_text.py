"""Conditions beside text: their tokens stand behind those of a prompt, for a pipeline of Stable Diffusion 1.x."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mldm_plugin.conditions.conditions import Conditions
from mldm_plugin.errors import DataError, MldmError

FOLDER = "conditions"  # beside the weights that were trained with them


class BesideText:
    """Joins the tokens of conditions to whatever a pipeline makes of its prompts; all else in it stays as it is.

    Guidance leads away from the negative prompt and absent conditions together.

    Args:
        pipeline: of Stable Diffusion 1.x, with or without a ControlNet; its `encode_prompt` is replaced.
        conditions: as they were trained with it.

    Attributes:
        given: of each prompt of the next calls, name → value; those that are not named are absent, those that
            it does not know are passed over. One for all, or none.
    """

    def __init__(self, pipeline: Any, conditions: Conditions) -> None:
        width = pipeline.unet.config.cross_attention_dim
        if conditions.config["width"] != width:
            raise MldmError(f"tokens of conditions are {conditions.config['width']} wide, the pipeline reads {width}.")
        self.conditions, self.given = conditions.eval(), list[Mapping[str, Tensor]]()
        self._encode = pipeline.encode_prompt
        pipeline.encode_prompt = self._encode_prompt
        pipeline.beside_text = self

    @torch.no_grad()
    def tokens(self, given: Mapping[str, Tensor]) -> Tensor:
        """Of one picture, (1, L, D)."""
        device = next(self.conditions.parameters()).device
        known = {n: v[None].to(device) for n, v in given.items() if n in self.conditions.encoders}
        return self.conditions(known)

    def _encode_prompt(self, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        text, negative = self._encode(*arguments, **options)
        self.conditions.to(text.device)
        given: Sequence[Mapping[str, Tensor]] = self.given or [{}]
        if len(text) % len(given):
            raise DataError(f"conditions of {len(given)} pictures came for {len(text)}; give one of each.")
        tokens = torch.cat([self.tokens(one) for one in given]).to(text.dtype)
        joined = torch.cat([text, tokens.repeat_interleave(len(text) // len(given), 0)], 1)
        if negative is None:
            return joined, None
        absent = self.tokens({}).to(negative.dtype).expand(len(negative), -1, -1)
        return joined, torch.cat([negative, absent], 1)


def has_conditions(weights: Path) -> bool:
    """Whether weights were trained with conditions beside text, which lie beside them."""
    return (weights / FOLDER / "config.json").is_file()


def read_conditions(weights: Path) -> Conditions:
    """What lies beside weights; raises MldmError if it does not load."""
    try:
        return Conditions.from_pretrained(weights / FOLDER)
    except (OSError, ValueError) as error:
        said = next(iter(str(error).splitlines()), "")[:300]
        raise MldmError(f"{weights / FOLDER} has no encoders of conditions ({type(error).__name__}: {said})") from error
