"""What a trainer consists of: Stable Diffusion frozen, and what each trainer says is its own. `run` has the loop."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import PIL.Image
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.import_utils import is_xformers_available
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModel, PretrainedConfig

from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.errors import MldmError
from mldm_plugin.training.flags import TrainerFlags

Prompt = tuple[str, PIL.Image.Image | None]  # what to sample, and its hint where the trainer has hints
TEXT_ENCODER = "CLIPTextModel"


class Trainer(ABC):
    """The networks of a run, and what one trainer does with them that another does not.

    Class attributes:
        what: what it trains, for people.
        flags_type: its command line.
        weights_file: what `save` leaves in a folder.
        in_checkpoint: the folder inside a checkpoint that `save` writes; empty for the checkpoint itself.
        start_flag: the flag that starts a new run from such a folder, if there is one.
        every_file: as for `open_rows`.
        inference_steps: of the sampling, as in diffusers' script.

    Attributes that its constructor sets:
        trained: what accelerate prepares: a network of its own beside the frozen ones, or the U-Net, of which only a
            LoRA has gradients.
        project: its name in the tracker.
        clips_gradients, frees_gradients: whether the loop clips to --max_grad_norm, and frees gradients between steps
            instead of zeroing them.
        lr_options: of diffusers' `get_scheduler`, beside those that all trainers have.
        hints: the column of hints, None for a trainer without.
        empty_prompts, framing: as for `TrainingSet`.
        layouts: the memory formats of the VAE's posterior for one picture and for several. Noise is drawn like the
            latents, in the order of memory, so latents from a cache take the same.
    """

    what: ClassVar[str]
    flags_type: ClassVar[type[TrainerFlags]]
    weights_file: ClassVar[str]
    in_checkpoint: ClassVar[str] = ""
    start_flag: ClassVar[str | None] = None
    every_file: ClassVar[bool] = False
    inference_steps: ClassVar[int]

    project: str
    trained: nn.Module
    clips_gradients = True
    frees_gradients = True
    lr_options: Mapping[str, Any] = {}
    hints: str | None = None
    empty_prompts: float | None = None
    framing: Mapping[str, Any] = {}

    def __init__(
        self,
        flags: TrainerFlags,
        device: torch.device,
        dtype: torch.dtype,
        *,
        text_encoder_variant: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        """Load the pipeline with all its networks frozen, to be moved later. Draws no random numbers.

        Raises:
            MldmError: the pipeline is not there or is not one of Stable Diffusion 1.x.
        """
        name, revision = flags.pretrained_model_name_or_path, flags.revision
        place = {"revision": revision, "variant": flags.variant}
        with loading(name):
            config, _ = PretrainedConfig.get_config_dict(name, subfolder="text_encoder", revision=revision)
            if (architectures := config.get("architectures") or ["of no name"]) != [TEXT_ENCODER]:
                raise MldmError(f"the pipeline {name} has a text encoder {architectures[0]}, expected {TEXT_ENCODER}.")
            where = {} if tokenizer else {"subfolder": "tokenizer"}
            self.tokenizer = AutoTokenizer.from_pretrained(
                tokenizer or name, revision=revision, use_fast=False, **where
            )
            self.noise_scheduler = DDPMScheduler.from_pretrained(name, subfolder="scheduler")
            self.text_encoder = CLIPTextModel.from_pretrained(
                name, subfolder="text_encoder", revision=revision, variant=text_encoder_variant
            )
            self.vae = AutoencoderKL.from_pretrained(name, subfolder="vae", **place)
            self.unet = UNet2DConditionModel.from_pretrained(name, subfolder="unet", **place)
        for frozen in (self.vae, self.unet, self.text_encoder):
            frozen.requires_grad_(False)
        self.flags, self.device, self.dtype = flags, device, dtype
        self.layouts = (torch.contiguous_format, torch.contiguous_format)

    @abstractmethod
    def diffusion_step(
        self, model: nn.Module, batch: dict[str, Any], draw_timesteps: Callable[[Tensor], Tensor]
    ) -> DiffusionStep:
        """Noise a batch, predict with `model`, compare: a micro-batch up to its plain loss, in the order of draws of
        diffusers' script. `draw_timesteps` gives t of each of some latents (N, …), (N,)."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: dict[str, Any], noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
        """What `model`, or the U-Net that it steers, answers to z_t (N, C, h, w) at t (N,), with the captions and hints
        of a batch."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what is trained into a folder, in the format of diffusers' script."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Put back what `save` wrote; raises RunFolderError if it does not fit."""

    @abstractmethod
    def prompts(self) -> list[Prompt]:
        """What to sample for eyes; raises DataError for a hint that cannot be read."""

    @abstractmethod
    def make_pipeline(self, stored: Path | None) -> Any:
        """A pipeline to sample with, from what is in training, or from what was stored in the given folder."""

    def samples_after_step(self, step: int) -> bool:
        """Whether to sample now that so many optimizer steps are done."""
        return False

    def samples_after_pass(self, epoch: int) -> bool:
        """Whether to sample now that the pass of this number is done."""
        return False

    def trainable(self) -> list[nn.Parameter]:
        """What the optimizer gets, in the order of the network's parameters."""
        return [p for p in self.trained.parameters() if p.requires_grad]

    def move_frozen(self) -> None:
        """Put the networks that are only used on their device, and into `dtype`."""
        for frozen in (self.vae, self.unet, self.text_encoder):
            if frozen is not self.trained:
                frozen.to(self.device)
                if frozen.dtype != self.dtype:
                    frozen.to(self.dtype)

    def set_encoders_aside(self) -> None:
        """Take VAE and text encoder off the device; validation puts them back for as long as it lasts."""
        for network in (self.vae, self.text_encoder):
            network.to("cpu")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def latents_of(self, batch: dict[str, Any]) -> Tensor:
        """z₀ of each picture of a batch, drawn from the VAE's posterior, or from that in the cache."""
        if "posterior" in batch:
            parameters = batch["posterior"]
            layout = self.layouts[len(parameters) > 1]
            posterior = DiagonalGaussianDistribution(parameters.contiguous(memory_format=layout))
        else:
            posterior = self.vae.encode(batch["pixel_values"].to(self.dtype)).latent_dist
        return posterior.sample() * self.vae.config.scaling_factor

    def text_of(self, batch: dict[str, Any]) -> Tensor:
        """The encoded captions of a batch, (N, L, D), from the cache if the batch was read from one."""
        if "text" in batch:
            return batch["text"]
        return self.text_encoder(batch["input_ids"], return_dict=False)[0]

    def load_pipeline(self, kind: Any, **parts: Any) -> Any:
        """A pipeline of a class of diffusers around the frozen networks and `parts`, the rest from its files."""
        return kind.from_pretrained(
            self.flags.pretrained_model_name_or_path,
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            revision=self.flags.revision,
            variant=self.flags.variant,
            safety_checker=None,
            **parts,
        )

    def check_prediction_type(self) -> None:
        """Refuse a pipeline that predicts something else than the scripts can train."""
        prediction_type = self.noise_scheduler.config.prediction_type
        if prediction_type not in ("epsilon", "v_prediction"):
            raise MldmError(f"the pipeline predicts {prediction_type!r}, expected epsilon or v_prediction.")

    def use_memory_savers(self, *attending: Any) -> None:
        """Gradient checkpointing of what is trained, and attention by xformers in all of `attending`, if asked for."""
        if self.flags.enable_xformers_memory_efficient_attention:
            if not is_xformers_available():
                raise MldmError("xformers is not installed; `pip install xformers`, or leave the flag out.")
            for network in attending:
                network.enable_xformers_memory_efficient_attention()
        if self.flags.gradient_checkpointing:
            trained: Any = self.trained
            trained.enable_gradient_checkpointing()


@contextlib.contextmanager
def loading(name: str) -> Iterator[None]:
    """Raises MldmError where the pipeline `name` is not there or is not one of Stable Diffusion 1.x."""
    try:
        yield
    except (OSError, ValueError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise MldmError(
            f"the pipeline {name} cannot be loaded: {first_line} Expected a Stable Diffusion 1.x pipeline in "
            "diffusers' format, a folder or a Hub name."
        ) from error


def annotation_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a batch that losses look at, by the names of `DiffusionStep`."""
    names = ("pixel_values", "person_mask", "face_boxes", "keypoints")
    return {name: batch.get(name) for name in names}
