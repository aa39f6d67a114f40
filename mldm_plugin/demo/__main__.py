"""`python -m mldm_plugin.demo`: Masked LDM trained on real photographs, start to finish, in a few minutes."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from mldm_plugin.errors import DataError, MldmError

STEPS = 120
RESOLUTION = 256


def main() -> int:
    """The command: 0 when the losses fell, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m mldm_plugin.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder (default: runs/demo)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps (default: {STEPS})")
    arguments = parser.parse_args()
    try:
        return run(arguments.out, arguments.steps)
    except MldmError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def run(out: Path, steps: int) -> int:
    """Prepare, train, compare. An interrupted demo goes on where it was; a finished one starts anew."""
    from mldm_plugin.demo.photos import write_training_set
    from mldm_plugin.demo.pipeline import build_pipeline

    make_room(out)
    say("1. Photographs with person masks and face boxes, annotated in COCO format")
    data = write_training_set(out / "data")
    say(f"   {data}: pictures, masks/, metadata.jsonl")
    say("2. A tiny Stable Diffusion 1.x, fitted to these photographs; it ships with the package")
    model = build_pipeline(out / "model")
    say(f"   {model}")
    say("3. Training a ControlNet with Masked LDM")
    command = training_command(model, data, out, steps)
    say("   $ " + " ".join(command[2:]).replace("accelerate.commands.launch", "accelerate launch"))
    status = subprocess.run(command, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}).returncode
    if status:
        return status
    return report(out, model, data)


def training_command(model: Path, data: Path, out: Path, steps: int) -> list[str]:
    """The trainer's command line; it is the one of the README with other paths."""
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--num_cpu_threads_per_process", str(os.cpu_count() or 1)),
        *("-m", "mldm_plugin.training.controlnet"),
        *("--loss-plugin", "mldm", "--preset", "demo"),
        *("--pretrained_model_name_or_path", str(model), "--train_data_dir", str(data), "--output_dir", str(out)),
        *("--cache_dir", str(out / "cache"), "--resolution", str(RESOLUTION)),
        *("--max_train_steps", str(steps), "--resume_from_checkpoint", "latest"),
    ]


def report(out: Path, model: Path, data: Path) -> int:
    """Curves, a picture before and after, and a table of every loss on fixed noise."""
    from diffusers import ControlNetModel, DDPMScheduler, StableDiffusionPipeline

    from mldm_plugin.demo.compare import before_and_after, load_examples, measure
    from mldm_plugin.demo.curves import plot_curves, read_metrics
    from mldm_plugin.engine.stack import LossStack
    from mldm_plugin.records.panels import save_panel
    from mldm_plugin.training.run_folder import checkpoints_in, step_of

    say("4. The same pictures and the same noise, before training, at each checkpoint and after it")
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    stack = LossStack.from_preset(
        out / "preset.yaml", vae=pipeline.vae, noise_scheduler=scheduler, announce=lambda text: None
    )
    examples = load_examples(data, RESOLUTION)
    before, seen_before = measure(pipeline, None, stack, examples)
    metrics, measured = read_metrics(out / "metrics.jsonl"), [(0, before)]
    states = {step_of(c): c / "controlnet" for c in checkpoints_in(out)} | {len(metrics): out}
    after, seen_after = before, seen_before
    for step, folder in states.items():
        after, seen_after = measure(pipeline, ControlNetModel.from_pretrained(folder), stack, examples)
        measured.append((step or 0, after))
    plot_curves(metrics, measured, out / "curves.png")
    save_panel(
        before_and_after(stack, [e.pixel_values for e, _ in examples], seen_before, seen_after),
        out / "before_after.png",
    )
    say(f"   {'':<14} {'before':>8} {'after':>8}")
    for name in before:
        change = (after[name] / before[name] - 1) * 100
        say(f"   {name:<14} {before[name]:>8.4f} {after[name]:>8.4f}  {change:+.1f} %")
    say("\nLook at:")
    panels = sorted((out / "panels").glob("*.png"))
    for path in (out / "before_after.png", out / "curves.png", *panels[-1:], out / "metrics.jsonl"):
        say(f"   {path}")
    fell = after["loss"] < before["loss"]
    say(f"The loss {'fell' if fell else 'did not fall'}: {before['loss']:.4f} → {after['loss']:.4f}.")
    return 0 if fell else 1


def make_room(out: Path) -> None:
    """Remove a finished demo; leave an interrupted one; refuse anything else."""
    ours = (out / "model" / "model_index.json").is_file() and (out / "data" / "metadata.jsonl").is_file()
    if out.exists() and any(out.iterdir()) and not ours:
        raise DataError(f"{out} holds something else than a demo run; choose another folder with --out.")
    if ours and (out / "before_after.png").exists():
        shutil.rmtree(out)


def say(text: str) -> None:
    """A line for the reader, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
