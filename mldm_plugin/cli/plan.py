"""`mldm plan`: which settings fit into a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mldm_plugin.planning.budget import Footprint, Peak

# SDXL is trained by diffusers' scripts with our losses attached; they have no --cache_latents.
SCRIPTS = {
    ("sd15", "controlnet"): "accelerate launch train_controlnet.py",
    ("sd15", "lora"): "accelerate launch train_text_to_image_lora.py",
    ("sdxl", "controlnet"): "mldm run train_controlnet_sdxl.py",
    ("sdxl", "lora"): "mldm run train_text_to_image_lora_sdxl.py",
}
NOTE = """
One GPU; with several, add one more copy of the trained weights for their gradients' buckets. A
picture is taken to hold one face; each further one of a picture, up to eight, keeps 50 MB more in bfloat16.
"""


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
@click.option(
    "--batch", "batches", type=click.IntRange(min=1), multiple=True, help="Pictures per device. May be repeated."
)
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
def plan(vram: float, batches: tuple[int, ...], as_json: bool, **run: Any) -> None:
    """Which batch size and settings fit into --vram GB, computed from the shapes of the networks.

    Nothing is loaded and no GPU is needed. Peaks hold a margin for what tensors do not show.
    """
    footprint = _measure(run)
    from mldm_plugin.planning import budget

    can_cache = run["family"] == "sd15"
    peaks = [footprint.peak(s) for s in footprint.settings(batches or budget.BATCHES, can_cache=can_cache)]
    best = budget.recommend(peaks, vram)
    line = None if best is None else _command(best, run)
    if as_json:
        rows = [peak.as_row() | {"fits": peak.gb <= vram} for peak in peaks]
        click.echo(json.dumps({"vram_gb": vram, "settings": rows, "command": line}, indent=1))
        return
    click.echo("\n".join(_table(peaks, vram)) + "\n" + NOTE)
    click.echo(line or f"Nothing fits into {vram:g} GB: lower --resolution, or --use_8bit_adam.")


def _measure(run: dict[str, Any]) -> Footprint:
    """Measures, and puts into `run` which family and resolution it is."""
    from mldm_plugin.errors import MldmError

    try:
        import torch
        from diffusers.utils import logging

        from mldm_plugin.planning.budget import measure
        from mldm_plugin.planning.families import FAMILIES, read_family
    except ImportError as error:
        raise MldmError(f"`mldm plan` needs what training needs ({error}): pip install 'mldm-plugin[train]'") from error
    logging.set_verbosity_error()
    shapes = FAMILIES[run["family"]]
    if run["folder"] is not None:
        shapes = read_family(run["folder"])
        run["family"] = "sdxl" if len(shapes.text_encoders) == 2 else "sd15"
    run["resolution"] = run["resolution"] or shapes.resolution
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}[run["mixed_precision"]]
    return measure(shapes, run["kind"], dtype, run["resolution"], rank=run["rank"], eight_bit=run["use_8bit_adam"])


def _table(peaks: list[Peak], vram: float) -> list[str]:
    """Peak GB; a row for each setting, a column for each batch; a star where it does not fit."""
    rows: dict[str, dict[int, float]] = {}
    for peak in peaks:
        s = peak.setting
        words = ["yes" if on else "no" for on in (s.gradient_checkpointing, s.cache_latents)]
        rows.setdefault(f"{s.decode:<28} {words[0]:<23} {words[1]:<14}", {})[s.batch] = peak.gb
    columns = sorted({peak.setting.batch for peak in peaks})
    head = f"{'decode':<28} {'gradient_checkpointing':<23} {'cache_latents':<14}"
    lines = ["peak GB, * more than there is", head + "".join(f"{f'batch {b}':>10}" for b in columns)]
    for name, gb in rows.items():
        lines.append(name + "".join(f"{f'{gb[b]:.1f}' + ('*' if gb[b] > vram else ' '):>10}" for b in columns))
    return lines


def _command(peak: Peak, run: dict[str, Any]) -> str:
    from mldm_plugin.planning.budget import DECODES

    setting = peak.setting
    parts = [SCRIPTS[run["family"], run["kind"]], "--loss-plugin mldm"]
    parts += [f"--set {words}" for words in DECODES[setting.decode]]
    parts += [f"--resolution {run['resolution']}", f"--train_batch_size {setting.batch}"]
    parts += ["--gradient_checkpointing"] if setting.gradient_checkpointing else []
    parts += ["--cache_latents"] if setting.cache_latents else []
    parts += ["--use_8bit_adam"] if run["use_8bit_adam"] else []
    parts += [f"--mixed_precision {run['mixed_precision']}", "…"]
    return " ".join([*parts, *([f"--rank {run['rank']}"] if run["kind"] == "lora" else [])])
