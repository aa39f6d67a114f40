"""The command's options as plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mldm_plugin.errors import DataError
from mldm_plugin.people_mini.loop import Plan
from mldm_plugin.people_mini.train import Settings


def settings_of(options: Mapping[str, Any]) -> Settings:
    """Settings of the `train` command.

    Raises:
        DataError: a stage has no budget.
    """
    for minutes, steps in (("vae_minutes", "vae_steps"), ("minutes", "steps")):
        if options[minutes] is None and options[steps] is None:
            flags = (f"--{name.replace('_', '-')}" for name in (minutes, steps))
            raise DataError(f"expected a budget, {' or '.join(flags)}, but got neither.")
    graph, seed = options["graph"], options["seed"]
    vae = Plan(
        "vae", options["vae_rate"], options["vae_steps"], options["vae_minutes"], ema=0.998, seed=seed, graph=graph
    )
    denoiser = Plan(
        "denoiser",
        options["rate"],
        options["steps"],
        options["minutes"],
        warmup=200,
        seed=seed + 1,
        sheet_every=options["sheet_every"],
        graph=graph,
    )
    return Settings(options["size"], vae, denoiser, options["vae_batch"], options["batch"], options["scale"], seed)
