"""Every loss of a preset on clean estimates of photographs at fixed noise."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mldm_plugin.calibration.placing import Box, placed, places_of
from mldm_plugin.calibration.propose import Telling
from mldm_plugin.data.batch import Example
from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.engine.schedule import NoiseSchedule, stable_diffusion_snr
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.engine.step import DiffusionStep, clip_boxes
from mldm_plugin.engine.term import Term
from mldm_plugin.errors import DataError, PresetError
from mldm_plugin.evaluation.cases import Photographs
from mldm_plugin.evaluation.notes import Notes
from mldm_plugin.evaluation.one_step import TIMESTEPS, Predict, training_schedule
from mldm_plugin.perceptual.frozen import computing_in
from mldm_plugin.preset import Preset

WHAT = tuple(field.name for field in fields(Telling))


@dataclass(frozen=True)
class Photograph:
    """One that is estimated, and another one, moved so that its face or person lies in the same place.

    Args:
        name: its noise depends on it.
        step: all that losses see of it, but for what the network says.
        others: latents and picture of the other, each (1, …).
    """

    name: str
    example: Example
    caption: str
    step: DiffusionStep
    others: tuple[Tensor, Tensor]


class Calibration:
    """The losses of a preset with a pipeline's VAE and schedule.

    Args:
        vae, noise_scheduler: of the pipeline.
        draws: of noise, of each photograph and timestep; at least 2.
        timesteps: of Stable Diffusion's schedule; on another those of the same SNR.

    Raises:
        PresetError, WeightsError, CheckError: see `LossStack.from_preset` and `training_schedule`.
    """

    def __init__(
        self,
        preset: Preset,
        plugins: Any,
        vae: Any,
        noise_scheduler: Any,
        *,
        draws: int = 4,
        timesteps: Sequence[int] = TIMESTEPS,
    ) -> None:
        if preset.answers > 1:
            raise PresetError(
                f"calibrate asks the network once, the preset has estimate: {preset.estimate}: add --set "
                "estimate=one_step."
            )
        schedule = training_schedule(noise_scheduler)
        known: dict[str, Any] = {"noise_scheduler": noise_scheduler}
        if schedule.alphas_cumprod is not None:
            known = {"alphas_cumprod": schedule.alphas_cumprod, "prediction_type": schedule.prediction_type}
        statistics = {name: vae.config.get(name) for name in ("latents_mean", "latents_std")}
        self.stack = LossStack.from_preset(preset, vae=vae, plugins=plugins, **known, **statistics)
        self.encoder = self.stack.decoder.exact if self.stack.decoder else LatentDecoder(vae, **statistics)
        self.draws, self.timesteps = draws, tuple(timesteps)

    @property
    def terms(self) -> list[Term]:
        return self.stack.terms

    def __call__(
        self,
        predict: Predict,
        photographs: Photographs,
        rows: Sequence[int],
        others: Photographs,
        device: Any = "cpu",
        notes: Notes | None = None,
    ) -> dict[str, Telling]:
        """Each loss over the photographs `rows`; `others` may be the same ones.

        Args:
            notes: of what was measured in just this way before, which is not measured again.

        Raises:
            DataError: no photograph has a face or a person, or none of the others has what it has.
        """
        measured = []
        for row, example, other in tqdm(self._pairs(photographs, rows, others), desc="calibrating", unit="photograph"):
            key = (f"{row:05d}", 0)
            found = None if notes is None else notes.known.get(key)
            if found is None:
                photograph = self._photograph(key[0], photographs.captions[row], example, other, device)
                found = self._measure(photograph, predict)
                if notes is not None:
                    notes.add(key, found)
            measured.append(found)
        whole = {name: np.array([found[name] for found in measured]) for name in measured[0]}
        return {t.name: Telling(**{what: whole[f"{t.name}/{what}"] for what in WHAT}) for t in self.terms}

    def _measure(self, photograph: Photograph, predict: Predict) -> dict[str, Any]:
        """`LOSS/own` and so on of one photograph, as `Telling` has them, in lists."""
        size = (len(self.timesteps), self.draws)
        shapes = {"own": size, "other": size, "floor": (), "gradient": size[:1], "plain": size[:1]}
        found = {f"{t.name}/{what}": np.full(shapes[what], np.nan) for t in self.terms for what in WHAT}
        terms = [t for t in self.terms if bool(t.has(photograph.step)[0])]
        for name, value in self._floor(photograph, terms).items():
            found[f"{name}/floor"][()] = value
        for j, t in enumerate(self.timesteps):
            for k in range(self.draws):
                for name, seen in self._look(photograph, terms, t, k, predict).items():
                    for what, value in seen.items():
                        found[f"{name}/{what}"][(j, k)[: found[f"{name}/{what}"].ndim]] = value
        return {name: values.tolist() for name, values in found.items()}

    def _pairs(
        self, photographs: Photographs, rows: Sequence[int], others: Photographs
    ) -> list[tuple[int, Example, Tensor]]:
        """Each photograph with one that can be placed on it, by a face if there is one, else by a person: of the same
        folder the first beyond half of it, where rows that are sorted by person come to another one."""
        found = []
        for row in rows:
            example = photographs.look(row)
            begin = row + (len(others) // 2 if others is photographs else 0)
            further = [(begin + i) % len(others) for i in range(len(others))]
            further = [number for number in further if others is not photographs or number != row]
            other = _next_on(places_of(example), others, further)
            if other is not None:
                found.append((row, example, other))
        if not found:
            raise DataError(
                "no two photographs show a face each, or a person each: calibrating needs face_boxes or masks of at "
                "least two (docs/data.md), or others from --others."
            )
        return found

    @torch.no_grad()
    def _photograph(self, name: str, caption: str, example: Example, other: Tensor, device: Any) -> Photograph:
        picture, other = (x[None].to(device) for x in (example.pixel_values, other))
        latents, _ = self.encoder.encode(picture)
        none = torch.zeros_like(latents)
        boxes, mask, people = example.face_boxes, example.person_mask, example.keypoints
        annotation: dict[str, Any] = {
            "person_mask": None if mask is None else mask[None],
            "face_boxes": None if boxes is None else [clip_boxes(boxes, *picture.shape[-2:])],
            "keypoints": None if people is None else [people],
        }
        step = DiffusionStep(
            latents=latents,
            noise=none,
            noisy_latents=latents,
            timesteps=torch.zeros(1, dtype=torch.long, device=latents.device),
            model_pred=none,
            target=none,
            pixel_values=picture,
            **annotation,
        )
        return Photograph(name, example, caption, step, (self.encoder.encode(other)[0], other))

    @torch.no_grad()
    def _floor(self, photograph: Photograph, terms: Sequence[Term]) -> dict[str, float]:
        """What is left where the estimate is the clean latents themselves."""
        step = self._at(photograph.step, self.timesteps[0], torch.zeros_like(photograph.step.latents))
        step = replace(step, model_pred=step.target, pred_latents=step.latents)
        return {name: float(value) for name, value in self._values(step, terms).items()}

    def _look(
        self, photograph: Photograph, terms: Sequence[Term], t: int, draw: int, predict: Predict
    ) -> dict[str, dict[str, float]]:
        """`own` and `other` of each loss, and in the first draw `gradient` and `plain`."""
        noise = _noise(photograph.name, t, draw, photograph.step.latents)
        step = self._at(photograph.step, t, noise)
        own_t = step.timesteps[0].item()
        with torch.no_grad():
            output = predict(step.noisy_latents, own_t, photograph.caption, photograph.example).float()
        leaf = output.detach().requires_grad_(draw == 0)
        step = replace(step, model_pred=leaf)
        with torch.set_grad_enabled(draw == 0):
            values = self._values(replace(step, pred_latents=self.schedule.pred_latents(step)), terms)
            lengths = self._lengths(step, leaf, values) if draw == 0 else {}
        with torch.no_grad():
            latents, picture = photograph.others
            alpha, sigma = self._coefficients(step)
            noise = (step.noisy_latents - alpha * latents) / sigma  # that would make the same noisy latents of it
            target = self.schedule.target(latents, noise, alpha, sigma)
            its = replace(step, latents=latents, pixel_values=picture, noise=noise, target=target)
            others = self._values(replace(its, pred_latents=self.schedule.pred_latents(its)), terms)
        return {
            name: {"own": float(value.detach()), "other": float(others[name]), **lengths.get(name, {})}
            for name, value in values.items()
        }

    @property
    def schedule(self) -> NoiseSchedule:
        return self.stack.schedule

    def _at(self, step: DiffusionStep, t: int, noise: Tensor) -> DiffusionStep:
        """The step with this noise at the SNR that Stable Diffusion has at t."""
        timesteps = self.schedule.timesteps_at(stable_diffusion_snr()[t].item(), step.timesteps)
        step = replace(step, timesteps=timesteps, noise=noise)
        alpha, sigma = self._coefficients(step)
        noisy, target = alpha * step.latents + sigma * noise, self.schedule.target(step.latents, noise, alpha, sigma)
        return replace(step, noisy_latents=noisy, target=target)

    def _coefficients(self, step: DiffusionStep) -> tuple[Tensor, Tensor]:
        """α and σ, (1, 1, 1, 1) each."""
        alpha, sigma = self.schedule.coefficients(step.timesteps)
        return alpha.view(1, 1, 1, 1), sigma.view(1, 1, 1, 1)

    def _values(self, step: DiffusionStep, terms: Sequence[Term]) -> dict[str, Tensor]:
        """Each loss of one picture, (1,)."""
        pictures = self.stack.pictures
        with pictures.in_its_precision(step):
            if any("pred_images" in t.needs for t in terms):
                step = pictures.of(step, any("pred_features" in t.needs for t in terms))
            return {term.name: term.evaluate(step)[0] for term in terms}

    def _lengths(self, step: DiffusionStep, leaf: Tensor, values: dict[str, Tensor]) -> dict[str, dict[str, float]]:
        """Of the gradient of each loss at the network's output, without its weight, and of the plain loss's.

        A loss that is balanced is made as long as that one (engine/balance.py).
        """
        balanced = {term.name for term in self.terms if term.balance is not None}
        plain = self.stack.plain.gradient(replace(step, model_pred=leaf.detach()), whole=False).norm().item()
        found = {}
        with torch.autocast(leaf.device.type, enabled=False), computing_in(self.stack.pictures.dtype_for(step)):
            for name, value in values.items():
                own = None
                if value.requires_grad:
                    (own,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True, allow_unused=True)
                length = 0.0 if own is None else own.norm().item()
                found[name] = {"gradient": plain if length and name in balanced else length, "plain": plain}
        return found


def _next_on(places: Mapping[str, Box], others: Photographs, rows: Sequence[int]) -> Tensor | None:
    """The first picture of `rows` that shows one of the places, moved there; (3, H, W). Of a face, nothing is read of
    pictures that have no box."""
    for kind in places:
        for row in rows:
            if kind == "face" and not others.may_show_face(row):
                continue
            other = others.look(row)
            if (its := places_of(other).get(kind)) is not None:
                return placed(other.pixel_values, its, places[kind])
    return None


def _noise(name: str, t: int, draw: int, like: Tensor) -> Tensor:
    """The same for everybody, whatever the device."""
    seed = int.from_bytes(hashlib.sha256(f"{name}/{t}/{draw}".encode()).digest()[:8], "big") >> 1
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)
