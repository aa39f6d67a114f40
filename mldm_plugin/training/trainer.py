"""What a trainer consists of, and what each says is its own. `run` has the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import PIL.Image
import torch
from diffusers import VQModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.training_utils import EMAModel
from diffusers.utils.import_utils import is_xformers_available
from torch import Tensor, nn

from mldm_plugin.conditions.encoder import ConditionEncoder
from mldm_plugin.engine.step import DiffusionStep, Predict, on_device
from mldm_plugin.errors import MldmError
from mldm_plugin.training.flags import TrainerFlags


@dataclass(frozen=True)
class Prompt:
    """What to sample for eyes.

    Args:
        title: what it is called in a tracker.
        arguments: of the pipeline's call.
        hint: the picture that steers it, to be shown beside what is drawn; None where there is none.
    """

    title: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    hint: PIL.Image.Image | None = None


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
        flags, device, dtype: of the run; frozen networks are kept in `dtype`.
        vae, noise_scheduler: of diffusers, an AutoencoderKL or a VQModel, and a DDPMScheduler.
        frozen: the networks that are only used.
        ema: the moving average of what is trained; None without.
        trained: what accelerate prepares: a network of its own beside the frozen ones, or the U-Net, of which only a
            LoRA has gradients.
        project: its name in the tracker.
        clips_gradients, frees_gradients: whether the loop clips to --max_grad_norm, and frees gradients between steps
            instead of zeroing them.
        lr_options: of diffusers' `get_scheduler`, beside those that all trainers have.
        captions: the column of captions, which `tokenizer` and `text_encoder` read; None for a trainer without.
        hints: the column of hints, None for a trainer without.
        conditions: what else is read of a row, by name, for `batch["conditions"]`.
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

    flags: TrainerFlags
    device: torch.device
    dtype: torch.dtype
    vae: Any
    noise_scheduler: Any
    frozen: Sequence[nn.Module] = ()
    ema: EMAModel | None = None
    project: str
    trained: nn.Module
    clips_gradients = True
    frees_gradients = True
    lr_options: Mapping[str, Any] = {}
    captions: str | None = None
    tokenizer: Any = None
    text_encoder: Any = None
    hints: str | None = None
    conditions: Mapping[str, ConditionEncoder] = {}
    empty_prompts: float | None = None
    framing: Mapping[str, Any] = {}
    layouts = (torch.contiguous_format, torch.contiguous_format)

    def __init__(self, flags: TrainerFlags, device: torch.device, dtype: torch.dtype) -> None:
        self.flags, self.device, self.dtype = flags, device, dtype

    @abstractmethod
    def diffusion_step(
        self, model: nn.Module, batch: dict[str, Any], draw_timesteps: Callable[[Tensor], Tensor]
    ) -> DiffusionStep:
        """Noise a batch, predict with `model`, compare: a micro-batch up to its plain loss, in the order of draws of
        diffusers' script. `draw_timesteps` gives t of each of some latents (N, …), (N,)."""

    @abstractmethod
    def answer(
        self, model: nn.Module, batch: dict[str, Any], noisy_latents: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What `model`, or the U-Net that it steers, answers to z_t (N, C, h, w) at t (N,), with the captions and hints
        of a batch, and the tokens that it read, (N, L, D). A batch with `tokens` is read no further."""

    def predict(self, model: nn.Module, batch: dict[str, Any], noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
        """What `answer` answers."""
        return self.answer(model, batch, noisy_latents, timesteps)[0]

    def ask_again(self, batch: dict[str, Any], tokens: Tensor) -> Predict:
        """For a step's `predict`: the network in training, with the hints of a batch and the tokens that it has read.

        Not through what accelerate wraps around it for several processes: their gradients are joined as weights are
        done with, however often they were used, and a second call in a step, or one in the backward pass, would
        begin the joining anew.
        """
        known = {"tokens": tokens} | {name: batch[name] for name in ("conditioning_pixel_values",) if name in batch}

        def predict(noisy_latents: Tensor, timesteps: Tensor, rows: Sequence[int]) -> Tensor:
            of_rows = {name: value.index_select(0, on_device(rows, value.device)) for name, value in known.items()}
            return self.predict(self.trained, of_rows, noisy_latents, timesteps)

        return predict

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

    def publish(self, folder: Path) -> None:
        """Write what a finished run hands on; by default what is trained, as `save` does."""
        self.save(folder)

    def after_update(self) -> None:
        """Called when the optimizer has changed the weights."""
        if self.ema is not None:
            self.ema.step(self.trainable())

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
        for frozen in self.frozen:
            if frozen is not self.trained:
                frozen.to(self.device)
                if frozen.dtype != self.dtype:
                    frozen.to(self.dtype)

    def set_encoders_aside(self) -> None:
        """Take VAE and text encoder off the device; validation puts them back for as long as it lasts."""
        for network in (self.vae, self.text_encoder):
            if network is not None:
                network.to("cpu")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def encode(self, pixel_values: Tensor) -> Tensor:
        """What the VAE makes of pictures (N, 3, S, S): the parameters of its posterior (N, 2C, h, w), or the latents
        (N, C, h, w) themselves of a VAE that has none."""
        encoded = self.vae.encode(pixel_values.to(self.vae.device, self.vae.dtype))
        return encoded.latents if isinstance(self.vae, VQModel) else encoded.latent_dist.parameters

    def latents_of(self, batch: dict[str, Any]) -> Tensor:
        """z₀ of each picture of a batch, drawn from the VAE's posterior, or from that in the cache."""
        if "posterior" in batch:
            parameters = batch["posterior"]
            layout = self.layouts[len(parameters) > 1]
            parameters = parameters.contiguous(memory_format=layout)
        else:
            parameters = self.encode(batch["pixel_values"])
        drawn = parameters if isinstance(self.vae, VQModel) else DiagonalGaussianDistribution(parameters).sample()
        return drawn * self.vae.config.scaling_factor

    def most_likely_latents(self, pixel_values: Tensor) -> Tensor:
        """z₀ of pictures, without a draw."""
        encoded = self.encode(pixel_values)
        likely = encoded if isinstance(self.vae, VQModel) else DiagonalGaussianDistribution(encoded).mode()
        return likely * self.vae.config.scaling_factor

    def text_of(self, batch: dict[str, Any]) -> Tensor:
        """The encoded captions of a batch, (N, L, D), from the cache if the batch was read from one."""
        if "text" in batch:
            return batch["text"]
        return self.text_encoder(batch["input_ids"], return_dict=False)[0]

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


def annotation_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a batch that losses look at, by the names of `DiffusionStep`."""
    names = ("pixel_values", "person_mask", "face_boxes", "keypoints")
    return {name: batch.get(name) for name in names}
