"""`python -m mldm_plugin.demo`: a person the model has never seen, learnt with the plain loss and with Masked LDM."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mldm_plugin.demo.photos import HELD_OUT, LEARNT, NAMES, SHOWN, photos_of, write_image_folder
from mldm_plugin.errors import DataError, MldmError
from mldm_plugin.people_mini import PIPELINE
from mldm_plugin.records.files import write_text

STEPS = 120
# What both trainings have in common; docs/demo.md says what was tried on another person.
FLAGS = {
    "--resolution": 128,
    "--train_batch_size": 4,
    "--rank": 16,
    "--learning_rate": 1e-3,
    "--lr_scheduler": "cosine",
    "--lr_warmup_steps": 0,
    "--seed": 0,
    "--checkpointing_steps": 50,
    "--checkpoints_total_limit": 1,
    "--panel_steps": 100,
}
SWITCHES = ("--random_flip", "--center_crop", "--cache_latents")
WEIGHTS = ("alexnet", "dlib_resnet", "vgg16", "mtcnn")  # of the losses, of LPIPS as a judge, of the finder of faces
JUDGE = "faceres"  # of faces; no loss offers it
NOISES, GUIDANCE, SAMPLER_STEPS = 2, 3.0, 20  # of each prompt's pictures
# What the table shows of the report: a name, and the column's title.
COLUMNS = {
    "identity": "likeness ↑",
    "one_step_face": "distance of faces ↓",
    "one_step_lpips_person": "LPIPS on people ↓",
    "one_step_error": "error of ε ↓",
}
MARK = "demo.json"  # in a folder of the demo's: what was asked for
MASKED_LDM = ("--loss-plugin", "mldm", "--preset", "demo")


@dataclass(frozen=True)
class Training:
    """One of the trainings.

    Args:
        name: in the table, in the report and of its folder.
        folder: of the run.
        steps: its length.
        losses: flags that say what is optimised besides the plain loss.
    """

    name: str
    folder: Path
    steps: int
    losses: tuple[str, ...] = ()


def main() -> int:
    """The command: 0 when it came to its end, whichever loss did better."""
    parser = argparse.ArgumentParser(prog="python -m mldm_plugin.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder (default: runs/demo)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps, at least 2 (default: {STEPS})")
    parser.add_argument("--person", choices=sorted(NAMES), default=SHOWN, help=f"of openpeople (default: {SHOWN})")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps: at least 2, for the time between two steps is measured")
    try:
        run(arguments.out, arguments.person, arguments.steps)
    except MldmError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from there.\n")
        return 130
    return 0


def run(out: Path, person: str, steps: int) -> None:
    """Prepare, train, compare. An interrupted demo goes on where it was; a finished one starts anew.

    Raises:
        MldmError: weights or photographs that cannot be had, a folder that holds something else, a stop.
    """
    judge = fetch_weights()
    make_room(out, {"person": person, "steps": steps})
    say(f"1. {len(LEARNT)} photographs of somebody the model has never seen, and who does not exist; masks, face boxes")
    data = out / "data"
    learnt = write_image_folder(data / "train", photos_of(person, LEARNT))
    write_image_folder(data / "validation", photos_of(person, HELD_OUT))
    say(f"   {learnt}; {len(HELD_OUT)} more are kept back to compare with, {data / 'validation'}")
    say("2. Training a LoRA with the plain loss")
    plain = Training("plain", out / "plain", steps)
    train(plain, learnt)
    say("3. The same from the same seed, on the same batches, with Masked LDM")
    masked = Training("masked_ldm", out / "masked_ldm", steps, MASKED_LDM)
    train(masked, learnt)
    longer = round(steps * seconds_a_step(masked.folder) / seconds_a_step(plain.folder))
    say(f"4. The plain loss again, for as long as Masked LDM took: {longer} steps")
    plain_longer = Training("plain_same_time", out / "plain_same_time", longer)
    train(plain_longer, learnt)
    say("5. Each draws the person from the same noise, and estimates the photographs that were kept back")
    compare(out, data, [masked, plain, plain_longer], judge)


def fetch_weights() -> str:
    """Get the networks, and say which metric judges likeness: that of the judge, or without it that of the loss."""
    from mldm_plugin.perceptual.weights import fetch

    for name in WEIGHTS:
        fetch(name)
    try:
        fetch(JUDGE)
    except MldmError as error:
        say(f"   Faces will be judged by the network that Masked LDM trains on, for another cannot be had: {error}")
        return "identity_dlib"
    return "identity"


def train(training: Training, data: Path) -> None:
    """Train in a process of its own, or go on with it; what is finished stays as it is."""
    command = training_command(training, data)
    say("   $ " + " ".join(command[2:]).replace("accelerate.commands.launch", "accelerate launch"))
    weights = training.folder / "pytorch_lora_weights.safetensors"
    if not weights.is_file():
        # Threads that wait do so asleep: awake, they take thirty times as long beside another busy program (measured).
        settings = {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
        status = subprocess.run(command, env={**settings, **os.environ}).returncode
        if not weights.is_file():  # a trainer that is asked to stop does so in good order, with status 0
            raise MldmError(f"the training ended early (status {status}); the same command goes on from there.")


def training_command(training: Training, data: Path) -> list[str]:
    """The trainer's command line; it is the one of the README with other paths."""
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--quiet"),
        *("--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--num_cpu_threads_per_process", str(os.cpu_count() or 1)),
        *("-m", "mldm_plugin.training.text_to_image_lora", *training.losses),
        *("--pretrained_model_name_or_path", str(PIPELINE), "--train_data_dir", str(data)),
        *("--output_dir", str(training.folder), "--cache_dir", str(training.folder.parent / "cache")),
        *("--max_train_steps", str(training.steps), "--resume_from_checkpoint", "latest"),
        *(str(word) for flag in FLAGS.items() for word in flag),
        *SWITCHES,
    ]


