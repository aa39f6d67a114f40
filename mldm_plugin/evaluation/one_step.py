"""The one-step clean estimate of held-out photographs at fixed noise: what the losses act on, without sampling.

Every model sees the same z_t = α_t z₀ + σ_t ε of the same photographs, so differences are paired, and a minute says
what an hour of samples says less surely.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mldm_plugin.data.batch import Example
from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.engine.schedule import NoiseSchedule, pred_latents, stable_diffusion_snr
from mldm_plugin.errors import CheckError
from mldm_plugin.evaluation.cases import Photographs
from mldm_plugin.evaluation.judges import Judges
from mldm_plugin.evaluation.notes import Notes
from mldm_plugin.perceptual.face_crops import crop_faces
from mldm_plugin.perceptual.face_networks import FaceFeatures
from mldm_plugin.perceptual.lpips_network import LPIPSNetwork
from mldm_plugin.perceptual.masked_distance import masked_sum
from mldm_plugin.perceptual.unit_difference import weighted_square

# Stable Diffusion's timesteps whose SNR is looked at; on another schedule, those of the same SNR. Ten, as the paper's
# T = 100 and 400 lie among them.
TIMESTEPS = (20, 60, 100, 200, 300, 400, 500, 600, 750, 900)
Predict = Callable[[Tensor, float, str, Example], Tensor]  # z_t, t, the caption and the picture → the network's output


@dataclass(frozen=True)
class Quantity:
    """One of the things that are measured of an estimate, all better when smaller."""

    name: str
    title: str
    what: str


QUANTITIES = (
    Quantity("one_step_error", "error of ε, whole picture", "squared error of the network's output, as one of ε"),
    Quantity("one_step_error_person", "error of ε, people", "the same on the latents that people cover"),
    Quantity("one_step_lpips_person", "LPIPS of x̂₀, people", "LPIPS of the decoded estimate on the people's mask"),
    Quantity("one_step_lpips_outside", "LPIPS of x̂₀, elsewhere", "the same on the rest of the picture"),
    Quantity("one_step_face", "face distance of x̂₀", "cosine distance of face embeddings, at the annotated boxes"),
)


class OneStep:
    """Measures estimates of photographs.

    Args:
        vae: of the pipelines.
        noise_scheduler: of the pipelines.
        judges: the networks that look.
        device: of the model.

    Raises:
        WeightsError: weights that cannot be had.
    """

    def __init__(self, vae: Any, noise_scheduler: Any, judges: Judges, device: Any = "cpu") -> None:
        self.schedule = training_schedule(noise_scheduler)
        statistics = {name: vae.config.get(name) for name in ("latents_mean", "latents_std")}
        self.decoder, self.device = LatentDecoder(vae, **statistics), device
        self.faces, self.lpips = FaceFeatures(judges.face), LPIPSNetwork(judges.lpips)  # type: ignore[arg-type]

    def __call__(
        self, predict: Predict, example: Example, caption: str, name: str
    ) -> Iterator[dict[str, float | None]]:
        """For each of TIMESTEPS: quantity → value, None where the photograph has no person or no face.

        Args:
            predict: the model.
            example: the photograph with its annotation.
            caption: its text.
            name: of the photograph; its noise depends on it and on t alone.
        """
        picture = example.pixel_values[None].to(self.device)
        with torch.no_grad():
            latents, _ = self.decoder.encode(picture)
            truth = self._looked_at(picture, example)
            for t in TIMESTEPS:
                yield self._at(t, predict, latents, example, caption, truth, name)

    def _at(
        self, t: int, predict: Predict, latents: Tensor, example: Example, caption: str, truth: Any, name: str
    ) -> dict[str, float | None]:
        own_t, alpha, sigma = self._place(t)
        seed = int.from_bytes(hashlib.sha256(f"{name}/{t}".encode()).digest()[:8], "big") >> 1
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
        noisy = alpha * latents + sigma * noise
        model_pred = predict(noisy, own_t, caption, example).float()
        wanted = self.schedule.target(latents, noise, alpha, sigma)
        error = (model_pred - wanted) ** 2 * self.schedule.epsilon_factor((alpha / sigma).flatten() ** 2)
        estimate = pred_latents(self.schedule.prediction_type, model_pred, noisy, alpha, sigma)
        seen = self._looked_at(self.decoder(estimate), example)
        values: dict[str, float | None] = {"one_step_error": float(error.mean())}
        mask = example.person_mask
        inside = None if mask is None or not bool(mask.any()) else (mask[None] > 0).float().to(latents)
        values["one_step_error_person"] = None
        if inside is not None:
            cover = F.interpolate(inside, latents.shape[-2:], mode="area")
            values["one_step_error_person"] = float((error.mean(1, keepdim=True) * cover).sum() / cover.sum())
        values["one_step_lpips_person"] = None if inside is None else self._lpips_on(inside, seen, truth)
        outside = torch.ones_like(picture_mask(example, latents)) if inside is None else 1 - inside
        values["one_step_lpips_outside"] = self._lpips_on(outside, seen, truth) if bool(outside.any()) else None
        values["one_step_face"] = None
        if truth.faces is not None:
            values["one_step_face"] = float((1 - F.cosine_similarity(seen.faces, truth.faces)).mean())
        return values

    def _place(self, t: int) -> tuple[float, Tensor, Tensor]:
        """This schedule's timestep of the SNR that Stable Diffusion has at t, with α and σ (1, 1, 1, 1)."""
        own = self.schedule.timestep_at(float(stable_diffusion_snr()[t]))
        alpha, sigma = self.schedule.coefficients(torch.tensor([own]))
        return own, alpha.view(1, 1, 1, 1).to(self.device), sigma.view(1, 1, 1, 1).to(self.device)

    def _looked_at(self, picture: Tensor, example: Example) -> Any:
        """Features of a picture (1, 3, H, W) and embeddings of its faces, None without any."""
        boxes, faces = example.face_boxes, None
        if boxes is not None and len(boxes):
            faces = self.faces(crop_faces(picture, [boxes.to(picture.device)], self.faces.crop))[-1].flatten(1)
        return SimpleNamespace(layers=self.lpips(picture), faces=faces, size=picture.shape[-2:])

    def _lpips_on(self, mask: Tensor, seen: Any, truth: Any) -> float:
        weights = self.lpips.channel_weights(mask)
        maps = [weighted_square(p, q, w) for p, q, w in zip(seen.layers, truth.layers, weights, strict=True)]
        total = torch.stack([masked_sum(one, mask) for one in maps]).sum(0)
        return float(total / mask.sum())


