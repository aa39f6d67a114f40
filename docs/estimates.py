"""How far the clean estimates that a preset may ask for are from what sampling on from the same noise draws, by t.

python docs/estimates.py FOLDER [ROWS]    writes docs/estimates.json and the table of docs/estimates.md

FOLDER is an image folder of drawn people that nothing is trained on; the network is people-mini as it ships.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mldm_plugin import DiffusionStep, load_plugins
from mldm_plugin.data.batch import Example
from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.engine.schedule import NoiseSchedule, pred_latents
from mldm_plugin.evaluation.cases import open_photographs
from mldm_plugin.evaluation.models import load_pipeline, parse_models
from mldm_plugin.evaluation.one_step import detail, training_schedule
from mldm_plugin.evaluation.predicting import Asker
from mldm_plugin.people_mini import PIPELINE
from mldm_plugin.records.files import write_text

HERE = Path(__file__).parent
TIMESTEPS = (100, 200, 400, 600, 800)
FINE = 40  # timesteps of a step of the sampling that is compared with: DDIM, 25 steps for the whole schedule
# By their name in a preset: S of direct-S, and how many answers.
ESTIMATES: dict[str, tuple[int | None, int]] = {
    "one_step": (None, 1),
    "direct-40": (40, 1),
    "ddim-2": (None, 2),
    "ddim-4": (None, 4),
}
Ask = Callable[[Tensor, int], Tensor]


def ddim(ask: Ask, schedule: NoiseSchedule, noisy: Tensor, timesteps: list[int]) -> Tensor:
    """ẑ₀ at the last of the timesteps, which go down, by DDIM's steps from one to the next (η = 0)."""
    z = noisy
    for t, after in zip(timesteps, [*timesteps[1:], None], strict=True):
        alpha, sigma = schedule.coefficients(torch.tensor([t]))
        clean = pred_latents(schedule.prediction_type, ask(z, t), z, alpha, sigma)
        if after is None:
            return clean
        next_alpha, next_sigma = schedule.coefficients(torch.tensor([after]))
        z = next_alpha * clean + next_sigma * (z - alpha * clean) / sigma
    raise ValueError("no timesteps")


def estimate(name: str, ask: Ask, schedule: NoiseSchedule, latents: Tensor, noise: Tensor, t: int) -> Tensor:
    """What a loss would look at in a training step at t, by the preset's own code."""
    timesteps = torch.tensor([t])
    alpha, sigma = schedule.coefficients(timesteps)
    noisy = alpha * latents + sigma * noise
    schedule.direct_steps, schedule.answers = ESTIMATES[name]
    step = DiffusionStep(
        latents=latents,
        noise=noise,
        noisy_latents=noisy,
        timesteps=timesteps,
        model_pred=ask(noisy, t),
        target=noise,
        predict=lambda z, t, rows: ask(z, int(t)),
    )
    return schedule.pred_latents(step)


@torch.no_grad()
def measure(folder: Path, rows: int) -> dict[str, Any]:
    """t → estimate → means over pictures: LPIPS on people to what sampling draws, and what detail it has lost."""
    [model] = parse_models([f"model={PIPELINE}"], None)[0].runs
    pipeline = load_pipeline(model, torch.device("cpu"), torch.float32)
    ask, photographs = Asker(pipeline), open_photographs(folder, 128)
    schedule, decoder = training_schedule(pipeline.scheduler), LatentDecoder(pipeline.vae)
    lpips = load_plugins(["mldm"]).losses["masked_lpips"](network="alex")
    chosen = [i for i in range(len(photographs)) if bool(photographs.look(i).person_mask.any())][:rows]
    found: dict[str, Any] = {
        str(t): {name: {"lpips": [], "blur": []} for name in (*ESTIMATES, "sampled")} for t in TIMESTEPS
    }
    for row in tqdm(chosen):
        example, caption = photographs.look(row), photographs.captions[row]
        latents, _ = decoder.encode(example.pixel_values[None])
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(row))
        for t in TIMESTEPS:
            alpha, sigma = schedule.coefficients(torch.tensor([t]))
            noisy = alpha * latents + sigma * noise

            def asked(z: Tensor, t: int, caption: str = caption, example: Example = example) -> Tensor:
                return ask(z, t, caption, example)

            drawn = decoder(ddim(asked, schedule, noisy, list(range(t, 0, -FINE))))
            pictures = {n: decoder(estimate(n, asked, schedule, latents, noise, t)) for n in ESTIMATES}
            for name, picture in {**pictures, "sampled": drawn}.items():
                step = step_of(picture, drawn, example)
                found[str(t)][name]["lpips"].append(lpips(step).item())
                mask = (example.person_mask[None] > 0).float()
                lost = detail(decoder(latents), mask) / detail(picture, mask)
                found[str(t)][name]["blur"].append(lost.log2().item())
    means = {t: {n: {k: sum(v) / len(v) for k, v in of.items()} for n, of in at.items()} for t, at in found.items()}
    return {"pictures": len(chosen), "by_t": means}


def step_of(picture: Tensor, target: Tensor, example: Example) -> DiffusionStep:
    """What the loss is given."""
    z = torch.zeros(1, 4, 1, 1)
    return DiffusionStep(
        latents=z,
        noise=z,
        noisy_latents=z,
        timesteps=torch.zeros(1, dtype=torch.long),
        model_pred=z,
        target=z,
        person_mask=example.person_mask[None],
        pred_images=picture,
        target_images=target,
    )


def table(results: dict[str, Any]) -> str:
    """For the page."""
    lines = [f"| t | {' | '.join(ESTIMATES)} | lost: {' | '.join(ESTIMATES)} | sampled |", "|---" * 10 + "|"]
    for t, at in results["by_t"].items():
        lpips = [f"{at[name]['lpips']:.3f}" for name in ESTIMATES]
        blur = [f"{at[name]['blur']:+.2f}" for name in (*ESTIMATES, "sampled")]
        lines.append(f"| {' | '.join([t, *lpips, *blur])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    results = measure(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 24)
    write_text(HERE / "estimates.json", json.dumps(results, indent=1) + "\n")
    page = HERE / "estimates.md"
    text = re.sub(
        r"(?<=<!-- table -->\n).*?(?=<!-- end -->)", f"\n{table(results)}\n\n", page.read_text("utf-8"), flags=re.S
    )
    write_text(page, text)
