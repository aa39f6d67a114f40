"""`mldm plan`: which settings fit into a GPU."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mldm_plugin.errors import MldmError
from mldm_plugin.requirements import packages_of, pip_install

if TYPE_CHECKING:
    from mldm_plugin.planning.budget import Footprint, Peak, Setting
    from mldm_plugin.preset import Preset

# Preset, script and model of each. SDXL is trained by diffusers' scripts with our losses attached; they have no
# --cache_latents.
SD15, SDXL = "stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0"
TASKS = {
    ("sd15", "controlnet"): ("controlnet", "train_controlnet", SD15),
    ("sd15", "lora"): ("lora-sd15", "train_text_to_image_lora", SD15),
    ("sdxl", "controlnet"): ("controlnet", "train_controlnet_sdxl", SDXL),
    ("sdxl", "lora"): ("lora-sdxl", "train_text_to_image_lora_sdxl", SDXL),
}
STEPS = 1000  # of Stable Diffusion's schedule, in whose timesteps presets write T
NOTE = """
One GPU; with several, add one more copy of the trained weights for their gradients' buckets. A
picture is taken to hold one face; each further one of a picture, up to eight, keeps 50 MB more in bfloat16.
Counted are the losses {counted}; not counted, where you add them: {others}.
"""
FURTHER = """
estimate: {estimate}. Peaks are those of a step whose every picture is gated. Each further answer is a forward pass of
the network, another one in the backward pass, and that pass itself; all of them take {further:.3g} TFLOP for a gated
picture, beside the {plain:.3g} of its step without losses. With the preset's T = {limit} that is {mean:.0%} more
operations of the network in the mean step.
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
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    help="Pictures per device. May be repeated; the largest that fits is recommended, else the preset's.",
)
@click.option("--rank", type=click.IntRange(min=1), help="Rank of the LoRA; by default the preset's.")
@click.option(
    "--mixed_precision",
    type=click.Choice(["bf16", "fp16", "no"]),
    default="bf16",
    show_default=True,
    help="As in training.",
)
@click.option("--use_8bit_adam", is_flag=True, help="AdamW with 8-bit state.")
@click.option(
    "--estimate",
    help="Of the clean latents that losses look at: one_step, direct-S or ddim-K; by default the preset's.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(vram: float, batches: tuple[int, ...], as_json: bool, **run: Any) -> None:
    """Which batch size and settings fit into --vram GB, computed from the shapes of the networks.

    Nothing is loaded and no GPU is needed; it takes half a minute and more. Peaks hold a margin for what tensors do not
    show. The last line is a command with the preset of the task. Exit status 1 if nothing fits.
    """
    footprint = _measure(run)
    from mldm_plugin.planning import budget

    task = Task.of(run)
    further = task.further(footprint.tflop)
    can_cache = run["family"] == "sd15"
    peaks = [footprint.peak(s) for s in footprint.settings(batches or budget.BATCHES, can_cache=can_cache)]
    best = budget.recommend(peaks, vram, None if batches else task.section["train_batch_size"])
    line = None if best is None else task.command(best.setting, run)
    if as_json:
        rows = [peak.as_row() | {"fits": peak.gb <= vram} for peak in peaks]
        found = {"vram_gb": vram, "settings": rows, "further_answers": further or None, "command": line}
        click.echo(json.dumps(found, indent=1))
    else:
        click.echo("\n".join(_table(peaks, vram)) + "\n" + _note() + (FURTHER.format(**further) if further else ""))
    if line is None:
        raise _too_large(peaks, vram, run)
    if not as_json:
        click.echo(f"{task.places}\n\n{line}")


def _note() -> str:
    """What the table holds, and which losses it does not."""
    from mldm_plugin.planning.pixels import COUNTED
    from mldm_plugin.plugins import load_plugins

    others = [name for name in load_plugins().losses.entries if name not in COUNTED]
    return NOTE.format(counted=" and ".join(COUNTED), others=", ".join([*others, "those of your own"]))


def _too_large(peaks: list[Peak], vram: float, run: dict[str, Any]) -> MldmError:
    """That nothing fits, what takes least, and what would take less."""
    least = min(peaks, key=lambda peak: peak.gb)
    ways = [f"lower --resolution, {run['resolution']} now"]
    ways += [] if run["use_8bit_adam"] else ["--use_8bit_adam"]
    ways += ["--train lora"] if run["kind"] == "controlnet" else []
    ways += ["--mixed_precision bf16"] if run["mixed_precision"] == "no" else []
    ways += ["--estimate one_step"] if (run["estimate"] or "").startswith("ddim-") else []
    return MldmError(
        f"nothing fits into {vram:g} GB; batch {least.setting.batch} takes {least.gb:.1f} GB at least. What takes "
        f"less: {', '.join(ways)}."
    )


def _measure(run: dict[str, Any]) -> Footprint:
    """Measures, and puts into `run` which family and resolution it is."""
    try:
        import torch
        from diffusers.utils import logging

        from mldm_plugin.planning.budget import measure
        from mldm_plugin.planning.families import FAMILIES, read_family
    except ImportError as error:
        raise MldmError(
            f"`mldm plan` needs what training needs ({error}): {pip_install(*packages_of('train'))}"
        ) from error
    logging.set_verbosity_error()
    shapes = FAMILIES[run["family"]]
    if run["folder"] is not None:
        shapes = read_family(run["folder"])
        run["family"] = "sdxl" if len(shapes.text_encoders) == 2 else "sd15"
    run["resolution"] = run["resolution"] or shapes.resolution
    task = Task.of(run)
    run["rank"] = run["rank"] or task.section.get("rank")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}[run["mixed_precision"]]
    return measure(
        shapes,
        run["kind"],
        dtype,
        run["resolution"],
        rank=run["rank"] or 1,
        eight_bit=run["use_8bit_adam"],
        answers=task.values.answers,
        tell=lambda part: click.echo(f"measuring {part} …", err=True),
    )


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


