"""How long a run will take on this machine, as far as that can be said before it begins."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from mldm_plugin.preset import load_preset
from mldm_plugin.project.models import PEOPLE_MINI, pipeline_of
from mldm_plugin.project.run_file import Run

# people-mini on two CPU cores, one training beside another: a plain step of 4 pictures takes 2.6 forward passes of its
# U-Net's time, each picture that is compared adds as much again 2.9 times (docs/demo.md: .41 and 1.61 s a step).
PASSES, COMPARED = 2.6, 2.9
# Forward passes of one latent: a picture of 20 steps with guidance (2.9 s where a pass of 4 takes .16 s,
# docs/evaluation.md), what judges look at in it, and the ten estimates of a photograph.
DRAWN, JUDGED, ESTIMATED = 72, 8, 150
SCHEDULE = 1000
TRIES = 3


@dataclass(frozen=True)
class Minutes:
    """Of each part; the trainings by the name of their arm."""

    trainings: dict[str, float]
    pictures: float
    judging: float


def minutes_here(run: Run, prompts: int, processes: int) -> Minutes | None:
    """How long each part takes, measured by a few forward passes; None for models that are not this package's.

    Args:
        run: what is trained.
        prompts: that each training draws.
        processes: that draw and judge, each with one thread.
    """
    if run.model != PEOPLE_MINI:
        return None
    batch = int(run.training.get("train_batch_size", 1))
    forward = _forward_seconds(Path(pipeline_of(run.model)), batch) / 60
    losses = load_preset(run.preset, run.set).losses.values()
    share = max((SCHEDULE if s.max_timestep is None else s.max_timestep + 1 for s in losses), default=0) / SCHEDULE
    plain = run.steps * forward * PASSES
    trainings = {"plain": plain} if run.compare == "plain" else {}
    trainings["mldm"] = plain * (1 + COMPARED * share)
    one = forward / batch / processes * len(trainings)
    pictures = prompts * run.pictures
    judging = JUDGED * pictures + ESTIMATED * run.held_out
    return Minutes(trainings, DRAWN * pictures * one, judging * one)


def cost_here(run: Run, kind: str, prompts: int, processes: int) -> list[str]:
    """Lines of a table: trainings, pictures, judging, each with its minutes or what to ask."""
    minutes, models = minutes_here(run, prompts, processes), 2 if run.compare == "plain" else 1
    drawn = f"{prompts} prompts, {run.pictures} pictures of each{' by each model' if models > 1 else ''}"
    if minutes is not None:
        named = {"plain": "with the plain loss", "mldm": f"with preset {run.preset}"}
        told = ", ".join(f"{about(long)} {named[name]}" for name, long in minutes.trainings.items())
        return [
            f"training   {told}",
            f"pictures   {about(minutes.pictures)}: {drawn}",
            f"judging    {about(minutes.judging)}",
        ]
    return [f"training   {_elsewhere(kind)}", f"pictures   {drawn}; the bar says how long"]


def about(minutes: float) -> str:
    """
    >>> about(0.3), about(1.2), about(4.6)
    ('less than a minute', 'about a minute', 'about 5 minutes')
    """
    if minutes < 0.5:
        return "less than a minute"
    return "about a minute" if minutes < 1.5 else f"about {minutes:.0f} minutes"


def _elsewhere(kind: str) -> str:
    import torch

    families = {"sd15": "", "sdxl": " --family sdxl"}
    known = f"how much memory: mldm plan --vram 24 --train lora{families.get(kind, '')}"
    ask = known if kind in families else "mldm plan does not know this kind's memory"
    if not torch.cuda.is_available():
        return f"there is no GPU here, which {kind} needs; {ask}"
    free, whole = torch.cuda.mem_get_info()
    name = torch.cuda.get_device_name()
    return f"{name}, {free / 1e9:.0f} of {whole / 1e9:.0f} GB free; the bar says how long; {ask}"


def _forward_seconds(pipeline: Path, batch: int) -> float:
    """Of the U-Net, in one thread, the best of three."""
    import torch
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet").eval()
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    inputs = torch.zeros(batch, unet.config.in_channels, side, side), 1, torch.zeros(batch, 77, width)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(TRIES):
            start = time.perf_counter()
            unet(*inputs)
            best = min(best, time.perf_counter() - start)
    torch.set_num_threads(threads)
    return best
