"""How long a run will take on this machine, as far as that can be said before it begins."""

from __future__ import annotations

import time
from pathlib import Path

from mldm_plugin.preset import load_preset
from mldm_plugin.project.models import pipeline_of
from mldm_plugin.project.run_file import Run

# people-mini on two CPU cores, one training beside another: a plain step of 4 pictures takes 2.6 forward passes of its
# U-Net's time, each picture that is compared adds as much again 2.9 times (docs/demo.md: .41 and 1.61 s a step).
PASSES, COMPARED = 2.6, 2.9
SCHEDULE = 1000
TRIES = 3


def cost_here(run: Run, kind: str) -> str:
    """A sentence: minutes where they can be measured, else what to ask."""
    import torch

    if kind == "people-mini":
        plain = (
            run.steps
            * _forward_seconds(Path(pipeline_of(run.model)), int(run.training.get("train_batch_size", 1)))
            * PASSES
        )
        losses = load_preset(run.preset, run.set).losses.values()
        share = max((SCHEDULE if s.max_timestep is None else s.max_timestep + 1 for s in losses), default=0) / SCHEDULE
        minutes = [plain / 60, plain * (1 + COMPARED * share) / 60]
        wanted = minutes if run.compare == "plain" else minutes[1:]
        return f"about {' and '.join(f'{m:.0f}' if m >= 1 else 'one' for m in wanted)} minutes of training here"
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
