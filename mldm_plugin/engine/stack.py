"""The losses of a run, applied to one step: gate, decode once, evaluate, weigh, mix."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.decode.pixel_path import PixelPath
from mldm_plugin.decode.tiny import load_tiny
from mldm_plugin.engine import checks, proof
from mldm_plugin.engine.early_backward import Evaluation, evaluate, with_gradient
from mldm_plugin.engine.report import LossReport, TermReport
from mldm_plugin.engine.schedule import NoiseSchedule
from mldm_plugin.engine.step import DiffusionStep, clip_boxes
from mldm_plugin.engine.term import Term
from mldm_plugin.errors import LossError, NonFiniteLossError, PresetError
from mldm_plugin.plugins import Plugins, load_plugins
from mldm_plugin.preset import Preset, load_preset

log = logging.getLogger(__name__)

MAX_NONFINITE_IN_A_ROW = 10  # gated steps, then the run ends
# The first steps, and the first with a gated image: a wrong convention may hide at some timesteps, not at all. Chosen.
CHECKED_STEPS = 20


class LossStack:
    """Mixes the terms of a preset into the loss of a step.

    Eq. 3 of "Improving Latent Diffusion with Perceptual Mask-Aware Loss", per image i: with w_ij = λ_j where the
    image is inside the gate of term j and has what j needs, else 0,

        convex:    loss = mean_i( Σ_j w_ij L_ij + (1 − Σ_j w_ij) b_i )
        additive:  loss = mean_i( b_i + Σ_j w_ij L_ij )

    Both are computed as the plain loss plus a correction from the gated images alone, so a step without any is
    the plain loss to the bit and costs nothing.

    Args:
        terms: in the order of the preset. Those of weight 0 are left out.
        schedule: the host's noise schedule.
        decoder: latents to pictures; may be None if no term needs pictures.
        combine: `convex` or `additive`.
        target: compare with the `image`, or with the `decoded` clean latents.
        base_weighting: factor on the squared error of ε by SNR, or None for the host's own loss.
        precision, pixel_memory_gb: see `PixelPath`.
        picture_check: what to do when decode(clean latents) does not resemble the picture.
        estimate_tolerance: relative error of ẑ₀(target) that is let pass; more for a trainer that perturbs its input.
        after_loss: called with each step and report.
        announce: where the start-up table goes; the default is standard error, on the first process only.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        *,
        schedule: NoiseSchedule,
        decoder: LatentDecoder | None = None,
        combine: Literal["convex", "additive"] = "convex",
        target: Literal["image", "decoded"] = "image",
        base_weighting: Callable[[Tensor], Tensor] | None = None,
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        pixel_memory_gb: float | None = None,
        picture_check: Literal["stop", "warn"] = "stop",
        estimate_tolerance: float = checks.ESTIMATE_TOLERANCE,
        after_loss: Callable[..., Any] | None = None,
        announce: Callable[[str], None] = proof.announce,
    ) -> None:
        self.terms = [t for t in terms if t.weight > 0]
        self.schedule = schedule
        self.combine = combine
        looked_at = frozenset[str]().union(*(t.needs for t in self.terms if "pred_images" in t.needs))
        self.pixel_path = PixelPath(decoder, target, precision, pixel_memory_gb, looked_at)
        self._refuse_windows_for_whole_pictures()
        self.base_weighting = base_weighting
        self.picture_check = picture_check
        self.estimate_tolerance = estimate_tolerance
        self.announce = announce
        self._after_loss = after_loss
        self._unproven = {t.name for t in self.terms}
        self._first_step = True
        self._steps = 0
        self._checks_left = CHECKED_STEPS

    @classmethod
    def from_preset(
        cls,
        preset: str | Path | Preset,
        *,
        vae: nn.Module | None,
        noise_scheduler: Any,
        plugins: Plugins | Sequence[str] = (),
        overrides: Sequence[str] = (),
        prediction_type: str | None = None,
        scaling_factor: float | None = None,
        latents_mean: Sequence[float] | Tensor | None = None,
        latents_std: Sequence[float] | Tensor | None = None,
        estimate_tolerance: float = checks.ESTIMATE_TOLERANCE,
        announce: Callable[[str], None] = proof.announce,
    ) -> LossStack:
        """The stack that a preset describes.

        Args:
            preset: name, path of a YAML file, or a loaded preset.
            vae: the autoencoder whose decoder turns latents into pictures; it is copied.
            noise_scheduler: the diffusers scheduler that the host adds noise with.
            plugins: names as for `--loss-plugin`, or loaded plugins.
            overrides: as for `--set`.
            prediction_type: what the network's output is, where the scheduler's config does not say it.
            scaling_factor, latents_mean, latents_std: as for `LatentDecoder`.
            estimate_tolerance: as above.
            announce: as above.

        Raises:
            PresetError, PluginError, WeightsError: see there.
        """
        if not isinstance(plugins, Plugins):
            plugins = load_plugins(plugins)
        preset = load_preset(preset, overrides, plugins=plugins)
        terms = _build_terms(preset, plugins)
        for name in sorted(set(plugins.losses.of_users()) - set(preset.losses)):
            announce(
                f"warning: plugin {plugins.losses.origins[name]} registers the loss {name!r}, but the preset gives it "
                f"no weight, so it does nothing: --set losses.{name}.weight=0.1 would."
            )
        weighting = preset.base.weighting
        hook = plugins.manager.hook.after_loss
        return cls(
            terms,
            schedule=NoiseSchedule.from_scheduler(noise_scheduler, prediction_type),
            decoder=_build_decoder(preset, vae if terms else None, scaling_factor, latents_mean, latents_std),
            combine=preset.combine,
            target=preset.target,
            base_weighting=None if weighting == "none" else plugins.base_weightings[weighting](**preset.base.options),
            precision=preset.precision,
            pixel_memory_gb=preset.pixel_memory_gb,
            picture_check=preset.checks.picture,
            estimate_tolerance=estimate_tolerance,
            after_loss=hook if hook.get_hookimpls() else None,
            announce=announce,
        )

    def __call__(self, step: DiffusionStep) -> LossReport:
        """The loss of a step, and what each term saw.

        Raises:
            LossError: a loss returned something else than one value per image.
            CheckError: a start-up check failed, in the first step or the first that a term can be checked in.
            NonFiniteLossError: a term was not finite for ten gated steps in a row; `.report` holds this step.
        """
        if self._first_step:  # before a timestep that the schedule does not have is looked up
            checks.check_host(self.schedule, self.terms, step)
        step = self._complete(step)
        gates = self._gates(step)
        self._check(step, gates)
        base = self._base_loss(step)
        with self.pixel_path.in_its_precision(step):
            given = evaluate(self.terms, step, gates, self.schedule, self.pixel_path)
        correction = self._correction(step, given)
        report = LossReport(
            loss=base if correction is None else base + correction,
            ldm=base.detach(),
            terms={t.name: TermReport.of(t, given.terms.get(t.name), step) for t in self.terms},
        )
        if self._after_loss is not None:
            self._after_loss(step=step, report=report)
        self._count(report)
        return report

    @property
    def decoder(self) -> LatentDecoder | None:
        """Latents to pictures; None where no loss needs it."""
        return self.pixel_path.decoder

    @decoder.setter
    def decoder(self, decoder: LatentDecoder | None) -> None:
        self.pixel_path.decoder = decoder

    def prove(self, step: DiffusionStep) -> str:
        """Check every term that `step` allows, announce the table, and return it. See `proof`."""
        step = self._complete(step)
        names = [t.name for t in self.terms if t.name in self._unproven and self.rows_with(t, step)]
        table = proof.prove_terms(self, step, names)
        self._unproven -= set(names)
        self.announce(table)
        return table

    @property
    def unproven(self) -> set[str]:
        """Terms whose gradient has not been shown yet, because no image had what they need."""
        return set(self._unproven)

    def rows_with(self, term: Term, step: DiffusionStep) -> list[int]:
        """The images of a step that have what a term needs, whatever their timestep."""
        return [i for i, has in enumerate(term.has(step).tolist()) if has]

    def _refuse_windows_for_whole_pictures(self) -> None:
        for term in self.terms:
            whole = "pred_images" in term.needs and not term.needs & {"person_mask", "face_boxes"}
            if self.decoder is not None and self.decoder.in_windows and whole:
                raise PresetError(
                    f"loss {term.name!r} looks at whole pictures, so decode: region would hide most of them from it: "
                    "use decode: full."
                )

    def _complete(self, step: DiffusionStep) -> DiffusionStep:
        """Add ẑ₀, and clip the face boxes to the picture."""
        boxes = step.face_boxes
        if boxes is not None:
            boxes = [clip_boxes(b, *self._image_size(step)) for b in boxes]
        with torch.autocast(step.latents.device.type, enabled=False):
            return replace(step, pred_latents=self.schedule.pred_latents(step), face_boxes=boxes)

    def _image_size(self, step: DiffusionStep) -> tuple[int, int]:
        if self.decoder is not None:
            return self.decoder.image_size(step.latents)
        for known in (step.pixel_values, step.person_mask):
            if known is not None:
                return known.shape[-2], known.shape[-1]
        raise LossError("face boxes were given without pictures, masks or a VAE: their picture's size is unknown.")

    def _check(self, step: DiffusionStep, gates: dict[str, list[int]]) -> None:
        if self._first_step and step.base_weights is not None and self.base_weighting is not None:
            log.warning("the trainer's own weighting and the preset's base weighting both apply.")
        self._first_step = False
        gated = any(gates.values())
        checked = self._checks_left and (gated or self._steps < CHECKED_STEPS)
        self._steps += 1
        if checked:
            checks.check_estimate(self.schedule, step, self.estimate_tolerance)
            if step.base_loss is not None and (self.terms or self.base_weighting is not None):
                checks.check_base_loss(step.base_loss, self._host_error(step), step.other_loss)
        if self._unproven and any(self.rows_with(t, step) for t in self.terms if t.name in self._unproven):
            self.prove(step)
        if checked:
            rows = sorted({r for t in self.terms if "pred_images" in t.needs for r in gates[t.name]})
            if rows and self.picture_check == "stop":
                proof.check_encoding(self, step.select(rows))
            self._checks_left -= bool(not self.terms or gated)
            if not self._checks_left and self.decoder is not None:
                self.decoder.forget_encoder()

    def _base_loss(self, step: DiffusionStep) -> Tensor:
        if step.base_loss is not None and self.base_weighting is None:
            return step.base_loss
        own = self._squared_error(step).mean()
        return own if step.other_loss is None else own + step.other_loss

    def _squared_error(self, step: DiffusionStep) -> Tensor:
        """The plain loss b_i of each image, (n,) float32, with the host's weights and the preset's weighting."""
        error = self._host_error(step)
        if self.base_weighting is not None:
            snr = self.schedule.snr(step.timesteps, step.sigmas).clamp(max=1e8)
            error = error * (self.base_weighting(snr) * self.schedule.epsilon_factor(snr)).to(error)
        return error

    def _host_error(self, step: DiffusionStep) -> Tensor:
        """The squared error of each image, (n,) float32, with the host's own weights."""
        error = ((step.model_pred.float() - step.target.float()) ** 2).flatten(1).mean(dim=1)
        return error if step.base_weights is None else error * step.base_weights.flatten().to(error)

    def _gates(self, step: DiffusionStep) -> dict[str, list[int]]:
        """Rows of the images that each term applies to. One synchronisation with the device."""
        if not self.terms:
            return {}
        snr = self.schedule.snr(step.timesteps, step.sigmas)
        gates = [self.schedule.gate(snr, t.max_timestep) & t.has(step) for t in self.terms]
        open_ = torch.stack(gates).tolist()
        return {t.name: [i for i, o in enumerate(row) if o] for t, row in zip(self.terms, open_, strict=True)}

    def _correction(self, step: DiffusionStep, given: Evaluation) -> Tensor | None:
        """Σ_ij w_ij (L_ij − b_i)/N for convex, Σ_ij w_ij L_ij/N for additive; None if no image is in the mix."""
        value, plain = [], []
        for term in self.terms:
            of_term = given.terms.get(term.name)
            if of_term is None or not any(of_term.used):
                continue
            used = [i for i, u in enumerate(of_term.used) if u]
            value.append(term.weight * of_term.values[used].sum() / len(step))
            if self.combine == "convex":
                error = self._squared_error(step.select([of_term.rows[i] for i in used]))
                plain.append(term.weight * error.sum() / len(step))
        if not value:
            return None
        terms = with_gradient(torch.stack(value).sum(), step.model_pred, given.gradient)
        return terms - torch.stack(plain).sum() if plain else terms

    def _count(self, report: LossReport) -> None:
        for term in self.terms:
            seen = report.terms[term.name]
            term.note(gated=seen.gated > 0, finite=seen.finite, gradient_finite=seen.gradient_finite)
            if term.nonfinite_in_a_row >= MAX_NONFINITE_IN_A_ROW:
                raise NonFiniteLossError(
                    f"loss {term.name!r} was NaN or infinite in {MAX_NONFINITE_IN_A_ROW} steps in a row: lower the "
                    "learning rate or its weight, or use float32.",
                    report,
                )


