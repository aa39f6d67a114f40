"""Several conditions as one sequence of tokens, any of which may be absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mldm_plugin.conditions.encoder import ConditionEncoder
from mldm_plugin.errors import DataError, MldmError, nearest
from mldm_plugin.plugins import installed_plugins, load_plugins

SPREAD = 0.02  # standard deviation of a token that nothing was learnt for, as transformers' embeddings have it


class Conditions(ModelMixin, ConfigMixin):
    """Encoders side by side: their tokens joined in order, with learnt tokens for each that is absent.

    "Conditioning Diffusion Models via Attributes and Semantic Masks for Face Generation", section 4.4, joins attributes
    and mask so. It does not drop conditions; the tokens for "absent" are this project's, for guidance and for pictures
    that lack one. Without an encoder the sequence is one learnt token: the unconditional model.

    Args:
        width: of a token: the U-Net's `cross_attention_dim`.
        conditions: pairs of a name as registered and the options of its constructor, in the order of the tokens. A
            list, for diffusers sorts the keys of a configuration that it saves.
    """

    @register_to_config
    def __init__(self, width: int, conditions: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({name: made(name, width, options) for name, options in conditions})
        lengths = {name: encoder.tokens for name, encoder in self.each()} or {"nothing": 1}
        self.absent = nn.ParameterDict(
            {name: nn.Parameter(SPREAD * torch.randn(length, width)) for name, length in lengths.items()}
        )

    def each(self) -> list[tuple[str, ConditionEncoder]]:
        """Names and encoders, in order."""
        return [(name, encoder) for name, encoder in self.encoders.items() if isinstance(encoder, ConditionEncoder)]

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return sum(len(token) for token in self.absent.values())

    def forward(
        self, values: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None, count: int = 1
    ) -> Tensor:
        """The tokens of a batch, (N, L, width).

        Args:
            values: name → values (N, …) as the encoder reads them; a name that is left out is absent for all.
            present: name → bool (N,), which pictures have it; a name that is left out is there for all.
            count: N where there are no values.

        Raises:
            DataError: a value of a condition that this model does not know.
        """
        if unknown := values.keys() - self.encoders.keys():
            raise DataError(
                f"the model knows no condition {sorted(unknown)[0]!r}: {nearest(sorted(unknown)[0], self.encoders)}"
            )
        count = next((len(value) for value in values.values()), count)
        joined = []
        for name in self.encoders or ("nothing",):  # not in the order of `absent`, which torch sorts
            nothing = self.absent[name].expand(count, -1, -1)
            if name not in values:
                joined.append(nothing)
                continue
            tokens = self.encoders[name](values[name])
            keep = (present or {}).get(name, torch.ones(count, dtype=torch.bool, device=tokens.device))
            joined.append(torch.where(keep[:, None, None], tokens, nothing))  # DDP wants every weight used in each step
        return torch.cat(joined, dim=1)


def made(name: str, width: int, options: Mapping[str, Any]) -> ConditionEncoder:
    """The encoder of a name, of a built-in plugin or of one that is installed.

    Raises:
        MldmError: none has it, or its options do not fit.
    """
    encoder = load_plugins(list(installed_plugins())).condition_encoders[name]
    try:
        return encoder(width, **options)
    except TypeError as error:
        raise MldmError(f"condition {name}: {error}.") from error
