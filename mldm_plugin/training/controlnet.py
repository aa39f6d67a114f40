"""Train a ControlNet for Stable Diffusion 1.x.

`diffusion_loss` is one micro-batch, `train` the loop around it, `finish_step` what follows an optimizer step.
Without a plugin the numbers are those of diffusers' examples/controlnet/train_controlnet.py, to the bit: random
draws keep its order. How the pieces are made is in `run`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel
from torch import Tensor
from tqdm.auto import tqdm

from mldm_plugin.errors import MldmError, NonFiniteLossError
from mldm_plugin.plugins import load_plugins
from mldm_plugin.preset import load_preset
from mldm_plugin.step import DiffusionStep
from mldm_plugin.training.agreement import ReportedElsewhereError, together
from mldm_plugin.training.arguments import name_the_plugin, parse_given, resolve
from mldm_plugin.training.hub import upload
from mldm_plugin.training.objective import Outcome, annotation_of
from mldm_plugin.training.run import Run
from mldm_plugin.training.run_folder import save_weights
from mldm_plugin.training.stop import StopRequest
from mldm_plugin.training.validation import validate


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 when trained or stopped in good order, 1 with one line on what to mend."""
    preset = plugins = None
    started = False
    try:
        given = name_the_plugin(parse_given(argv))
        if "preset" in given:
            plugins = load_plugins(given["loss_plugin"])
            preset = load_preset(given["preset"], given.get("set", ()), plugins=plugins)
        arguments = resolve(given, preset.training if preset else None)
        started = True
        train(Run.assemble(arguments, preset, plugins))
    except ReportedElsewhereError:
        return 1
    except MldmError as error:
        if started or os.environ.get("RANK", "0") == "0":  # before the start all processes fail alike
            sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def train(run: Run) -> None:
    """Train to the end, or until a signal asks to stop; then save."""
    accelerator, arguments = run.accelerator, run.arguments
    stopped = False
    bar = tqdm(
        total=run.length.steps,
        initial=run.step,
        desc="steps",
        disable=not accelerator.is_local_main_process,
    )
    with StopRequest() as stop, bar:
        while run.step < run.length.steps and not stopped:
            for batch in run.batches.one_pass():
                with accelerator.accumulate(run.model):
                    outcome = diffusion_loss(run, batch)
                    accelerator.backward(outcome.loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(run.networks.controlnet.parameters(), arguments.max_grad_norm)
                    run.optimizer.step()
                    run.lr_scheduler.step()
                    run.optimizer.zero_grad(set_to_none=arguments.set_grads_to_none)
                run.meter.add(outcome.numbers)
                if accelerator.sync_gradients:
                    stopped = finish_step(run, outcome, stop, bar)
                    if stopped or run.step >= run.length.steps:
                        break
    finish(run, stopped)


def diffusion_loss(run: Run, batch: dict[str, Any]) -> Outcome:
    """One micro-batch: noise the latents, predict, compare."""
    net = run.networks
    latents = net.vae.encode(batch["pixel_values"].to(run.dtype)).latent_dist.sample() * net.vae.config.scaling_factor
    noise = torch.randn_like(latents)
    last = net.noise_scheduler.config.num_train_timesteps
    timesteps = torch.randint(0, last, (len(latents),), device=latents.device)
    noisy_latents = net.noise_scheduler.add_noise(latents.float(), noise.float(), timesteps).to(run.dtype)
    model_pred = predict(run, batch, noisy_latents, timesteps)
    if net.noise_scheduler.config.prediction_type == "v_prediction":
        target = net.noise_scheduler.get_velocity(latents, noise, timesteps)
    else:
        target = noise
    plain = F.mse_loss(model_pred.float(), target.float())
    return run.objective(
        plain,
        lambda: DiffusionStep(
            latents=latents,
            noise=noise,
            noisy_latents=noisy_latents,
            timesteps=timesteps,
            model_pred=model_pred,
            target=target,
            base_loss=plain,
            **annotation_of(batch),
        ),
    )


def predict(run: Run, batch: dict[str, Any], noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
    """The U-Net's output, steered by the ControlNet."""
    text = run.networks.text_encoder(batch["input_ids"], return_dict=False)[0]
    hint = batch.get("conditioning_pixel_values")
    if hint is None:
        hint = torch.zeros_like(batch["pixel_values"])
    down, middle = run.model(
        noisy_latents, timesteps, encoder_hidden_states=text, controlnet_cond=hint.to(run.dtype), return_dict=False
    )
    return run.networks.unet(
        noisy_latents,
        timesteps,
        encoder_hidden_states=text,
        down_block_additional_residuals=[residual.to(run.dtype) for residual in down],
        mid_block_additional_residual=middle.to(run.dtype),
        return_dict=False,
    )[0]


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
    if arguments.validation_prompt and run.step % arguments.validation_steps == 0:
        validate(arguments, run.accelerator, run.networks, run.networks.controlnet, run.step)


def finish(run: Run, stopped: bool) -> None:
    """Save the trained weights, sample them once more and upload them, unless the run was only interrupted."""
    accelerator, arguments = run.accelerator, run.arguments
    accelerator.wait_for_everyone()
    if not stopped:
        run.checkpoints.require_finite(run.step)
    if accelerator.is_main_process and not stopped:
        save_weights(accelerator.unwrap_model(run.model), run.folder)
        sampled = []
        if arguments.validation_prompt:
            trained = ControlNetModel.from_pretrained(run.folder).to(run.dtype)
            sampled = validate(arguments, accelerator, run.networks, trained, run.step, final=True)
        if run.repository is not None:
            upload(arguments, run.repository, sampled)
    accelerator.end_training()


if __name__ == "__main__":
    sys.exit(main())