@dataclass(frozen=True)
class Task:
    """What is trained by which script, with which preset.

    Args:
        preset: its name.
        script: the script's, without .py.
        model: the pipeline on the Hub.
        values: the whole preset, with what was asked for.
        asked: what was asked for, as `--set` takes it.
    """

    preset: str
    script: str
    model: str
    values: Preset
    asked: tuple[str, ...]

    @classmethod
    def of(cls, run: dict[str, Any]) -> Task:
        """That of the family and kind of a run.

        Raises:
            MldmError: an estimate that there is not, or not with this script.
        """
        from mldm_plugin.preset import load_preset

        preset, script, model = TASKS[run["family"], run["kind"]]
        asked = [] if run["estimate"] is None else [f"estimate={run['estimate']}"]
        task = cls(preset, script, model, load_preset(preset, asked), tuple(asked))
        if task.values.answers > 1 and not task.is_ours:
            raise MldmError(
                f"--estimate is {run['estimate']}, but SDXL is trained by diffusers' {script}.py, whose network cannot "
                "be asked again: use one_step or direct-S, or --family sd15."
            )
        return task

    @property
    def section(self) -> dict[str, Any]:
        """The preset's settings for the script."""
        return self.values.training[self.script]

    @property
    def is_ours(self) -> bool:
        """Whether the script is one of this project."""
        from mldm_plugin.training.command_line import TRAINERS

        return self.script in {kind.section() for kind in TRAINERS}

    @property
    def places(self) -> str:
        """What stands in the command for a folder of the user's."""
        data = "masks, face boxes and hints" if "controlnet" in self.script else "masks and face boxes"
        scripts = "" if self.is_ours else ", SCRIPTS that of diffusers' script"
        return f"DATA_DIR is a data set with {data} (docs/data.md), OUTPUT_DIR the folder of the run{scripts}."

    def further(self, tflop: tuple[float, float]) -> dict[str, Any]:
        """What the answers after the first cost, by the operations of a step on one picture and those that it takes
        more where the picture is gated; empty with one answer."""
        if self.values.answers == 1:
            return {}
        limits = (loss.max_timestep for loss in self.values.losses.values() if loss.weight)
        limit = max((STEPS - 1 if t is None else t for t in limits), default=STEPS - 1)
        plain, further = tflop
        mean = further / plain * (limit + 1) / STEPS
        return {"estimate": self.values.estimate, "plain": plain, "further": further, "limit": limit, "mean": mean}

    def command(self, setting: Setting, run: dict[str, Any]) -> str:
        """The whole command of a training in this setting; what the preset says otherwise is set."""
        start = f"accelerate launch {self.script}.py"
        if not self.is_ours:
            start = f"accelerate launch -m mldm_plugin SCRIPTS/{self.script}.py"
        parts = [
            start,
            f"--loss-plugin mldm --preset {self.preset}",
            *(f"--set {change}" for change in self._changes(setting)),
        ]
        parts += [f"--pretrained_model_name_or_path {run['folder'] or self.model}"]
        parts += [
            "--train_data_dir DATA_DIR --output_dir OUTPUT_DIR",
            f"--learning_rate {self.section['learning_rate']:g}",
        ]
        parts += [f"--resolution {run['resolution']}", f"--train_batch_size {setting.batch}"]
        parts += [f"--rank {run['rank']}"] if run["kind"] == "lora" else []
        parts += ["--gradient_checkpointing"] if setting.gradient_checkpointing else []
        if setting.cache_latents:  # our LoRA trainer crops at random, which a cache cannot hold
            parts += ["--cache_latents"] + ["--center_crop"] * (run["kind"] == "lora")
        parts += ["--use_8bit_adam"] if run["use_8bit_adam"] else []
        return " ".join([*parts, f"--mixed_precision {run['mixed_precision']}"])

    def _changes(self, setting: Setting) -> list[str]:
        from mldm_plugin.planning.budget import CHECKPOINTED, DECODES

        changes = [*self.asked, *DECODES[setting.decode]]
        if self.values.decode_checkpointing:
            changes = [c for c in changes if c != CHECKPOINTED]
            changes += [] if CHECKPOINTED in DECODES[setting.decode] else ["decode_checkpointing=false"]
        if self.section.get("gradient_checkpointing") and not setting.gradient_checkpointing:
            changes.append(f"training.{self.script}.gradient_checkpointing=false")
        return changes
