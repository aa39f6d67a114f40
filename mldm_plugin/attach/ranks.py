"""Ways to train on several processes that an attached script may be set to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mldm_plugin.errors import MldmError


def refuse_unshown(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse what was not shown to give the gradient of a single process (tests/test_parallel.py).

    The weights of images are read off the script's loss, by a gradient at the network's output before the backward
    pass: under FSDP1 that frees weights which the backward pass needs. DeepSpeed was not tried.

    Args:
        environment: as `accelerate launch` sets it.

    Raises:
        MldmError: FSDP1 or DeepSpeed.
    """

    def on(name: str) -> bool:
        return environment.get(name, "false").lower() in ("true", "1")

    found = None
    if on("ACCELERATE_USE_FSDP") and environment.get("FSDP_VERSION", "1") == "1":
        found = "FSDP1"
    if on("ACCELERATE_USE_DEEPSPEED"):
        found = f"DeepSpeed ZeRO {environment.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '')}".strip()
    for name in ("MEGATRON_LM", "PARALLELISM_CONFIG"):
        if on(f"ACCELERATE_USE_{name}"):
            found = name
    _refuse(found)


def refuse_unshown_in(accelerator: Any) -> None:
    """Refuse what was not shown, where the script sets it itself in its own accelerator (None where it has none).

    Raises:
        MldmError: FSDP1, DeepSpeed or Megatron-LM.
    """
    kind = getattr(getattr(accelerator, "distributed_type", None), "name", "")
    if kind in ("DEEPSPEED", "MEGATRON_LM"):
        _refuse(kind)
    if kind == "FSDP" and not getattr(accelerator, "is_fsdp2", False):
        _refuse("FSDP1")


def _refuse(found: str | None) -> None:
    if found is not None:
        raise MldmError(
            f"accelerate is set to {found}, under which the plugin was not shown to train what it says: use FSDP2 "
            "(`accelerate launch --use_fsdp --fsdp_version 2`) or DDP (`--multi_gpu`)."
        )
