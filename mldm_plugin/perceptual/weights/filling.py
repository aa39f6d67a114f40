"""Tensors put into a network, all of them or none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mldm_plugin.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn


def fill(network: nn.Module, state: Mapping[str, Tensor], name: str, ignore: Iterable[str] = ()) -> nn.Module:
    """Put the tensors of `state` into `network`, all of them or none.

    Args:
        network: receives the weights.
        state: name → tensor. `num_batches_tracked` may be missing: it counts training steps only.
        name: of the weights, for the message.
        ignore: beginnings of names that the network has no use for, such as a classifier.

    Returns:
        `network`.

    Raises:
        WeightsError: entries missing, unexpected or of another shape, all named.
    """
    ignore = tuple(ignore)
    used = {key: value for key, value in state.items() if not key.startswith(ignore)}
    own = network.state_dict()
    missing = [key for key in own if key not in used and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in used if key not in own]
    shapes = [
        f"{key} {tuple(used[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in used and used[key].shape != own[key].shape
    ]
    faults = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    if found := [f"{what}: {', '.join(keys)}" for what, keys in faults if keys]:
        raise WeightsError(
            f"The weights {name!r} do not fit {type(network).__name__}; {'; '.join(found)}. "
            "Fetch the file that `mldm weights list` names."
        )
    network.load_state_dict(used, strict=False)
    return network
