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
from mldm_plugin.perceptual.laplacian import laplacian
from mldm_plugin.perceptual.lpips_network import LPIPSNetwork
from mldm_plugin.perceptual.masked_distance import masked_sum
from mldm_plugin.perceptual.unit_difference import weighted_square

# Stable Diffusion's timesteps whose SNR is looked at; on another schedule, those of the same SNR. Ten, as the paper's
# T = 100 and 400 lie among them.
TIMESTEPS = (20, 60, 100, 200, 300, 400, 500, 600, 750, 900)
Predict = Callable[[Tensor, float, str, Example], Tensor]  # z_t, t, the caption and the picture → the network's output


@dataclass(frozen=True)
class Estimated:
    """A picture (1, 3, H, W) that stands for a photograph, and quantity → value."""

    picture: Tensor
    values: dict[str, float | None]


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
        """For each of TIMESTEPS: quantity → value, None where the photograph has no person or no face; arguments as
        of `estimates`."""
        for estimate in self.estimates(predict, example, caption, name, TIMESTEPS):
            yield estimate.values

    def estimates(
        self, predict: Predict, example: Example, caption: str, name: str, timesteps: Sequence[int]
    ) -> Iterator[Estimated]:
        """The estimate at each timestep of Stable Diffusion's schedule, and what is measured of it.

        Args:
            predict: the model.
            example: the photograph with its annotation.
            caption: its text.
            name: of the photograph; its noise depends on it and on t alone.
            timesteps: on another schedule those of the same SNR.
        """
        picture = example.pixel_values[None].to(self.device)
        with torch.no_grad():
            latents, _ = self.decoder.encode(picture)
            truth = self._looked_at(picture, example)
            for t in timesteps:
                estimate, errors = self._estimate(t, predict, latents, example, caption, name)
                made = self.decoder(estimate)
                yield Estimated(made, errors | self._distances(made, example, truth))

    def floor(self, example: Example) -> Estimated:
        """The photograph encoded and decoded: what no estimate can be nearer to it than, by more than chance."""
        picture = example.pixel_values[None].to(self.device)
        with torch.no_grad():
            made = self.decoder(self.decoder.encode(picture)[0])
            return Estimated(made, self._distances(made, example, self._looked_at(picture, example)))

    def _estimate(
        self, t: int, predict: Predict, latents: Tensor, example: Example, caption: str, name: str
    ) -> tuple[Tensor, dict[str, float | None]]:
        """ẑ₀, and the error of what it is made of."""
        own_t, alpha, sigma = self._place(t)
        seed = int.from_bytes(hashlib.sha256(f"{name}/{t}".encode()).digest()[:8], "big") >> 1
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
        noisy = alpha * latents + sigma * noise
        model_pred = predict(noisy, own_t, caption, example).float()
        wanted = self.schedule.target(latents, noise, alpha, sigma)
        error = (model_pred - wanted) ** 2 * self.schedule.epsilon_factor((alpha / sigma).flatten() ** 2)
        inside = _inside(example)
        of_person = None
        if inside is not None:
            cover = F.interpolate(inside, latents.shape[-2:], mode="area").to(latents)
            of_person = float((error.mean(1, keepdim=True) * cover).sum() / cover.sum())
        errors = {"one_step_error": float(error.mean()), "one_step_error_person": of_person}
        return pred_latents(self.schedule.prediction_type, model_pred, noisy, alpha, sigma), errors

    def _distances(self, made: Tensor, example: Example, truth: Any) -> dict[str, float | None]:
        """Of a picture to the photograph."""
        seen, inside = self._looked_at(made, example), _inside(example)
        everywhere = torch.ones(1, 1, *made.shape[-2:])
        outside = everywhere if inside is None else 1 - inside
        distances: dict[str, float | None] = {
            "one_step_lpips_person": None if inside is None else self._lpips_on(inside.to(made), seen, truth),
            "one_step_lpips_outside": self._lpips_on(outside.to(made), seen, truth) if bool(outside.any()) else None,
            "one_step_blur_person": None,
            "one_step_face": None,
        }
        if inside is not None:
            mask = inside.to(made)
            lost = (detail(truth.picture, mask) / detail(made, mask)).log2()
            distances["one_step_blur_person"] = max(float(lost), 0.0)
        if truth.faces is not None:
            distances["one_step_face"] = float((1 - F.cosine_similarity(seen.faces, truth.faces)).mean())
        return distances

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
        return SimpleNamespace(picture=picture, layers=self.lpips(picture), faces=faces)

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


def _inside(example: Example) -> Tensor | None:
    """(1, 1, H, W) of 1 where people are; None without any."""
    mask = example.person_mask
    return None if mask is None or not bool(mask.any()) else (mask[None] > 0).float()


def detail(picture: Tensor, mask: Tensor) -> Tensor:
    """Mean square of the Laplacian of the luma on a mask; a value for the whole, in squared units of the picture.

    Args:
        picture: (1, 3, H, W).
        mask: (1, 1, H, W) in [0, 1], not empty.
    """
    change = laplacian(F.pad(picture, (1, 1, 1, 1), mode="replicate"))
    return (change.square() * mask).sum() / mask.sum() + 1e-12
