"""Rebuild the weights that ship with the demo: `python -m mldm_plugin.demo.fit --out DIR`.

The autoencoder is fitted first, on crops of the demo's photographs, then the U-Net on its latents with the
photographs' captions. The text encoder keeps its seeded random weights: a dozen captions need only to differ.
Each step draws from a generator seeded with its number, so a run that was interrupted (Ctrl-C, SIGTERM) and
started again with the same folder goes on as if nothing had happened.

The shipped weights were made with `--bf16 --threads 1` on a shared machine, while these settings were still being
found: the run was taken up again with the present losses and numbers of steps. A fresh run gives weights of the
same kind, not the same bits.
"""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from mldm_plugin.demo.photos import RESOLUTION, WINDOWS, cut
from mldm_plugin.demo.pipeline import FITTED, SCHEDULER, build_networks, load_fitted
from mldm_plugin.demo.tokenizer import write_tokenizer

SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Plan:
    """How one network is fitted. All values are chosen: what two cores do in half an hour."""

    name: str
    steps: int
    learning_rate: float
    ema: float = 0.0
    warmup: int = 50
    seed: int = 0
    bf16: bool = False

    def rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to a fiftieth of the learning rate."""
        done = min(1.0, step / max(1, self.steps))
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * cosine


def load_pictures(side: int = RESOLUTION) -> Tensor:
    """All training pictures as the trainer sees them, (N, 3, side, side) in [-1, 1]."""
    rows = []
    for window in WINDOWS:
        array = torch.from_numpy(np.array(cut(window))).permute(2, 0, 1)[None].float() / 127.5 - 1
        rows.append(F.interpolate(array, size=(side, side), mode="bilinear", antialias=True, align_corners=False))
    return torch.cat(rows)


def picture_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """L1 on pixels and on finite differences at three scales (crisp edges), L2 on 8 x 8 means (colours)."""
    difference = made - wanted
    loss = difference.abs().mean() + 10 * F.avg_pool2d(difference, 8).square().mean()
    for scale in (1, 2, 4):
        pooled = F.avg_pool2d(difference, scale) if scale > 1 else difference
        loss = loss + 0.5 * (pooled.diff(dim=-1).abs().mean() + pooled.diff(dim=-2).abs().mean())
    return loss


def random_crops(pictures: list[Tensor], count: int, side: int, generator: torch.Generator) -> Tensor:
    """`count` random squares of `side` pixels, half of them mirrored; the first scale is drawn most often."""

    def draw(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    crops = []
    for _ in range(count):
        scale = pictures[max(0, draw(len(pictures) + 2) - 2)]
        picture = scale[draw(len(scale))]
        room = picture.shape[-1] - side + 1
        y, x = draw(room), draw(room)
        crop = picture[:, y : y + side, x : x + side]
        crops.append(crop.flip(-1) if draw(2) else crop)
    return torch.stack(crops)


def vae_objective(plan: Plan) -> Callable[[Any, int, torch.Generator], Tensor]:
    """Reconstruction of growing crops, at the end of whole pictures, with a light pull to N(0, 1).

    A step on small crops costs a quarter and teaches the colours as well, so the fit begins with them.
    """
    pictures = [load_pictures(RESOLUTION), load_pictures(320)]

    def objective(vae: Any, step: int, generator: torch.Generator) -> Tensor:
        done = step / plan.steps
        count, side = (8, 64) if done < 0.7 else (4, 128) if done < 0.95 else (1, RESOLUTION)
        batch = random_crops(pictures, count, side, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.bf16):
            posterior = vae.encode(batch).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            noise = torch.randn(mean.shape, generator=generator)
            made = vae.decode(mean + torch.exp(0.5 * logvar) * noise).sample.float()
        pull = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return picture_loss(made, batch) + 2e-4 * pull

    return objective


@torch.no_grad()
def encode(vae: Any, pictures: Tensor) -> Tensor:
    """Unscaled latents of the pictures."""
    return torch.cat([vae.encode(picture[None]).latent_dist.mean for picture in pictures])


def augmented_latents(vae: Any, views: int = 4, seed: int = 0) -> Tensor:
    """Scaled latents (views, N, 4, h, w): the pictures as they are, then slightly enlarged and shifted."""
    generator = torch.Generator().manual_seed(seed)
    made = [load_pictures(RESOLUTION)]
    for view in range(1, views):
        room = 8 * view
        large = load_pictures(RESOLUTION + room)
        x, y = (int(torch.randint(room + 1, (1,), generator=generator)) for _ in range(2))
        made.append(large[..., y : y + RESOLUTION, x : x + RESOLUTION])
    return torch.stack([encode(vae, pictures) for pictures in made]) * vae.config.scaling_factor


@torch.no_grad()
def caption_states(text_encoder: Any, folder: Path) -> Tensor:
    """The text encoder's states (N + 1, 77, width) of the captions and, last, of the empty caption."""
    from transformers import CLIPTokenizer

    write_tokenizer(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    texts = [*(window.text for window in WINDOWS), ""]
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    return text_encoder(tokens.input_ids)[0]


def unet_objective(plan: Plan, latents: Tensor, states: Tensor) -> Callable[[Any, int, torch.Generator], Tensor]:
    """Epsilon prediction; half the pictures unshifted, one caption in ten left empty.

    The error is weighted by max(1, 1/SNR), the "truncated SNR" of "Progressive Distillation for Fast Sampling of
    Diffusion Models", eq. 9, written for epsilon, and held below 20 (chosen): without it the steps that lay out
    a picture from noise hardly count.
    """
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config({**SCHEDULER, "clip_sample": False})
    alphas = scheduler.alphas_cumprod
    weights = ((1 - alphas) / alphas).clamp(1.0, 20.0)
    views, pictures = latents.shape[:2]

    def objective(unet: Any, step: int, generator: torch.Generator) -> Tensor:
        count = 4

        def draw(high: int) -> Tensor:
            return torch.randint(high, (count,), generator=generator)

        which = draw(pictures)
        view = (draw(2) * (1 + draw(views - 1))) if views > 1 else draw(1)
        text = torch.where(draw(10) == 0, pictures, which)
        timesteps = (torch.arange(count) * 1000 + draw(1000)) // count
        clean = latents[view, which]
        noise = torch.randn(clean.shape, generator=generator)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.bf16):
            predicted = unet(noisy, timesteps, states[text]).sample
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        return (weights[timesteps] * error).mean()

    return objective


