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

from mldm_plugin.demo.photos import HELD_OUT, LEARNT, NAMES, SHOWN, Photo, photos_of, write_image_folder
from mldm_plugin.errors import DataError, MldmError
from mldm_plugin.people_mini import PIPELINE
from mldm_plugin.records.files import write_text

STEPS = 200
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
WEIGHTS = ("alexnet", "dlib_resnet", "vgg16", "mtcnn")  # of the losses and of the judges
MARK = "demo.json"  # in a folder of the demo's: what was asked for
MASKED_LDM = ("--loss-plugin", "mldm", "--preset", "demo")


@dataclass(frozen=True)
class Training:
    """One of the trainings.

    Args:
        title: in the table and in the pictures.
        folder: of the run.
        steps: its length.
        losses: flags that say what is optimised besides the plain loss.
    """

    title: str
    folder: Path
    steps: int
    losses: tuple[str, ...] = ()


def main() -> int:
    """The command: 0 when it came to its end, whichever loss did better."""
    parser = argparse.ArgumentParser(prog="python -m mldm_plugin.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder (default: runs/demo)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps, at least 2 (default: {STEPS})")
    parser.add_argument("--person", choices=sorted(NAMES), default=SHOWN, help=f"of openpeople (default: {SHOWN})")
    count = len(HELD_OUT)
    parser.add_argument("--photos", type=int, choices=range(1, count + 1), default=count, help="to compare with")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps: at least 2, for the time between two steps is measured")
    try:
        run(arguments.out, arguments.person, arguments.steps, arguments.photos)
    except MldmError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from there.\n")
        return 130
    return 0


def run(out: Path, person: str, steps: int, count: int) -> None:
    """Prepare, train, compare. An interrupted demo goes on where it was; a finished one starts anew.

    Raises:
        MldmError: weights or photographs that cannot be had, a folder that holds something else, a stop.
    """
    from mldm_plugin.perceptual.weights import fetch

    for name in WEIGHTS:
        fetch(name)
    make_room(out, {"person": person, "steps": steps})
    say(f"1. {len(LEARNT)} photographs of somebody the model has never seen, and who does not exist; masks, face boxes")
    data = write_image_folder(out / "data", photos_of(person, LEARNT))
    held_out = photos_of(person, HELD_OUT[:count])
    say(f"   {data}; {count} more are kept back to compare with")
    say("2. Training a LoRA with the plain loss")
    plain = Training("plain loss", out / "plain", steps)
    train(plain, data)
    say("3. The same from the same seed, on the same batches, with Masked LDM")
    masked = Training("Masked LDM", out / "masked_ldm", steps, MASKED_LDM)
    train(masked, data)
    longer = round(steps * seconds_a_step(masked.folder) / seconds_a_step(plain.folder))
    say(f"4. The plain loss again, for as long as Masked LDM took: {longer} steps")
    plain_longer = Training("plain loss, same time", out / "plain_longer", longer)
    train(plain_longer, data)
    say("5. Each draws the person from the same noise, and restores photographs that it has not seen")
    compare(out, held_out, [plain, plain_longer, masked])


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


def compare(out: Path, photos: Sequence[Photo], trainings: Sequence[Training]) -> None:
    """Two pictures and a table; the last training is compared with each other."""
    import torch

    from mldm_plugin.demo.compare import MEASURES, Judge, Painter, everywhere, faces_side_by_side, interval
    from mldm_plugin.records.panels import save_panel

    painter, judge = Painter(PIPELINE, photos), Judge(photos)
    drawn = {training.title: painter(training.folder) for training in trainings}
    found = {title: judge(pictures) for title, pictures in drawn.items()}
    n = len(photos)
    save_panel(faces_side_by_side(photos, {title: one.new[:n] for title, one in drawn.items()}), out / "new.png")
    restored = {title: one.restored[:n] for title, one in drawn.items()}
    save_panel(faces_side_by_side(photos, restored), out / "restored.png")

    say(f"\n   {'':<22}{'steps':>6}{'minutes':>9}{'faces found':>14}" + "".join(f"{m:>22}" for m in MEASURES.values()))
    seen = everywhere(found.values())  # pictures in which every training shows a face
    rows: dict[str, Any] = {}
    for training in trainings:
        minutes = training.steps * seconds_a_step(training.folder) / 60
        values = found[training.title]
        means = {name: float(v[seen].mean()) if seen.any() else None for name, v in values.items()}
        faces = int(values["identity"].isfinite().sum())
        figures = "".join(f"{'–' if m is None else format(m, '.3f'):>22}" for m in means.values())
        say(f"   {training.title:<22}{training.steps:>6}{minutes:>9.1f}{f'{faces} of {len(seen)}':>14}{figures}")
        rows[training.title] = {"steps": training.steps, "minutes": minutes, "faces": faces, **means}
    last = found[trainings[-1].title]
    for training in trainings[:-1]:
        pairs = ((name, last[name], found[training.title][name]) for name in MEASURES)
        gaps = {name: interval(a.where(seen, torch.nan), b, n) for name, a, b in pairs}
        rows[training.title]["interval"] = gaps
        text = "".join(f"{'–' if gap is None else '{:+.3f} to {:+.3f}'.format(*gap):>22}" for gap in gaps.values())
        say(f"   {'Masked LDM − ' + training.title:<51}{text}")
    say("   Smaller is better. Identity is judged by the network that Masked LDM trains on, LPIPS by VGG16, which it")
    say("   does not. Ranges: 95 % of the mean difference over photographs; they know nothing of another seed.")
    write_text(out / "results.json", json.dumps(rows, indent=2) + "\n")
    say("\nLook at:")
    for name in ("new.png", "restored.png", "masked_ldm/panels", "results.json"):
        if (out / name).exists():
            say(f"   {out / name}")


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