def _build_decoder(
    preset: Preset,
    vae: Any,
    scaling_factor: float | None,
    latents_mean: Sequence[float] | Tensor | None,
    latents_std: Sequence[float] | Tensor | None,
) -> LatentDecoder | None:
    if vae is None:
        return None
    if preset.vae != "model" and latents_mean is not None:
        raise PresetError(f"vae: {preset.vae} does not read latents that are normalised by channel: use vae: model.")
    if preset.vae != "model" and scaling_factor not in (None, vae.config.scaling_factor):
        raise PresetError(
            f"vae: {preset.vae} reads latents scaled by {vae.config.scaling_factor:g}, this trainer scales them by "
            f"{scaling_factor:g}: use vae: model."
        )
    tiny = None if preset.vae == "model" else load_tiny(preset.vae, vae.config)
    regional = preset.decode == "region"
    return LatentDecoder(vae, scaling_factor, latents_mean, latents_std, tiny=tiny, region=regional)


def _build_terms(preset: Preset, plugins: Plugins) -> list[Term]:
    """The losses of positive weight, each with a remark on what is random about it."""
    terms = []
    for name, settings in preset.losses.items():
        if settings.weight > 0:
            random = [f"{option}: random" for option, value in settings.options.items() if value == "random"]
            loss = plugins.losses[name](**settings.options)
            terms.append(
                Term(name, loss, settings.weight, settings.max_timestep, settings.detach, remark=", ".join(random))
            )
    return terms
