"""Faces from attributes and masks on a GPU that is lent for minutes (docs/evidence_protocol.md): what `mldm reproduce`
makes in a day of a CPU core, with larger batches, and as many steps as there is time for.

python docs/faces_gpu.py data FOLDER --vgg STAGES
python docs/faces_gpu.py train FOLDER --seconds 300
python docs/faces_gpu.py keep FOLDER RESULTS

`data` draws portraits, trains the autoencoder and the judges, and tries the trainer, with a resumed step. `train`
trains all runs side by side at a constant rate, whose moving average can be looked at after any step. `keep` takes the
last checkpoint that all runs of a table have, without the autoencoder, in float16. STAGES is what
`mldm_plugin.people_mini.perceptual.write_three_stages` wrote, a tenth of VGG16.
"""

from __future__ import annotations

import argparse
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel

from mldm_plugin.conditions.conditions import Conditions
from mldm_plugin.conditions.pipeline import ConditionalLDMPipeline, put_step
from mldm_plugin.evaluation.models import argument_of
from mldm_plugin.faces.autoencoder import train_autoencoder
from mldm_plugin.faces.pictures import read_faces
from mldm_plugin.people_mini.perceptual import read_three_stages
from mldm_plugin.reproduce.commands import Training
from mldm_plugin.reproduce.faces import FacesMini
from mldm_plugin.reproduce.recipes import RECIPES
from mldm_plugin.reproduce.run import Reproduction

MANY = 1_000_000  # more steps than there is time for
TABLES = {"faces-table1": 5, "faces-table5": 1}  # and the seeds of their arms
BATCH, EVERY = 64, 500  # pictures of a step, and steps between checkpoints


def trainings(folder: Path, batch: int, every: int) -> list[Training]:
    """Every arm and seed; those that are slower first."""
    scale = FacesMini(folder)
    pairs = [(arm, seed) for table in reversed(TABLES) for seed in range(TABLES[table]) for arm in RECIPES[table].arms]
    return [with_settings(scale.training(arm, seed, MANY), batch, every) for arm, seed in pairs]


def with_settings(training: Training, batch: int, every: int) -> Training:
    """The training of `mldm reproduce`, with what is not its preset's."""
    flags = list(training.flags)
    own = {
        "--train_batch_size": str(batch),
        "--lr_scheduler": "constant_with_warmup",
        "--checkpointing_steps": str(every),
        "--dataloader_num_workers": "1",
    }
    for name in own.keys() & flags:
        at = flags.index(name)
        del flags[at : at + 2]
    return replace(training, flags=(*flags, *(word for flag in own.items() for word in flag), "--allow_tf32"))


def make_data(folder: Path, vgg: Path, portraits: int, steps: int, judge_steps: int, batch: int) -> None:
    """Portraits, then the autoencoder beside the judges, then one training of a few steps, stopped and resumed."""
    scale, clock = FacesMini(folder, portraits=portraits, judge_steps=judge_steps), time.monotonic()
    drawing, read, _, judged = scale.data()
    for command in (drawing, read):
        command.call()
    print(f"{time.monotonic() - clock:.0f} s: {portraits} portraits", flush=True)  # noqa: T201
    with ThreadPoolExecutor(1) as beside:
        judging = beside.submit(judged.call)
        known, held_out = (read_faces(scale.pictures, split, scale.side) for split in ("train", "validation"))
        found = train_autoencoder(known, held_out, steps, scale.autoencoder, read_three_stages(vgg))
        print(f"{time.monotonic() - clock:.0f} s: autoencoder, {found:.2f} dB", flush=True)  # noqa: T201
        tried = with_settings(scale.training(RECIPES["faces-table5"].arms[0], 0, 2), batch, every=1)
        tried = replace(tried, folder=folder / "tried")
        for length in (2, 4):  # the second goes on at the first one's checkpoint; the first encodes for all runs
            (tried.folder / "model_index.json").unlink(missing_ok=True)
            done = replace(tried, steps=length).start(4).wait()
            if done:
                raise SystemExit(f"the trainer ended with {done}")
        judging.result()
    print(f"{time.monotonic() - clock:.0f} s: judges, and latents", flush=True)  # noqa: T201


def train(folder: Path, seconds: float, batch: int, every: int) -> None:
    """All runs side by side, until the time is over; they are asked to stop, and save."""
    asked = trainings(folder, batch, every)
    together = Reproduction(RECIPES["faces-table1"], FacesMini(folder), 1, 0, len(asked))
    together.train(asked, time.monotonic() + seconds)


def steps_of(run: Path) -> set[int]:
    """After which its checkpoints are."""
    return {int(one.name.rpartition("-")[2]) for one in run.glob("checkpoint-*") if one.is_dir()}


def keep(folder: Path, results: Path, every: int) -> None:
    """The runs after the last step that all of their table have."""
    scale = FacesMini(folder)
    vae = AutoencoderKL.from_pretrained(scale.autoencoder / "vae")
    for table, seeds in TABLES.items():
        runs = [(arm, scale.training(arm, seed, MANY).folder) for arm in RECIPES[table].arms for seed in range(seeds)]
        step = max(s for s in set.intersection(*(steps_of(run) for _, run in runs)) if s % every == 0)
        print(f"{table}: {step} steps; " + ", ".join(f"{run.name} {max(steps_of(run))}" for _, run in runs))  # noqa: T201
        for _, run in runs:
            keep_run(run, step, vae, results / run.name)


def keep_run(run: Path, step: int, vae: AutoencoderKL, out: Path) -> None:
    """The moving average of a run after a step, what it was started with, and what it logged."""
    model = run / f"checkpoint-{step}" / "model"
    told = {name: argument_of(run, name) for name in ("beta_start", "beta_end")}
    told["prediction_type"] = argument_of(run, "prediction_type") or "epsilon"  # older runs do not say it
    schedule = DDPMScheduler(**told, beta_schedule="scaled_linear", clip_sample=False)
    pipeline = ConditionalLDMPipeline(
        vae,
        UNet2DConditionModel.from_pretrained(model / "unet"),
        DDIMScheduler.from_config(schedule.config),
        Conditions.from_pretrained(model / "conditions"),
    )
    put_step(pipeline, model)
    for part in (pipeline.unet, pipeline.conditions):
        part.to(torch.float16)
    pipeline.save_pretrained(out)
    shutil.rmtree(out / "vae")
    for name in ("arguments.json", "preset.yaml", "metrics.jsonl", "machine.json"):
        shutil.copy(run / name, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["data", "train", "keep"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("results", type=Path, nargs="?")
    parser.add_argument("--vgg", type=Path)
    parser.add_argument("--portraits", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=6000, help="of the autoencoder")
    parser.add_argument("--judge-steps", type=int, default=3000)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--every", type=int, default=EVERY)
    args = parser.parse_args()
    if args.what == "data":
        make_data(args.folder, args.vgg, args.portraits, args.steps, args.judge_steps, args.batch)
    elif args.what == "train":
        train(args.folder, args.seconds, args.batch, args.every)
    else:
        keep(args.folder, args.results, args.every)


if __name__ == "__main__":
    main()
