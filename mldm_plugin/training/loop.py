"""The loop around a trainer's step, and what follows each optimizer step and the last one."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from tqdm.auto import tqdm

from mldm_plugin.errors import MldmError, NonFiniteLossError
from mldm_plugin.plugins import load_plugins
from mldm_plugin.preset import load_preset
from mldm_plugin.training.agreement import ReportedElsewhereError, together
from mldm_plugin.training.arguments import name_the_plugin, of_other_trainers
from mldm_plugin.training.hub import upload
from mldm_plugin.training.objective import Outcome
from mldm_plugin.training.run import Run
from mldm_plugin.training.stop import StopRequest
from mldm_plugin.training.trainer import Trainer
from mldm_plugin.training.validation import validate


def main(trainer: Trainer, argv: Sequence[str] | None = None) -> int:
    """The command: 0 when trained or stopped in good order, 1 with one line on what to mend."""
    preset = plugins = None
    started = False
    try:
        given = name_the_plugin(trainer.flags.parse(argv))
        if "preset" in given:
            plugins = load_plugins(given["loss_plugin"])
            preset = load_preset(given["preset"], given.get("set", ()), plugins=plugins)
        arguments = trainer.flags.resolve(given, training_section(trainer, preset.training if preset else {}))
        started = True
        train(Run.assemble(trainer, arguments, preset, plugins))
    except ReportedElsewhereError:
        return 1
    except MldmError as error:
        if started:
            sys.stderr.write(f"error: {error}\n")
        else:  # all processes fail alike
            tell(f"error: {error}")
        return 1
    return 0


def training_section(trainer: Trainer, training: dict[str, Any]) -> dict[str, Any]:
    """A preset's `training:` section without the flags of other trainers, which are told."""
    others = of_other_trainers(trainer.flags, training)
    if others:
        tell(f"not used here, flags of another trainer: {', '.join(f'training.{name}' for name in others)}")
    return {name: value for name, value in training.items() if name not in others}


def tell(line: str) -> None:
    """A line on standard error, from the first process of a run."""
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(line + "\n")


def train(run: Run) -> None:
    """Train to the end, or until a signal asks to stop; then save."""
    stopped = False
    bar = tqdm(
        total=run.length.steps,
        initial=run.step,
        desc="steps",
        disable=not run.accelerator.is_local_main_process,
    )
    with StopRequest() as stop, bar:
        while run.step < run.length.steps and not stopped:
            epoch = run.batches.epoch
            for batch in run.batches.one_pass():
                outcome = run.trainer.training_step(run, batch)
                run.meter.add(outcome.numbers)
                if run.accelerator.sync_gradients:
                    stopped = finish_step(run, outcome, stop, bar)
                    if stopped or run.step >= run.length.steps:
                        break
            if not stopped:
                finish_pass(run, epoch)
    finish(run, stopped)


def finish_step(run: Run, outcome: Outcome, stop: StopRequest, bar: tqdm) -> bool:
    """Log, look, save. Returns whether some process was asked to stop."""
    arguments, accelerator = run.arguments, run.accelerator
    run.step += 1
    failure = run.objective.failure
    flags = [stop.received is not None, failure is not None, isinstance(failure, NonFiniteLossError)]
    numbers, (stopped, failed, nonfinite) = run.meter.mean(accelerator, flags)
    if not failed or nonfinite:
        write_record(run, numbers, bar)
    if not failed and accelerator.is_main_process:
        look(run, outcome)
    if stopped or nonfinite or (not failed and run.step % arguments.checkpointing_steps == 0):
        run.checkpoints.save(run.step, run.batches.state())
    if failed:
        with together(accelerator):
            if failure is not None:
                raise failure
    if stopped:
        accelerator.print(
            f"stopped by a signal after step {run.step}; checkpoint-{run.step} is saved, continue with "
            "--resume_from_checkpoint latest"
        )
    return stopped


def write_record(run: Run, numbers: dict[str, Any], bar: tqdm) -> None:
    """One optimizer step in metrics.jsonl, in the trackers and on the progress bar."""
    first = {"step": run.step, "loss": numbers["loss"], "lr": run.lr_scheduler.get_last_lr()[0], "ldm": numbers["ldm"]}
    record = first | numbers
    if run.accelerator.is_main_process:
        run.metrics.write(record)
    shown = {k: v for k, v in record.items() if v is not None and k != "step"}
    run.accelerator.log(shown, step=run.step)
    bar.update(1)
    bar.set_postfix(shown)


def look(run: Run, outcome: Outcome) -> None:
    """Panels and validation pictures, when their step has come."""
    arguments = run.arguments
    if outcome.report is not None and arguments.panel_steps and run.step % arguments.panel_steps == 0:
        run.objective.draw(outcome, run.folder / "panels" / f"step-{run.step:06d}.png")
    if arguments.validation_prompt and run.trainer.samples_after_step(run):
        validate(run)


def finish_pass(run: Run, epoch: int) -> None:
    """Validation pictures, when their pass has come."""
    due = run.arguments.validation_prompt and run.trainer.samples_after_pass(run, epoch)
    if due and run.accelerator.is_main_process:
        validate(run)


def finish(run: Run, stopped: bool) -> None:
    """Save the trained weights, sample them once more and upload them, unless the run was only interrupted."""
    accelerator, trainer = run.accelerator, run.trainer
    accelerator.wait_for_everyone()
    if not stopped:
        run.checkpoints.require_finite(run.step)
    if accelerator.is_main_process and not stopped:
        trainer.weights.save_whole(run.networks.trained, run.folder)
        sampled = validate(run, final=True) if run.arguments.validation_prompt else []
        if run.repository is not None:
            upload(trainer.what, run.arguments, run.repository, sampled)
    accelerator.end_training()