def fit(network: Any, plan: Plan, objective: Callable[[Any, int, torch.Generator], Tensor], out: Path) -> Any:
    """Fit `network`, saving its state in `out` now and then; returns the network with averaged or last weights.

    Raises:
        click.Abort: a signal asked for it; the state of the last whole step is saved.
    """
    average = copy.deepcopy(network).requires_grad_(False) if plan.ema else network
    optimizer = torch.optim.AdamW(network.parameters(), plan.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    state_file = out / f"{plan.name}.state.pt"
    done = _restore(state_file, network, average, optimizer)
    network.train()
    saved = time.monotonic()
    with _stop_requested() as stop, tqdm(total=plan.steps, initial=done, desc=f"fit {plan.name}") as bar:
        while done < plan.steps and not stop:
            loss = _step(network, optimizer, plan, objective, done)
            _average(average, network, plan.ema, done)
            done += 1
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()
            if time.monotonic() - saved > SAVE_SECONDS:
                _store(state_file, done, network, average, optimizer)
                saved = time.monotonic()
    _store(state_file, done, network, average, optimizer)
    if done < plan.steps:
        click.echo(f"interrupted; the state is in {out}, the same command goes on from there.")
        raise click.Abort
    return average.eval()


def _step(network: Any, optimizer: Any, plan: Plan, objective: Callable[..., Tensor], step: int) -> float:
    for group in optimizer.param_groups:
        group["lr"] = plan.rate(step)
    loss = objective(network, step, torch.Generator().manual_seed(plan.seed * 1_000_003 + step))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


@contextmanager
def _stop_requested() -> Iterator[list[int]]:
    """A list that is filled when Ctrl-C or SIGTERM arrives, so that a step is never cut in two."""
    stop: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda received, _: stop.append(received))
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@torch.no_grad()
def _average(average: Any, network: Any, decay: float, step: int) -> None:
    if average is network:
        return
    decay = min(decay, (step + 1) / (step + 10))
    for mean, value in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)


def _store(path: Path, step: int, network: Any, average: Any, optimizer: Any) -> None:
    state = {"step": step, "network": network.state_dict(), "optimizer": optimizer.state_dict()}
    if average is not network:
        state["average"] = average.state_dict()
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def _restore(path: Path, network: Any, average: Any, optimizer: Any) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    if average is not network:
        average.load_state_dict(state["average"])
    return int(state["step"])


def write_weights(network: Any, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Half-precision weights in one safetensors file, written beside and renamed."""
    weights = {key: value.half().contiguous() for key, value in network.state_dict().items()}
    part = path.with_suffix(".part")
    save_file(weights, part, metadata={"format": "pt", **(metadata or {})})
    part.replace(path)


def fit_vae(vae: Any, plan: Plan, out: Path) -> None:
    """Fit the autoencoder; its scaling factor makes the latents' standard deviation one."""
    fitted = fit(vae, plan, vae_objective(plan), out)
    scale = 1.0 / float(encode(fitted, load_pictures()).std())
    write_weights(fitted, out / "vae.safetensors", {"scaling_factor": f"{scale:.6f}"})


def fit_unet(networks: dict[str, Any], plan: Plan, out: Path) -> None:
    """Fit the U-Net on the latents of the autoencoder as it was written."""
    load_fitted("vae", networks["vae"], out / "vae.safetensors")
    write_weights(networks["text_encoder"], out / "text_encoder.safetensors")
    load_fitted("text_encoder", networks["text_encoder"], out / "text_encoder.safetensors")
    states = caption_states(networks["text_encoder"], out / "tokenizer")
    objective = unet_objective(plan, augmented_latents(networks["vae"]), states)
    write_weights(fit(networks["unet"], plan, objective, out), out / "unet.safetensors")


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder for the weights.")
@click.option("--only", type=click.Choice(["vae", "unet"]), help="Fit one network; the U-Net needs the fitted VAE.")
@click.option("--vae-steps", default=2000, show_default=True, type=click.IntRange(1))
@click.option("--unet-steps", default=2700, show_default=True, type=click.IntRange(1))
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True)
@click.option("--bf16/--fp32", default=False, show_default=True, help="Compute in bfloat16, where the CPU can.")
def main(out: Path, only: str | None, vae_steps: int, unet_steps: int, threads: int, seed: int, bf16: bool) -> None:
    """Fit the demo's autoencoder and U-Net on the demo's photographs."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    networks: dict[str, Any] = build_networks(FITTED, seed)
    if only != "unet":
        fit_vae(networks["vae"], Plan("vae", vae_steps, 2e-3, seed=seed, bf16=bf16), out)
    if only != "vae":
        fit_unet(networks, Plan("unet", unet_steps, 1e-3, ema=0.995, seed=seed, bf16=bf16), out)
    click.echo(f"the fitted weights are in {out}")


if __name__ == "__main__":
    main()
