"""How strong each loss's gradient is at the network's output, and whether it pulls against the plain loss's, by t.

python docs/evidence_gradients.py FOLDER [ROWS]    adds `gradients` to docs/evidence.json

FOLDER is an image folder of drawn people that nothing is tested on; the network is people-mini as it ships.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mldm_plugin import DiffusionStep, LossStack
from mldm_plugin.evaluation.cases import open_photographs
from mldm_plugin.evaluation.models import load_pipeline, parse_models
from mldm_plugin.evaluation.predicting import Asker
from mldm_plugin.people_mini import PIPELINE
from mldm_plugin.preset import Preset
from mldm_plugin.records.files import write_text

FILE = Path(__file__).parent / "evidence.json"
TIMESTEPS = (20, 50, 100, 150, 200, 250, 300, 350, 400, 500, 600, 800)
LOSSES: dict[str, dict[str, Any]] = {
    "masked_lpips": {"network": "vgg"},
    "face": {"network": "dlib_resnet"},
    "masked_mse": {},
}


def measure(folder: Path, rows: int) -> dict[str, Any]:
    """loss → t → the mean over pictures of the gradient's norm over the plain loss's, and of the cosine with it."""
    [model] = parse_models([f"model={PIPELINE}"], None)
    pipeline = load_pipeline(model.runs[0], torch.device("cpu"), torch.float32)
    ask, photographs = Asker(pipeline), open_photographs(folder, 128)
    losses = {name: {"weight": 1.0, "max_timestep": None, **options} for name, options in LOSSES.items()}
    preset = Preset.model_validate({"combine": "additive", "losses": losses})
    scheduler = pipeline.scheduler
    stack = LossStack.from_preset(preset, vae=pipeline.vae, noise_scheduler=scheduler, announce=lambda _: None)
    found: dict[str, Any] = {name: {"ratio": [], "cosine": []} for name in LOSSES}
    with_face = [i for i in range(len(photographs)) if len(photographs.look(i).face_boxes)][:rows]
    for t in tqdm(TIMESTEPS):
        read = [measured(stack, step_of(pipeline, ask, photographs, row, t)) for row in with_face]
        for name in LOSSES:
            gradients, plain, cosines = ([of[name][what] for of in read] for what in ("gradient", "plain", "cosine"))
            ratios = [a / b for a, b in zip(gradients, plain, strict=True)]
            found[name]["ratio"].append(sum(ratios) / len(with_face))
            found[name]["cosine"].append(sum(cosines) / len(with_face))
    return {"timesteps": list(TIMESTEPS), "pictures": len(with_face), "losses": found}


def measured(stack: LossStack, step: DiffusionStep) -> dict[str, dict[str, float]]:
    """loss → what the audit measures of one picture."""
    stack(step)
    found: dict[str, dict[str, float]] = {name: {} for name in LOSSES}
    for key, value in stack.audit.read(0).items():
        name, quantity = key.split("/")[:2]
        found[name][quantity] = value
    return found


def step_of(pipeline: Any, ask: Asker, photographs: Any, row: int, t: int) -> DiffusionStep:
    """One picture at one timestep, with fixed noise."""
    example, scheduler = photographs.look(row), pipeline.scheduler
    picture = example.pixel_values[None]
    with torch.no_grad():
        latents = pipeline.vae.encode(picture).latent_dist.mode() * pipeline.vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(row * 1000 + t))
    alpha = scheduler.alphas_cumprod[t].sqrt()
    noisy = alpha * latents + (1 - alpha**2).sqrt() * noise
    return DiffusionStep(
        latents=latents,
        noise=noise,
        noisy_latents=noisy,
        timesteps=torch.tensor([t]),
        model_pred=ask(noisy, t, photographs.captions[row], example).float().requires_grad_(),
        target=noise,
        pixel_values=picture,
        person_mask=example.person_mask[None],
        face_boxes=[example.face_boxes],
    )


def main() -> None:
    """Measure and write; the table of docs/evidence.md is made of it by docs/generate.py."""
    rows = int(sys.argv[2]) if len(sys.argv) > 2 else 24
    found = measure(Path(sys.argv[1]), rows)
    known = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    write_text(FILE, json.dumps({**known, "gradients": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
