"""What a run's own files say of it, in words: what was trained, the proof, the settings, the command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from mldm_plugin.doctor.losses import PRESET
from mldm_plugin.doctor.run import Run
from mldm_plugin.preset_flags import as_flags
from mldm_plugin.records.run_files import PROOF

LEFT_OUT = ("num_processes", "local_rank", "resume_from_checkpoint")  # accelerate's, and of one start alone
_PROOF = re.compile(r"\s+(\S+)\s+(\S+)\s+(\d+|all)\s+(\S+)\s+(\S+)\s\s(.*)")


def preset_of(run: Run) -> dict[str, Any]:
    """Its preset as the file says; empty where there is none that can be read."""
    if run.records is None:
        return {}
    try:
        found = yaml.safe_load((run.records / PRESET).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(found, dict):
        return {}
    losses = found.get("losses")
    known = losses.items() if isinstance(losses, dict) else ()
    return {**found, "losses": {str(name): of for name, of in known if isinstance(of, dict)}}


def proof_of(run: Run) -> dict[str, Any] | None:
    """The start-up proof in rows; None where the run kept none."""
    if run.records is None:
        return None
    try:
        lines = (run.records / PROOF).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    told = [line for line in lines if line.startswith("  ") and line.split()[:2] != ["loss", "weight"]]
    rows = [match.groups() for line in told if (match := _PROOF.match(line))]
    notes = [line.strip() for line in told if not _PROOF.match(line)]
    return {"title": lines[0], "rows": rows, "notes": notes} if rows else None


def settings_of(run: Run, preset: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was trained, from what and on what, as far as it is known."""
    flags = run.arguments
    found = [("trained", run.kind or ""), ("from", run.base or ""), ("on", "" if run.data is None else str(run.data))]
    batch = [f"{flags[name]} {word}" for name, word in _BATCH if flags.get(name) not in (None, 1)]
    found.append(("a step", " × ".join(batch)))
    sides = flags.get("resolution")
    found.append(("resolution", f"{sides} pixels" if sides else ""))
    rate, schedule = flags.get("learning_rate"), flags.get("lr_scheduler")
    found.append(("learning rate", f"{rate:g}, {schedule}" if isinstance(rate, float) else ""))
    found.append(("precision", str(flags.get("mixed_precision") or "").replace("no", "float32")))
    found.append(("seed", str(flags["seed"]) if flags.get("seed") is not None else ""))
    losses = [_loss(name, of) for name, of in preset.get("losses", {}).items() if of.get("weight")]
    found.append(
        ("preset", " · ".join(filter(None, (str(flags.get("preset") or ""), str(preset.get("combine") or "")))))
    )
    found.append(("losses", "; ".join(losses)))
    return [(name, text) for name, text in found if text]


_BATCH = (
    ("train_batch_size", "pictures"),
    ("gradient_accumulation_steps", "micro-batches"),
    ("num_processes", "processes"),
)


def _loss(name: str, settings: Mapping[str, Any]) -> str:
    limit = settings.get("max_timestep")
    said = [f"weight {settings['weight']}", "every t" if limit is None or limit == 999 else f"T = {limit}"]
    said += [f"{settings['network']}"] if settings.get("network") else []
    said += [f"balance: {settings['balance']}"] if settings.get("balance") else []
    return f"{name} ({', '.join(said)})"


def command_of(run: Run) -> str | None:
    """The command that repeats a run of our trainers, with all its flags; None of others, whose flags are not ours."""
    flags = run.arguments
    if not flags:
        return None
    script = "train_conditional_ldm.py"
    if "controlnet_model_name_or_path" in flags:
        script = "train_controlnet.py"
    elif "rank" in flags:
        script = "train_text_to_image_lora.py"
    asked = {name: value for name, value in flags.items() if name not in LEFT_OUT}
    words = [shlex.join(words) for name, value in asked.items() if (words := as_flags({name: value}))]
    launch = f"accelerate launch --num_processes {flags.get('num_processes') or 1} {script}"
    return " \\\n  ".join([launch, *words])
