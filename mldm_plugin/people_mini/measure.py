"""How well the pipeline draws what a caption says: a classifier's accuracy on samples and on drawings of the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mldm_plugin.errors import DataError
from mldm_plugin.people_mini.archive import read_archive
from mldm_plugin.people_mini.attributes import caption
from mldm_plugin.people_mini.autoencoder import psnr, reconstructed
from mldm_plugin.people_mini.classifier import (
    Classifier,
    accuracy,
    answered,
    labels_of,
    read_classifier,
    train_classifier,
    write_classifier,
)
from mldm_plugin.people_mini.denoiser import Denoiser, sample
from mldm_plugin.people_mini.pictures import refuse_held_out, sheet, shown
from mldm_plugin.people_mini.record import SIDE, Sample
from mldm_plugin.people_mini.split import is_drawing_held_out
from mldm_plugin.people_mini.words import tokens_of

SHOWN = 32


def device_here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def drawings_of(archives: list[Path], *, held_out: bool) -> list[Sample]:
    """The drawings of archives, checked to be held out, or not to be."""
    found = [s for path in archives for s in read_archive(path) if not s.record.person]
    for one in found:
        if not held_out:
            refuse_held_out(one)
        elif not is_drawing_held_out(one.record.index):
            raise DataError(f"{one.record.name} may have been trained on; draw with `--held-out` for the measurement.")
    if not found:
        raise DataError("expected archives with drawings, but they hold none.")
    return found


def stacked(samples: list[Sample]) -> Tensor:
    """uint8 (n, 3, 128, 128)."""
    return torch.from_numpy(np.stack([np.asarray(s.picture) for s in samples])).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def sampled(pipeline: Any, texts: list[str], steps: int, guidance: float, batch: int, device: torch.device) -> Tensor:
    """Pictures (n, 3, 128, 128) in [-1, 1], one for each caption, each from noise of its own."""
    denoiser = Denoiser(pipeline.text_encoder, pipeline.unet).to(device).eval()
    vae = pipeline.vae.to(device).eval()
    tokens = tokens_of(pipeline.tokenizer, [*texts, ""]).to(device)
    noise = torch.randn((len(texts), 4, 16, 16), generator=torch.Generator().manual_seed(0)).to(device)
    made = []
    for low in tqdm(range(0, len(texts), batch), desc="samples", mininterval=5):
        some = slice(low, min(low + batch, len(texts)))
        latents = sample(denoiser, tokens[:-1][some], tokens[-1], noise[some], steps, guidance)
        made.append(vae.decode(latents / vae.config.scaling_factor).sample.float())
    return torch.cat(made).clamp(-1, 1)


def classifier_of(train: list[Path], file: Path, steps: int, device: torch.device) -> Classifier:
    """The classifier in `file`, or one trained on the drawings of these archives and written there."""
    if not file.is_file():
        seen = drawings_of(train, held_out=False)
        labels = labels_of([s.record.attributes for s in seen])
        write_classifier(train_classifier(stacked(seen).to(device), labels, steps), file)
    return read_classifier(file, device)


def measure(
    folder: Path,
    train: list[Path],
    held_out: list[Path],
    out: Path,
    *,
    count: int = 500,
    classifier_steps: int = 3000,
    steps: int = 25,
    guidance: float = 3.0,
    batch: int = 50,
) -> dict[str, Any]:
    """Measure the pipeline in `folder` and write attributes.json, attributes.png and the classifier into `out`.

    Args:
        folder: of the pipeline.
        train: archives of drawings that the classifier is trained on, unless `out` holds one already.
        held_out: archives of held-out drawings; the first `count` are what samples are compared with.
        out: folder of the results.
        count: of drawings and of samples.
        classifier_steps: of 128 pictures.
        steps, guidance: of the sampler.
        batch: samples drawn at once.
    """
    from diffusers import StableDiffusionPipeline

    device = device_here()
    out.mkdir(parents=True, exist_ok=True)
    network = classifier_of(train, out / "classifier.safetensors", classifier_steps, device)
    held = drawings_of(held_out, held_out=True)[:count]
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    labels = labels_of([s.record.attributes for s in held])
    drawings = stacked(held).to(device).float() / 127.5 - 1
    made = sampled(pipeline, [caption(s.record.attributes) for s in held], steps, guidance, batch, device)
    through = reconstructed(pipeline.vae, drawings)
    found = {
        "drawings": accuracy(answered(network, drawings), labels),
        "samples": accuracy(answered(network, made), labels),
        "drawings through the autoencoder": accuracy(answered(network, through), labels),
        "psnr of the autoencoder": round(psnr(through, drawings), 2),
        "count": len(held),
        "sampler": {"steps": steps, "guidance": guidance},
    }
    (out / "attributes.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    show_pairs(drawings[:SHOWN], made[:SHOWN], out / "attributes.png")
    return found


def show_pairs(drawings: Tensor, made: Tensor, path: Path, columns: int = 8) -> None:
    """Rows of drawings, each above the samples of the same captions."""
    rows = []
    for some in torch.arange(len(drawings)).split(columns):
        blank = [torch.ones(3, SIDE, SIDE)] * (columns - len(some))
        rows += [shown(picture) for row in (drawings, made) for picture in (*row[some], *blank)]
    sheet(rows, columns).save(path)