def seconds_a_step(folder: Path) -> float:
    """Mean time between two steps that a training logged, over each process that it took."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seconds, steps = 0.0, 0
    for file in (folder / "logs").rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        if "loss" in events.Tags()["scalars"] and len(seen := events.Scalars("loss")) > 1:
            seconds += seen[-1].wall_time - seen[0].wall_time
            steps += len(seen) - 1
    return seconds / steps


def compare(out: Path, data: Path, trainings: Sequence[Training], judge: str) -> None:
    """What `mldm evaluate` says of the trainings, the first against each other one."""
    from mldm_plugin.evaluation.evaluate import Asked, Sampling, evaluate
    from mldm_plugin.plugins import load_plugins

    asked = Asked(
        [f"{training.name}={training.folder}" for training in trainings],
        out / "report",
        data=data,
        number=len(HELD_OUT),
        photographs=len(HELD_OUT),
        person=data / "train",
        metrics=[judge],
        sampling=Sampling(steps=SAMPLER_STEPS, guidance=GUIDANCE, repetitions=NOISES),
    )
    results = evaluate(asked, load_plugins())
    rows = {training.name: row_of(training, results) for training in trainings}
    print_table(rows, judge)
    write_text(out / "results.json", json.dumps(rows, indent=2) + "\n")
    say("\nLook at:")
    for name in ("report/report.html", "report/figures/gallery.png", "masked_ldm/panels"):
        if (out / name).exists():
            say(f"   {out / name}")


def row_of(training: Training, results: dict[str, Any]) -> dict[str, Any]:
    """A training's length and what was measured, each with its difference to the first training."""
    minutes = training.steps * seconds_a_step(training.folder) / 60
    row: dict[str, Any] = {"steps": training.steps, "minutes": round(minutes, 2)}
    for metric in results["metrics"]:
        gap = metric["differences"].get(training.name)
        row[metric["name"]] = {"value": metric["models"][training.name]["value"], "difference": gap}
    return row


def print_table(rows: dict[str, dict[str, Any]], judge: str) -> None:
    """The trainings, then the first of them against each other: the 95 % interval and the verdict."""
    columns = {judge if name == "identity" else name: title for name, title in COLUMNS.items()}
    say(f"\n   {'':<28}{'steps':>6}{'minutes':>9}" + "".join(f"{title:>22}" for title in columns.values()))
    for name, row in rows.items():
        values = "".join(f"{row[column]['value']:>22.3f}" for column in columns)
        say(f"   {name:<28}{row['steps']:>6}{row['minutes']:>9.1f}{values}")
    first = next(iter(rows))
    for name, row in rows.items():
        if name != first:
            said = "".join(f"{_turned(row[column]['difference']):>22}" for column in columns)
            say(f"   {f'{first} − {name}':<43}{said}")
    say("   The same noise for all; 95 % intervals over the photographs; they know nothing of another seed.")


def _turned(gap: dict[str, Any]) -> str:
    """The interval of the first training against one, from that of the one against the first."""
    return "–" if gap["low"] is None else f"{-gap['high']:+.3f} to {-gap['low']:+.3f}"


def make_room(out: Path, asked: dict[str, Any]) -> None:
    """Make the folder. A finished demo in it is removed, an interrupted one left if it was asked for the same.

    Raises:
        DataError: the folder holds something else, or an unfinished demo of other settings.
    """
    mark = out / MARK
    if mark.is_file():
        if (out / "results.json").is_file():
            shutil.rmtree(out)
        elif (before := json.loads(mark.read_text(encoding="utf-8"))) != asked:
            raise DataError(
                f"{out} holds an unfinished demo with {before}, now it is {asked}: "
                "give the same again, choose another folder with --out, or remove that one."
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} holds something else than a demo run; choose another folder with --out.")
    out.mkdir(parents=True, exist_ok=True)
    write_text(mark, json.dumps(asked) + "\n")


def say(text: str) -> None:
    """A line for the reader, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
