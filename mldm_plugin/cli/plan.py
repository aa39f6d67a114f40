"""`mldm plan`: which settings fit into a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mldm_plugin.planning.budget import Measured, Peak

TITLES = {"full": "whole", "checkpointed": "whole, checkpointed", "region": "region"}
# SDXL is trained by diffusers' scripts with our losses attached; they have no --cache_latents.
SCRIPTS = {
    ("sd15", "controlnet"): "accelerate launch train_controlnet.py",
    ("sd15", "lora"): "accelerate launch train_text_to_image_lora.py",
    ("sdxl", "controlnet"): "mldm run train_controlnet_sdxl.py",
    ("sdxl", "lora"): "mldm run train_text_to_image_lora_sdxl.py",
}


@click.command()
@click.option("--vram", type=click.FloatRange(min=1), required=True, help="Memory of the GPU, in GB of 10⁹ bytes.")
@click.option(
    "--train",
    "kind",
    type=click.Choice(["controlnet", "lora"]),
    default="controlnet",
    show_default=True,
    help="What is trained.",
)
@click.option(
    "--family",
    type=click.Choice(["sd15", "sdxl"]),
    default="sd15",
    show_default=True,
    help="The networks, by their published shapes.",
)
@click.option(
    "--pretrained_model_name_or_path",
    "folder",
    type=click.Path(path_type=Path),
    help="A pipeline on this disk instead; only its config.json files are read.",
)
@click.option("--resolution", type=int, help="Side of the pictures; by default what the networks were made for.")
@click.option("--batch", type=click.IntRange(min=1), multiple=True, help="Pictures per device. May be repeated.")
@click.option("--rank", type=click.IntRange(min=1), default=4, show_default=True, help="Rank of the LoRA.")
@click.option(
    "--mixed_precision",
    type=click.Choice(["bf16", "fp16", "no"]),
    default="bf16",
    show_default=True,
    help="As in training.",
)
@click.option("--use_8bit_adam", is_flag=True, help="AdamW with 8-bit state.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(
    vram: float,
    kind: Any,
    family: str,
    folder: Path | None,
    resolution: int | None,
    batch: tuple[int, ...],
    rank: int,
    mixed_precision: str,
    use_8bit_adam: bool,
    as_json: bool,
) -> None:
    """Which batch size and settings fit into --vram GB, computed from the shapes of the networks.

    Nothing is loaded and no GPU is needed. Peaks are of a step in which images are decoded one at a time, with a
    margin for what tensors do not show.
    """
    measured, family, resolution = _measure(kind, family, folder, resolution, mixed_precision, rank)
    from mldm_plugin.planning import budget

    batches = batch or budget.BATCHES
    peaks = [
        measured.peak(setting, eight_bit=use_8bit_adam)
        for setting in budget.settings(batches)
        if family == "sd15" or not setting.cache_latents
    ]
    best = budget.recommend(peaks, vram)
    line = None if best is None else _command(best, measured, vram, kind, family, resolution, use_8bit_adam)
    line = f"{line} --rank {rank}" if line and kind == "lora" else line
    if as_json:
        rows = [peak.as_row() | {"fits": peak.gb <= vram} for peak in peaks]
        click.echo(json.dumps({"vram_gb": vram, "settings": rows, "command": line}, indent=1))
        return
    for row in _table(peaks, batches, vram):
        click.echo(row)
    click.echo(
        "\nOne GPU; with several, add one more copy of the trained weights for their gradients' buckets. Region: a "
        "window of half the\npicture's side; a person who fills the picture takes what a whole decode takes."
    )
    click.echo(f"\n{line}" if line else f"\nNothing fits into {vram:g} GB: lower --resolution, or --use_8bit_adam.")


def _measure(
    kind: Any, family: str, folder: Path | None, resolution: int | None, precision: str, rank: int
) -> tuple[Measured, str, int]:
    from mldm_plugin.errors import MldmError

    try:
        import torch
        from diffusers.utils import logging

        from mldm_plugin.planning.budget import Measured
        from mldm_plugin.planning.families import FAMILIES, read_family
    except ImportError as error:
        raise MldmError(f"`mldm plan` needs what training needs ({error}): pip install 'mldm-plugin[train]'") from error
    logging.set_verbosity_error()
    shapes = FAMILIES[family] if folder is None else read_family(folder)
    if folder is not None:
        family = "sdxl" if len(shapes.text_encoders) == 2 else "sd15"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}[precision]
    resolution = resolution or shapes.resolution
    return Measured.of(shapes, kind, dtype, resolution, rank=rank), family, resolution


def _table(peaks: list[Peak], batches: tuple[int, ...], vram: float) -> list[str]:
    """Peak GB; a row for each setting, a column for each batch; a star where it does not fit."""
    columns = sorted(batches)
    head = f"{'decode':<20} {'gradient_checkpointing':<23} {'cache_latents':<14}"
    lines = ["peak GB, * more than there is", head + "".join(f"{f'batch {b}':>10}" for b in columns)]
    found: dict[tuple[str, bool, bool], dict[int, float]] = {}
    for peak in peaks:
        s = peak.setting
        found.setdefault((s.decode, s.gradient_checkpointing, s.cache_latents), {})[s.batch] = peak.gb
    for (decode, checkpointing, cached), by_batch in found.items():
        words = ["yes" if on else "no" for on in (checkpointing, cached)]
        cells = "".join(f"{f'{by_batch[b]:.1f}' + ('*' if by_batch[b] > vram else ' '):>10}" for b in columns)
        lines.append(f"{TITLES[decode]:<20} {words[0]:<23} {words[1]:<14}{cells}")
    return lines


def _command(
    peak: Peak, measured: Measured, vram: float, kind: str, family: str, resolution: int, eight_bit: bool
) -> str:
    setting = peak.setting
    left = measured.pixel_budget(setting, vram, eight_bit=eight_bit)
    budget_flag = "--pixel_memory_gb " if family == "sd15" else "--set pixel_memory_gb="
    parts = [SCRIPTS[family, kind], "--loss-plugin mldm", f"{budget_flag}{int(left * 10) / 10:g}"]
    parts += ["--set decode=region"] if setting.decode == "region" else []
    parts += [f"--resolution {resolution}", f"--train_batch_size {setting.batch}"]
    parts += ["--gradient_checkpointing"] if setting.gradient_checkpointing else []
    parts += ["--cache_latents"] if setting.cache_latents else []
    parts += ["--use_8bit_adam"] if eight_bit else []
    precision = {"torch.bfloat16": "bf16", "torch.float16": "fp16"}.get(str(measured.dtype), "no")
    return " ".join([*parts, f"--mixed_precision {precision}", "…"])
