"""A script's run with our losses: what the spliced script calls, step by step."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mldm_plugin.announce import announce
from mldm_plugin.attach import kohya_loop, kohya_masks, ledger
from mldm_plugin.attach.annotation import KEY, PLACED, Annotation, Collate
from mldm_plugin.attach.autoencoders import in_form_of_diffusers
from mldm_plugin.attach.coverage import Coverage
from mldm_plugin.attach.flags import Settings
from mldm_plugin.attach.names import NAMES
from mldm_plugin.attach.on_record import ExampleColumns, Fault, SideFolder
from mldm_plugin.attach.placement import Placement
from mldm_plugin.attach.ranks import refuse_unshown, refuse_unshown_in
from mldm_plugin.attach.records import Records
from mldm_plugin.attach.scope import (
    Scope,
    annotation_in,
    caching_flag,
    is_turned,
    pictures_of,
    prediction_type_of,
    read,
    runs_backwards,
    spare_pictures,
    tolerance_of,
    turned,
    with_time_turned,
)
from mldm_plugin.attach.script_flags import fill_when_parsed
from mldm_plugin.decode.latent_decoder import LatentDecoder, says_scale
from mldm_plugin.engine.host_checks import estimate_errors
from mldm_plugin.engine.host_loss import HostLoss
from mldm_plugin.engine.report import LossReport
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.errors import CheckError, DataError, PresetError
from mldm_plugin.plugins import load_plugins
from mldm_plugin.preset import load_preset
from mldm_plugin.weights_first import fetch_needed

_SAME = 1e-3  # relative; rounding of half precision excepted. Chosen.


@dataclass
class CachedLatents:
    """A latent distribution that a script keeps, with the annotation of the pictures it was encoded from.

    Reading it, `.sample()` or `.mode()`, tells the attachment whose annotation belongs to the step.
    """

    latents: Any
    placed: Annotation | Fault | None
    pixel_values: Tensor | None
    on_read: Callable[[CachedLatents], None]

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        self.on_read(self)
        return self.latents.sample(*args, **kwargs)

    def mode(self) -> Any:
        self.on_read(self)
        return self.latents.mode()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.latents, name)


class Attachment:
    """One script, one preset.

    Args:
        settings: the plugin's own flags, already taken off the command line.

    Raises:
        PresetError, PluginError, DataError: the preset, a plugin or the folder of masks cannot be used.
        MldmError: FSDP1 or DeepSpeed.
    """

    def __init__(self, settings: Settings) -> None:
        refuse_unshown()
        self.plugins = load_plugins(settings.loss_plugin)
        self.preset = load_preset(settings.preset, settings.set, plugins=self.plugins)
        self.settings = settings
        if self.preset.answers > 1:
            raise PresetError(
                f"estimate: {self.preset.estimate} asks the network again, which an attached script does not let us "
                "do: use estimate: one_step or direct-S, one of mldm's own trainers, or the library form "
                "(docs/training_loop.md)."
            )
        fetch_needed(self.preset, self.plugins)
        fill_when_parsed(settings.preset, settings.script, self.preset.training)
        self.in_use = any(loss.weight > 0 for loss in self.preset.losses.values())
        self.stored_of: ExampleColumns | SideFolder = (
            SideFolder(Path(settings.mask_dir))
            if settings.mask_dir is not None and self.in_use
            else ExampleColumns(settings.mask_column, settings.face_boxes_column, settings.keypoints_column)
        )
        self.steps = 0
        alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        self._coverage = {
            need: Coverage(what, by_stem=settings.mask_dir is not None, alone=alone) for need, what in PLACED.items()
        }
        self._records: Records | None = None
        self._stack: LossStack | None = None
        self._draws_with: LatentDecoder | None = None
        self._vae: Any = None
        self._cached: CachedLatents | None = None
        self._placements: tuple[Placement, ...] = ()
        self._told_placement = False
        self._notes = kohya_loop.Notes()
        self._kohya = False
        self._turned = False
        self._backwards: bool | None = None  # not known yet
        self._recognised = False
        self._whole = False  # the script's loss has another form, and additive keeps it as it is
        self._told_astray = False
        if self.in_use:
            ledger.install()

    def collate(self, collate: Callable[[Any], Any] | None = None, *, strict: bool = True) -> Callable[[Any], Any]:
        """The script's collate function, or torch's own, with masks and boxes added to its batches.

        With all weights at zero it is the script's own: data that no loss needs are not looked at.
        `strict` is for a loader that is known to be the training one: its batches must be ones with pictures.
        """
        if isinstance(collate, Collate):
            return collate
        kohyas = collate is not None and kohya_masks.is_collator(collate)
        self._kohya |= kohyas
        if not self.in_use:
            return collate or torch.utils.data.default_collate
        if collate is not None and kohyas:
            folder = self.stored_of if isinstance(self.stored_of, SideFolder) else kohya_masks.NoFolder()
            return kohya_masks.KohyaCollate(collate, folder)
        return Collate(collate or torch.utils.data.default_collate, self.stored_of, strict=strict)

    def note(self, value: Any, variables: dict[str, Any]) -> Any:
        """What a method of kohya's trainer classes returns; its variables are kept for this step's `loss`."""
        self._notes.add(variables)
        self._forget(variables)
        return value

    def factor(self, value: float) -> float:
        """The number that kohya's scripts multiply latents by."""
        self._notes.factor = value
        return value

    def cache(self, latents: Any, variables: dict[str, Any]) -> Any:
        """A latent distribution that the script is about to keep; the annotation of its batch goes with it."""
        if not hasattr(latents, "sample"):  # nobody can tell when it is read: the first step is refused
            return latents
        scope = Scope(variables)
        self._vae = self._vae or scope.get("vae")
        if not self.in_use:
            return latents
        placed, pictures = scope.batch.get(KEY), pictures_of(scope.batch)
        self._forget(variables)
        if pictures is not None:  # exact for what ToTensor made of 8-bit pictures, at a quarter of the memory
            pictures = ((pictures.detach().float().cpu() + 1) * 127.5).round().to(torch.uint8)
        return CachedLatents(latents, placed, pictures, self._note_cached)

    def loss(self, loss: Tensor, variables: dict[str, Any]) -> Tensor:
        """The loss to train with, in place of the script's own `loss`.

        Args:
            loss: the script's scalar.
            variables: the local variables of its loop; cleared, so that they do not outlive the step.

        Raises:
            MldmError: what is wrong with the script, its data or a loss.
        """
        scope = Scope(self._notes.take(variables))
        if self._stack is None:
            self._stack = self._build(scope)
        step, parts = self._read(loss, scope, self._stack)
        start_up, weighted = self._stack.start_up, self._stack.plain.weighting is not None
        checked = (start_up is not None and start_up.checks) or weighted
        if parts is not None and checked:
            step = self._of_known_form(step, parts, self._stack)
        try:
            report = self._stack(step)
        except CheckError as error:
            raise CheckError(f"{error} {scope.account()}") from error
        mixed = self._stack.needs_each and any(term.gated for term in report.terms.values())
        if parts is not None and not checked and mixed:
            parts.check()  # otherwise the script's own loss is in it as a whole, whatever it is
        self._announce(step, self._stack)
        self.steps += 1
        self._record(scope, self._stack, step, report)
        self._forget(variables)
        return report.loss

    def finish(self) -> None:
        """The script has ended.

        Raises:
            CheckError: no step of it came by, so nothing of the preset was trained.
        """
        for coverage in self._coverage.values():
            coverage.conclude()
        if not self.steps:
            raise CheckError(
                "the script has ended, and not one training step came by: its loop does not call accelerator.backward "
                "where it was expected. Use the library form (docs/attach.md)."
            )
        if self._stack is not None and self._stack.needs & PLACED.keys() and not self._told_placement:
            announce("warning: no annotated picture could be compared with its source; look at the first panel.")
        if self._stack is not None and self._stack.unproven:
            names = ", ".join(sorted(self._stack.unproven))
            announce(f"warning: no image had what these losses need, so they did nothing: {names}.")
        if self._stack is not None and (table := self._stack.audit.table()):
            announce(table)
        if self._records is not None:
            self._records.finish()

    def _announce(self, step: DiffusionStep, stack: LossStack) -> None:
        """What the checks of the first step have shown, and the first comparison of pictures with their sources."""
        if not self.steps:
            error, _ = estimate_errors(stack.schedule, step)
            announce(f"  x̂0 from the target gives the clean latents back: relative error {error:.2g}")
            self._tell_scale(step)
        if self._placements and not self._told_placement:
            self._told_placement = True
            distance = sum(p.distance for p in self._placements) / len(self._placements)
            announce(
                f"  masks follow the pictures: {len(self._placements)} compared with their source, mean difference "
                f"{distance:.3f} of 2"
            )

    def _of_known_form(self, step: DiffusionStep, parts: HostLoss, stack: LossStack) -> DiffusionStep:
        """The step with the parts of the script's loss; without them where it has none and `additive` needs none."""
        if stack.needs_each:
            parts.check(weighted=stack.plain.weighting is not None)
        elif self._whole or not parts.fits:
            if not self._whole:
                announce(
                    f"  the script's loss is not each image's squared error times a factor{parts.hint}: combine: "
                    "additive adds to it as it is; ldm/ in curves by range of t is the squared error."
                )
            self._whole = True
            self._tell_astray(parts)
            return replace(step, base_weights=None, other_loss=None)
        return step

    def _tell_astray(self, parts: HostLoss) -> None:
        """A loss of another form does not show that the output is what the target is a target of."""
        if not self._told_astray and parts.astray:
            self._told_astray = True
            announce(
                f"  warning: {parts.against.item():.0%} of the gradient of the script's loss pushes the output away "
                "from the target. If it is no reward, the output that was found is another quantity than the target, "
                "and x̂0 is wrong: look at the first panel, or use the library form (docs/attach.md)."
            )

    @staticmethod
    def _tell_scale(step: DiffusionStep) -> None:
        """One factor on all images is no weighting by noise level, but a loss that was divided by hand."""
        weights = step.base_weights
        if weights is None or len(weights) < 2:
            return
        lowest, highest = weights.min().item(), weights.max().item()
        if highest - lowest < _SAME * highest and abs(highest - 1) > _SAME:
            announce(
                f"  warning: the script's loss is {highest:.4g} times the mean squared error. If it divides its loss "
                "by hand, the plugin's losses are not divided: accumulate with accelerate, or scale their weights."
            )

    def _read(self, loss: Tensor, scope: Scope, stack: LossStack) -> tuple[DiffusionStep, HostLoss | None]:
        annotation, pictures = self._annotation(scope, stack)
        if pictures is not None and pictures.dtype == torch.uint8:
            pictures = pictures.to(loss.device).float() / 127.5 - 1
        if annotation is not None:
            self._placements = annotation.placements
            self._count(annotation, stack)
        apart = stack.needs_each or (bool(stack.terms) and (not self._whole or stack.start_up is not None))
        step, parts = read(loss, scope, annotation, pictures, stack.schedule, apart=apart)
        if self._backwards is None:
            self._backwards = runs_backwards(step, stack.schedule)
        if self._backwards:
            step = with_time_turned(step, stack.schedule)
        if not self.steps:
            self._turned = is_turned(step)
        if not self._recognised and (kind := prediction_type_of(step, stack.schedule)) is not None:
            self._recognised = True
            stack.schedule.prediction_type = kind
        return (turned(step) if self._turned else step), parts

    def _count(self, annotation: Annotation, stack: LossStack) -> None:
        """Which pictures have what the losses need. kohya's that have nothing at all are told beforehand, see
        kohya_masks."""
        known = annotation.on_record
        for need in known.keys() & stack.needs:
            rows = zip(annotation.names, known[need], *known.values(), strict=True)
            self._coverage[need].add((name, has) for name, has, *any_of in rows if any(any_of) or not self._kohya)

    def _annotation(self, scope: Scope, stack: LossStack) -> tuple[Annotation | None, Tensor | None]:
        """The annotation and the pictures of this step. A fault in what no loss looks at is none."""
        if not stack.needs:
            return None, spare_pictures(scope)
        cached = self._cached
        batch: Mapping[str, Any] = (scope.batch or scope.get("batch") or {}) if cached is None else {KEY: cached.placed}
        pictures = pictures_of(batch) if cached is None else cached.pixel_values
        if not stack.needs & PLACED.keys() and not isinstance(batch.get(KEY), Annotation):
            return None, pictures
        annotation = annotation_in(batch)
        self._check_offered(annotation, stack)
        return annotation, pictures if annotation.pictures is None else annotation.pictures

    def _check_offered(self, annotation: Annotation, stack: LossStack) -> None:
        """The data must have what the losses look at, be it empty for some pictures."""
        settings = self.settings
        for need, given, column, what in (
            ("person_mask", annotation.person_mask, settings.mask_column, "NAME.png"),
            ("face_boxes", annotation.face_boxes, settings.face_boxes_column, "NAME.json with face_boxes"),
            ("keypoints", annotation.keypoints, settings.keypoints_column, "NAME.json with keypoints"),
        ):
            names = [t.name for t in stack.terms if need in t.needs]
            if names and isinstance(given, Fault):
                raise DataError(given.message)
            if names and given is None:
                place = f"--mldm-mask-dir has no {what}" if settings.mask_dir else f"the data have no column {column!r}"
                raise DataError(
                    f"loss {names[0]!r} needs {need}, but {place}: add the column (docs/attach.md), give "
                    f"--mldm-mask-dir a folder with {what} for each picture, or set the loss's weight to 0."
                )

    def _build(self, scope: Scope) -> LossStack:
        refuse_unshown_in(scope.get("accelerator"))
        remedy = caching_flag(scope)
        if remedy and self.in_use and self._cached is None and not self._kohya:
            raise DataError(
                "the script keeps latents in a way that cannot be followed, so which picture belongs to which is not "
                f"known: {remedy}."
            )
        vae, factor = in_form_of_diffusers(self._vae or scope.get(*NAMES["vae"]), self._notes.factor)
        readable = says_scale(vae)
        # Of a VAE that has nothing but its statistics, scripts keep them in forms of their own (1 / std, Qwen-Image).
        apart = getattr(getattr(vae, "config", None), "scaling_factor", None) is not None
        mean, std = (scope.get(name) if apart else None for name in ("latents_mean", "latents_std"))
        stack = LossStack.from_preset(
            self.preset,
            vae=vae if readable else None,
            noise_scheduler=scope.need("noise_scheduler"),
            plugins=self.plugins,
            prediction_type="v_prediction" if scope.option("v_parameterization") else None,
            scaling_factor=factor,
            latents_mean=mean,
            latents_std=std,
            estimate_tolerance=tolerance_of(scope),
        )
        if stack.decoder is None and any("pred_images" in t.needs for t in stack.terms):
            came = "no autoencoder was found in the training loop" if vae is None else f"it is a {type(vae).__name__}"
            raise CheckError(
                "the losses need an autoencoder of diffusers that says how its latents are scaled, to decode the clean "
                f"estimate with; {came}. Use the library form with a decode function of your own (docs/attach.md)."
            )
        if self.settings.panel_steps and stack.decoder is None and readable:
            self._draws_with = LatentDecoder(vae, factor, mean, std)
            self._draws_with.settle()
        self._vae = None
        return stack

    def _record(self, scope: Scope, stack: LossStack, step: DiffusionStep, report: LossReport) -> None:
        if self._records is None:
            self._records = Records.open(self.settings, self.preset, scope, stack.decoder or self._draws_with)
        self._records.add(scope, stack, step, report)

    def _note_cached(self, cached: CachedLatents) -> None:
        self._cached = cached

    @staticmethod
    def _forget(variables: dict[str, Any]) -> None:
        """Up to Python 3.12 `locals()` lives as long as its frame, and its tensors with it. A module's is not ours."""
        if isinstance(variables, dict) and "__name__" not in variables:
            variables.clear()
