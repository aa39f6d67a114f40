"""What decoding more cheaply costs in exactness, on the demo's photographs and its fitted Stable Diffusion.

    python tests/benchmarks/stand_ins.py --minutes 4 --json stand_ins.json

Each loss by itself, its gradient at the network's output compared with that of the whole decode in float32: in
bfloat16, in windows (`decode: region`), and with a tiny autoencoder. TAESD itself cannot be used, for it reads Stable
Diffusion's latents, not those of the demo's VAE: a decoder of its architecture (1.2 million parameters) is fitted here
to decode like the demo's VAE, for a few minutes on fourteen pictures. TAESD was fitted far longer, to far more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from tqdm import tqdm

from mldm_plugin.demo.compare import fixed_step, load_examples
from mldm_plugin.demo.fit import load_pictures
from mldm_plugin.demo.photos import RESOLUTION, write_training_set
from mldm_plugin.demo.pipeline import build_pipeline
from mldm_plugin.engine.stack import LossStack

LOSSES = ("masked_lpips", "face")
TIMESTEPS = (50, 100, 400)


def main() -> None:
    """Fit the tiny decoder, then print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="of fitting the tiny decoder")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pipeline = StableDiffusionPipeline.from_pretrained(build_pipeline(Path(folder, "pipeline")))
        for network in (pipeline.vae, pipeline.unet, pipeline.text_encoder):
            network.requires_grad_(False)
        tiny, decibels = fit(pipeline.vae, args.minutes)
        tiny.save_pretrained(Path(folder, "tiny"))
        examples = load_examples(write_training_set(Path(folder, "people")), RESOLUTION)
        rows = compare(pipeline, examples, Path(folder, "tiny"))
    print(f"tiny decoder: {decibels:.1f} dB PSNR to the VAE's decode on the fitted pictures\n")  # noqa: T201
    print(f"{'stands in':<14} {'loss':<13} " + " ".join(f"{f't = {t}':>15}" for t in TIMESTEPS))  # noqa: T201
    for (name, loss), cells in rows.items():
        print(f"{name:<14} {loss:<13} " + " ".join(f"{c['cosine']:>7.4f} x{c['value']:<6.3f}" for c in cells))  # noqa: T201
    print("\nmedian over pictures: cosine of the gradients, and the loss's value as a multiple")  # noqa: T201
    if args.json:
        record = [{"stands_in": name, "loss": loss, "by_timestep": cells} for (name, loss), cells in rows.items()]
        args.json.write_text(json.dumps({"decibels": decibels, "argv": sys.argv[1:], "rows": record}, indent=1))


def fit(vae: torch.nn.Module, minutes: float) -> tuple[AutoencoderTiny, float]:
    """An AutoencoderTiny that decodes as `vae` does, and its PSNR against it."""
    torch.manual_seed(0)
    tiny = AutoencoderTiny(latent_channels=vae.config.latent_channels)
    with torch.no_grad():
        latents = vae.encode(load_pictures()).latent_dist.mode()
        wanted = torch.cat([vae.decode(z[None]).sample for z in latents])
    optimizer = torch.optim.AdamW(tiny.decoder.parameters(), lr=1e-3)
    began, side = time.monotonic(), 16
    with tqdm(total=round(60 * minutes), unit="s", desc="fitting the tiny decoder") as bar:
        while (passed := time.monotonic() - began) < 60 * minutes:
            optimizer.param_groups[0]["lr"] = 1e-3 * (1 - 0.95 * passed / (60 * minutes))
            rows = torch.randint(len(latents), (4,))
            y, x = torch.randint(latents.shape[-1] - side + 1, (2,)).tolist()
            z = latents[rows, :, y : y + side, x : x + side] * vae.config.scaling_factor
            target = wanted[rows, :, 8 * y : 8 * (y + side), 8 * x : 8 * (x + side)]
            made = tiny.decoder(z)
            inside = (slice(None), slice(None), slice(16, -16), slice(16, -16))  # the crop's border sees zeros
            loss = F.l1_loss(made[inside], target[inside]) + F.mse_loss(made[inside], target[inside])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bar.update(round(passed) - bar.n)
    tiny.requires_grad_(False).eval()
    made = torch.cat([tiny.decode(z[None] * vae.config.scaling_factor).sample for z in latents])
    return tiny, 10 * torch.log10(4 / F.mse_loss(made, wanted)).item()


def compare(pipeline: StableDiffusionPipeline, examples: list, tiny: Path) -> dict[tuple[str, str], list[dict]]:
    """By what stands in and by loss: for each timestep the median cosine and ratio of values."""
    stand_ins = {
        "bfloat16": ["precision=bfloat16"],
        "windows": ["decode=region"],
        "tiny decoder": [f"vae={tiny}"],
    }
    schedule = build(pipeline, "face", [])  # for its noise schedule
    steps = {
        (t, i): fixed_step(pipeline, None, schedule, example, text, t, i)
        for t in TIMESTEPS
        for i, (example, text) in enumerate(examples)
    }
    rows = {}
    for loss in LOSSES:
        exact = look(build(pipeline, loss, []), steps, loss)
        for name, overrides in stand_ins.items():
            seen = look(build(pipeline, loss, overrides), steps, loss)
            rows[name, loss] = [cell(exact, seen, t) for t in TIMESTEPS]
    return rows


def build(pipeline: StableDiffusionPipeline, loss: str, overrides: list[str]) -> LossStack:
    """A stack of one loss at every timestep."""
    others = [f"losses.{name}.weight=0" for name in LOSSES if name != loss]
    settings = [f"losses.{loss}.max_timestep=null", f"losses.{loss}.weights=random", f"losses.{loss}.weight=1"]
    return LossStack.from_preset(
        "mldm",
        vae=pipeline.vae,
        noise_scheduler=pipeline.scheduler,
        plugins=["mldm"],
        overrides=[*others, *settings, *overrides],
        announce=lambda text: None,
    )


def cell(exact: dict, seen: dict, t: int) -> dict[str, float]:
    """Medians over the pictures at one timestep."""
    pairs = [(seen[key], exact[key]) for key in exact if key[0] == t]
    cosines = [F.cosine_similarity(one[0], other[0], dim=0).item() for one, other in pairs]
    ratios = [one[1] / other[1] for one, other in pairs]
    return {"cosine": statistics.median(cosines), "lowest": min(cosines), "value": statistics.median(ratios)}


def look(stack: LossStack, steps: dict, loss: str) -> dict:
    """The gradient of a loss at the network's output, and its value, for each step."""
    seen = {}
    for key, given in tqdm(steps.items(), desc=loss, leave=False):
        step = replace(given, model_pred=given.model_pred.detach().requires_grad_(), base_loss=None)
        report = stack(step)
        (gradient,) = torch.autograd.grad(report.loss, step.model_pred)
        seen[key] = gradient.flatten(), report.terms[loss].raw[0].item()
    return seen


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