def training_schedule(noise_scheduler: Any) -> NoiseSchedule:
    """The schedule that a pipeline's network was trained with.

    Euler's samplers, which SDXL ships with, sample by σ; their networks were trained by ᾱ.

    Raises:
        CheckError: EDM, whose network is asked otherwise.
    """
    name = type(noise_scheduler).__name__
    if name.startswith("EDM"):
        raise CheckError(f"one-step estimates are not made with {name}: its network is asked at σ, not at timesteps.")
    if name.startswith("Euler"):
        config = noise_scheduler.config
        return NoiseSchedule(config.get("prediction_type", "epsilon"), noise_scheduler.alphas_cumprod)
    return NoiseSchedule.from_scheduler(noise_scheduler)


def measure_photographs(
    one_step: OneStep,
    predict: Predict,
    photographs: Photographs,
    rows: Sequence[int],
    notes: Notes,
    *,
    share: tuple[int, int] = (0, 1),
    title: str = "",
) -> None:
    """Write down `QUANTITY@t` of each photograph that is not yet in `notes`, each process its share."""
    own = [row for row in rows[share[0] :: share[1]] if (f"{row:05d}", 0) not in notes.known]
    for row in tqdm(own, desc=title, disable=share[0] != 0 or not own, unit="photograph"):
        found = one_step(predict, photographs.look(row), photographs.captions[row], f"{row:05d}")
        values = {f"{name}@{t}": v for t, at_t in zip(TIMESTEPS, found, strict=True) for name, v in at_t.items()}
        notes.add((f"{row:05d}", 0), values)


def picture_mask(example: Example, like: Tensor) -> Tensor:
    """(1, 1, H, W) zeros of the picture's size, in the dtype and on the device of `like`."""
    return torch.zeros(1, 1, *example.pixel_values.shape[-2:]).to(like)
