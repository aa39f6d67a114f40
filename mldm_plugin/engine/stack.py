"""The losses of a run, applied to one step: gate, evaluate, mix, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mldm_plugin.announce import announce
from mldm_plugin.decode.decoder import Decoder
from mldm_plugin.decode.latent_decoder import LatentDecoder, said
from mldm_plugin.decode.own import OwnDecode
from mldm_plugin.decode.tiny import TinyDecoder, load_tiny
from mldm_plugin.engine.audit import Audit
from mldm_plugin.engine.balance import Balance
from mldm_plugin.engine.early_backward import evaluate
from mldm_plugin.engine.gates import find_gates
from mldm_plugin.engine.host_checks import ESTIMATE_TOLERANCE
from mldm_plugin.engine.mix import Combine, PlainLoss, mix, needs_each
from mldm_plugin.engine.pictures import Pictures, Precision
from mldm_plugin.engine.report import LossReport
from mldm_plugin.engine.schedule import NoiseSchedule
from mldm_plugin.engine.start_up import StartUp
from mldm_plugin.engine.step import DiffusionStep, clip_boxes
from mldm_plugin.engine.term import Term
from mldm_plugin.errors import LossError, NonFiniteLossError, PresetError
from mldm_plugin.plugins import Plugins, load_plugins
from mldm_plugin.preset import Preset, load_preset


class LossStack:
    """Mixes the terms of a preset into the loss of a step.

    Eq. 3 of "Improving Latent Diffusion with Perceptual Mask-Aware Loss", per image i: with w_ij = λ_j where the
    image is inside the gate of term j and has what j needs, else 0,

        convex:    loss = mean_i( Σ_j w_ij s_j L_ij + (1 − Σ_j w_ij) b_i )
        additive:  loss = mean_i( b_i + Σ_j w_ij s_j L_ij )

    s_j is 1 but for a term that is balanced (balance.py). Both are computed as the plain loss plus a correction from
    the gated images alone, so a step without any is the plain loss to the bit and costs nothing.

    Args:
        terms: in the order of the preset. Those of weight 0 are left out.
        schedule: the host's noise schedule.
        decoder: latents to pictures; may be None if no term needs pictures.
        combine: `convex` or `additive`.
        target, precision, decode_batch: see `Pictures`.
        base_weighting: factor on the squared error of ε by SNR, or None for the host's own loss.
        picture_check: what to do when decode(clean latents) does not resemble the picture.
        estimate_tolerance: relative error of ẑ₀(target) that is let pass; more for a trainer that perturbs its input.
        audit_steps: as for `Audit`.
        after_loss: called with each step and report.
        announce: where the start-up table goes; the default is standard error, on the first process only.

    Attributes:
        audit: what is measured of the gradients: `audit.read` in each optimizer step, `audit.table` at the end.
        start_up: the checks and proofs that are still to be done; None after the first steps.
        proof: the start-up tables that were announced so far.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        *,
        schedule: NoiseSchedule,
        decoder: Decoder | None = None,
        combine: Combine = "convex",
        target: Literal["image", "decoded"] = "image",
        base_weighting: Callable[[Tensor], Tensor] | None = None,
        precision: Precision = "auto",
        decode_batch: int | None = None,
        picture_check: Literal["stop", "warn"] = "stop",
        estimate_tolerance: float = ESTIMATE_TOLERANCE,
        audit_steps: int | None = None,
        after_loss: Callable[..., Any] | None = None,
        announce: Callable[[str], None] = announce,
    ) -> None:
        self.terms = [t for t in terms if t.weight > 0]
        self.schedule, self.combine = schedule, combine
        self.plain = PlainLoss(schedule, base_weighting)
        self.pictures = Pictures(decoder, target, precision, decode_batch)
        self.audit = Audit(self.terms, self.plain, combine, audit_steps, announce)
        self._after_loss, self._announce = after_loss, announce
        self.proof = ""
        self.start_up: StartUp | None = StartUp(
            self.terms,
            self.plain,
            self.pictures,
            combine=combine,
            picture_check=picture_check,
            estimate_tolerance=estimate_tolerance,
            announce=self._tell_proof,
        )

    @classmethod
    def from_preset(
        cls,
        preset: str | Path | Preset,
        *,
        vae: nn.Module | None = None,
        noise_scheduler: Any = None,
        decode: Callable[[Tensor], Tensor] | None = None,
        alphas_cumprod: Sequence[float] | Tensor | None = None,
        plugins: Plugins | Sequence[str] = (),
        overrides: Sequence[str] = (),
        prediction_type: str | None = None,
        scaling_factor: float | None = None,
        latents_mean: Sequence[float] | Tensor | None = None,
        latents_std: Sequence[float] | Tensor | None = None,
        estimate_tolerance: float = ESTIMATE_TOLERANCE,
        announce: Callable[[str], None] = announce,
    ) -> LossStack:
        """The stack that a preset describes.

        Args:
            preset: name, path of a YAML file, or a loaded preset.
            vae: the autoencoder of diffusers whose decoder turns latents into pictures; it is copied.
            noise_scheduler: the diffusers scheduler that the host adds noise with.
            decode: in the place of `vae`, a function from latents as the denoiser sees them to pictures (N, 3, H, W) in
                [-1, 1], with gradient.
            alphas_cumprod: in the place of `noise_scheduler`, ᾱ of each timestep, (T,).
            plugins: names as for `--loss-plugin`, or loaded plugins.
            overrides: as for `--set`.
            prediction_type: what the network's output is, where the scheduler's config does not say it.
            scaling_factor, latents_mean, latents_std: as for `LatentDecoder`.
            estimate_tolerance, announce: as for `LossStack`.

        Raises:
            PresetError: a preset, or a VAE in the place of the model's, that cannot be used.
            PluginError: a plugin that cannot be loaded.
            WeightsError: weights that cannot be had.
        """
        if not isinstance(plugins, Plugins):
            plugins = load_plugins(plugins)
        preset = load_preset(preset, overrides, plugins=plugins)
        terms = _build_terms(preset, plugins)
        _tell_idle(preset, plugins, announce)
        weighting = preset.base.weighting
        hook = plugins.manager.hook.after_loss
        return cls(
            terms,
            schedule=_build_schedule(preset, noise_scheduler, alphas_cumprod, prediction_type),
            decoder=_build_decoder(preset, terms, _one_of(vae, decode), scaling_factor, latents_mean, latents_std),
            combine=preset.combine,
            target=preset.target,
            base_weighting=None if weighting == "none" else plugins.base_weightings[weighting](**preset.base.options),
            precision=preset.precision,
            decode_batch=preset.decode_batch,
            picture_check=preset.checks.picture,
            estimate_tolerance=estimate_tolerance,
            audit_steps=preset.audit_steps,
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
        if self.start_up is not None:
            self.start_up.receive(step)
        step = self._with_boxes_clipped(step)
        gates = find_gates(self.terms, step, self.schedule)
        if self.start_up is not None:
            self.start_up.look(step, gates)
            if self.start_up.done:
                self.start_up = None
        terms, known = evaluate(self.terms, step, gates.open, self.schedule, self.pictures, self.audit)
        report = mix(step, terms, known, self.plain, self.combine)
        if self._after_loss is not None:
            self._after_loss(step=self._with_estimate(step), report=report)
        self._note(report)
        return report

    @property
    def decoder(self) -> Decoder | None:
        """Latents to pictures; None where no loss needs it."""
        return self.pictures.decoder

    @property
    def needs(self) -> frozenset[str]:
        """All that the terms need together."""
        return frozenset[str]().union(*(t.needs for t in self.terms))

    @property
    def needs_each(self) -> bool:
        """Whether the plain loss of each image is used, and not the host's scalar alone."""
        return needs_each(self.terms, self.combine, self.plain.weighting)

    @property
    def unproven(self) -> set[str]:
        """Terms whose gradient has not been shown yet, because no image had what they need."""
        return set() if self.start_up is None else set(self.start_up.unproven)

    def prove(self, step: DiffusionStep) -> str:
        """Prove every term that `step` allows and that is not proved yet; announce the table, and return it.

        Raises:
            CheckError, LossError: see `StartUp.prove`.
        """
        if self.start_up is None:
            return ""
        step = self._with_boxes_clipped(step)
        return self.start_up.prove(step, find_gates(self.terms, step, self.schedule).has)

    def _tell_proof(self, table: str) -> None:
        self.proof += f"{table}\n"
        self._announce(table)

    def _with_estimate(self, step: DiffusionStep) -> DiffusionStep:
        """The step with ẑ₀ of all images, for those who only look: of the output alone, for which nothing is asked."""
        with torch.no_grad(), torch.autocast(step.latents.device.type, enabled=False):
            return replace(step, pred_latents=self.schedule.pred_latents(replace(step, predict=None)))

    def _with_boxes_clipped(self, step: DiffusionStep) -> DiffusionStep:
        """The step with its face boxes clipped to the picture."""
        if step.face_boxes is None:
            return step
        for known in (step.pixel_values, step.person_mask):
            if known is not None:
                size = (known.shape[-2], known.shape[-1])
                break
        else:
            if not self.terms:
                return step  # nobody looks at them
            if self.decoder is None:
                raise LossError("face boxes came without pictures, masks or a VAE: their picture's size is unknown.")
            size = self.decoder.image_size(step.latents)
        return replace(step, face_boxes=[clip_boxes(b, *size) for b in step.face_boxes])

    def _note(self, report: LossReport) -> None:
        failure = None
        for term in self.terms:
            try:
                term.note(report.terms[term.name])
            except NonFiniteLossError as error:
                failure = failure or error
        if failure is not None:
            failure.report = report
            raise failure


def _tell_idle(preset: Preset, plugins: Plugins, announce: Callable[[str], None]) -> None:
    """Losses that a user's plugin brings and the preset does not name."""
    for name in sorted(set(plugins.losses.of_users()) - set(preset.losses)):
        announce(
            f"warning: plugin {plugins.losses.origins[name]} registers the loss {name!r}, but the preset gives it "
            f"no weight, so it does nothing: --set losses.{name}.weight=0.1 would."
        )


def _build_schedule(
    preset: Preset, noise_scheduler: Any, alphas_cumprod: Any, prediction_type: str | None
) -> NoiseSchedule:
    if (noise_scheduler is None) == (alphas_cumprod is None):
        raise PresetError(
            "expected noise_scheduler or alphas_cumprod, and one of them: pass what the host adds noise by."
        )
    if alphas_cumprod is None:
        schedule = NoiseSchedule.from_scheduler(noise_scheduler, prediction_type)
    else:
        schedule = NoiseSchedule.from_alphas_cumprod(torch.as_tensor(alphas_cumprod), prediction_type)
    schedule.direct_steps, schedule.answers = preset.direct_steps, preset.answers
    if schedule.edm and preset.estimate != "one_step":
        raise PresetError(
            f"estimate: {preset.estimate} goes back by timesteps, of which EDM has none: use estimate: one_step."
        )
    return schedule


def _one_of(vae: Any, decode: Callable[[Tensor], Tensor] | None) -> Any:
    """What decodes: `vae`, or `decode` in its form."""
    if decode is None:
        return vae
    if vae is not None:
        raise PresetError("vae and decode were both given: pass the one that the losses shall decode with.")
    return OwnDecode(decode)


def _build_decoder(
    preset: Preset,
    terms: Sequence[Term],
    vae: Any,
    scaling_factor: float | None,
    latents_mean: Sequence[float] | Tensor | None,
    latents_std: Sequence[float] | Tensor | None,
) -> Decoder | None:
    if vae is None or not terms:
        return None
    if preset.vae == "model":
        return LatentDecoder(vae, scaling_factor, latents_mean, latents_std, checkpointing=preset.decode_checkpointing)
    factor = said(getattr(vae, "config", None), "scaling_factor")
    if isinstance(vae, OwnDecode) or factor is None:
        raise PresetError(
            f"vae: {preset.vae} stands in for a VAE with a scaling_factor, this has none: use vae: model."
        )
    if latents_mean is not None:
        raise PresetError(f"vae: {preset.vae} does not read latents that are normalised by channel: use vae: model.")
    if scaling_factor not in (None, factor):
        raise PresetError(
            f"vae: {preset.vae} reads latents scaled by {factor:g}, this trainer scales them by "
            f"{scaling_factor:g}: use vae: model."
        )
    exact = LatentDecoder(vae, scaling_factor, checkpointing=preset.decode_checkpointing)
    return TinyDecoder(exact, load_tiny(preset.vae, vae.config))


def _build_terms(preset: Preset, plugins: Plugins) -> list[Term]:
    """The losses of positive weight, each with a remark on its networks and on what is random about it."""
    terms = []
    for name, settings in preset.losses.items():
        if settings.weight > 0:
            random = [f"{option}: random" for option, value in settings.options.items() if value == "random"]
            loss = plugins.losses[name](**settings.options)
            balance = Balance() if settings.balance == "gradient" else None
            remark = ", ".join([*getattr(loss, "networks", ()), *random, *(["balanced"] if balance else [])])
            terms.append(Term(name, loss, settings.weight, settings.max_timestep, settings.detach, remark, balance))
    return terms
