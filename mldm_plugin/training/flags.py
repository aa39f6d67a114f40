"""The flags of the trainers, typed: those of diffusers' scripts, and ours. Nothing here needs torch.

A flag is a field: its type, its default, and below it what it means. `command_line` makes the parser of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

DEFAULT_PANEL_STEPS = 500  # chosen: as rare as diffusers' checkpoints
DEFAULT_CURVE_STEPS = 100  # chosen: forty points of a short run of 4 000 steps, each of at least a hundred images


def _as_list(value: Any) -> Any:
    return value if value is None or isinstance(value, list) else [value]


# In a preset one value of several may stand without brackets. `Repeated` is one value for each time it is given.
Several = Annotated[list[str] | None, BeforeValidator(_as_list)]
Repeated = Annotated[list[str] | None, BeforeValidator(_as_list), "repeated"]


class DiffusersFlags(BaseModel):
    """What diffusers' scripts have in common."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True, use_attribute_docstrings=True)

    pretrained_model_name_or_path: str
    """The Stable Diffusion pipeline: a folder or a Hub name. Required."""
    revision: str | None = None
    """Branch, tag or commit of the pipeline on the Hub."""
    variant: str | None = None
    """Variant of the weight files, for example fp16."""
    output_dir: str
    """The run folder: weights, checkpoints, metrics."""
    cache_dir: str | None = None
    """Where downloaded models and data sets are kept."""
    seed: int | None = None
    """Seed of every random draw; without it no two runs are alike."""
    resolution: Annotated[int, Field(ge=8)] = 512
    """Side of the square pictures, a multiple of 8: the short side is resized to it, the rest cut off."""
    train_batch_size: PositiveInt
    """Pictures per device and forward pass."""
    num_train_epochs: PositiveInt
    """Passes over the data set."""
    max_train_steps: PositiveInt | None = None
    """Stop after this many optimizer steps, whatever --num_train_epochs says."""
    checkpointing_steps: PositiveInt = 500
    """Save a checkpoint every so many optimizer steps."""
    checkpoints_total_limit: PositiveInt | None = None
    """Keep at most so many checkpoints; the oldest go first."""
    resume_from_checkpoint: str | None = None
    """Continue from this checkpoint of the run folder, or from 'latest'."""
    gradient_accumulation_steps: PositiveInt = 1
    """Forward passes per optimizer step."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, slower."""
    learning_rate: float
    """Learning rate after warm-up."""
    scale_lr: bool = False
    """Multiply the learning rate by devices, accumulation steps and batch size."""
    lr_scheduler: str = "constant"
    """Course of the learning rate: linear, cosine, cosine_with_restarts, polynomial, constant or
    constant_with_warmup."""
    lr_warmup_steps: int = 500
    """Steps of warm-up, for the courses that have one."""
    use_8bit_adam: bool = False
    """AdamW with 8-bit state (needs bitsandbytes)."""
    dataloader_num_workers: NonNegativeInt = 0
    """Processes that load pictures; 0 loads them in the training process."""
    adam_beta1: float = 0.9
    """AdamW's first moment decay."""
    adam_beta2: float = 0.999
    """AdamW's second moment decay."""
    adam_weight_decay: float = 1e-2
    """AdamW's weight decay."""
    adam_epsilon: float = 1e-08
    """AdamW's epsilon."""
    max_grad_norm: float = 1.0
    """Clip the gradient to this norm."""
    push_to_hub: bool = False
    """Upload the run folder to the Hub at the end."""
    hub_token: str | None = None
    """Token for the upload."""
    hub_model_id: str | None = None
    """Repository for the upload; by default named like the run folder."""
    logging_dir: str = "logs"
    """Folder of the trackers' files inside the run folder."""
    allow_tf32: bool = False
    """TF32 matrix products on Ampere GPUs and later: faster, less exact."""
    report_to: str = "tensorboard"
    """Tracker: tensorboard, wandb, comet_ml or all."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Precision of the forward pass; by default what `accelerate config` says."""
    enable_xformers_memory_efficient_attention: bool = False
    """Attention by xformers."""
    dataset_name: str | None = None
    """Data set: a Hub name, or a folder that `datasets` can read."""
    dataset_config_name: str | None = None
    """Configuration of the data set, where it has several."""
    train_data_dir: str | None = None
    """Folder of pictures with a metadata.jsonl (docs/quickstart.md); one of splits is trained on by its train/."""
    image_column: str = "image"
    """Column of the pictures."""
    caption_column: str = "text"
    """Column of the captions; a list is drawn from at random."""
    max_train_samples: PositiveInt | None = None
    """Train on so many pictures, chosen at random."""
    num_validation_images: int = 4
    """Pictures per validation prompt."""

    def faults(self) -> Iterator[str]:
        """Which flags cannot work together."""
        if self.dataset_name is None and self.train_data_dir is None:
            yield "no data set: give --train_data_dir (a folder) or --dataset_name (a Hub name)."
        if self.report_to == "wandb" and self.hub_token is not None:
            yield "--hub_token would be sent to W&B with the other flags: log in with `hf auth login` instead."


class TrainerFlags(DiffusersFlags):
    """What every trainer of ours has beside them.

    `script` is the file name of the trainer, and of the script of diffusers that it stands in for, if it `stands_in`
    for one; `added` are the flags of its own that this script does not have.
    """

    script: ClassVar[str]
    stands_in: ClassVar[bool] = True
    description: ClassVar[str]
    added: ClassVar[tuple[str, ...]]

    loss_plugin: Repeated = None
    """Losses to train with: mldm (the built-in ones), an installed plugin, a dotted module or a .py file. May be
    repeated."""
    preset: str | None = None
    """What to optimise: the name of a preset or a .yaml file. With --loss-plugin mldm alone it is the one by
    task that has settings for this trainer."""
    set: Repeated = None
    """Override one value of the preset, for example losses.face.weight=0.3. May be repeated."""
    mask_column: str = "mask"
    """Column of the person masks: 8-bit label pictures, 0 background, k the k-th person."""
    face_boxes_column: str = "face_boxes"
    """Column of the face boxes: x0, y0, x1, y1 in pixels of the stored picture."""
    keypoints_column: str = "keypoints"
    """Column of the keypoints: for each person, in the order of the mask's labels, x, y, v of COCO's 17 points in
    pixels of the stored picture. Read where the data set has it, for losses of your own."""
    timestep_sampling: Literal["uniform", "stratified"] = "uniform"
    """How timesteps are drawn: each image's by itself, or stratified, one from each of as many equal parts of the
    schedule as there are images between two optimizer steps, so that every process has its share of those that are
    decoded. Either way each image's timestep is uniform."""
    color_jitter: list[float] | None = None
    """Change brightness, contrast, saturation and hue of every picture at random by at most these four, as
    torchvision's ColorJitter; for example 0.2 0.2 0.2 0.05. Hints keep their colours."""
    cache_latents: bool = False
    """Encode every picture (and its mirror image, with --random_flip) and every caption once, before the first step,
    and keep them on disk for later runs. Not with crops or colours that are drawn anew in each pass. Pictures are then
    loaded only for losses that compare with them (target: image)."""
    latents_cache_dir: str | None = None
    """Where --cache_latents keeps what it encodes; by default beside the folder of the data set, named like it with
    .latents at the end."""
    condition: Several = None
    """What pictures are made from, beside captions where there are any: attributes, semantic_mask, or conditions of a
    plugin. Their tokens are joined in this order, behind those of the caption, and their encoders are trained."""
    condition_option: Repeated = None
    """An option of a condition, for example semantic_mask.pooled=true. May be repeated."""
    condition_dropout: Annotated[float, Field(ge=0, lt=1)] = 0
    """Share of pictures that a condition is taken from, each by itself, so that the model learns to do without it and
    guidance works."""
    panel_steps: NonNegativeInt | None = None
    """Write a panel picture every so many optimizer steps, 0 for none; with --loss-plugin 500 by default."""
    curve_steps: NonNegativeInt | None = None
    """Log the mean of the plain loss and of each loss by range of t, over the images since, every so many optimizer
    steps, 0 for never; with --loss-plugin 100 by default."""

    validation_scheduler: Literal["dpm++", "ddim"] | None = None
    """Sampler of the validation pictures: dpm++ is DPM-Solver++ in 20 steps, ddim DDIM in as many as without the flag;
    by default that of diffusers' script, or of the pipeline."""

    evaluate_steps: PositiveInt | None = None
    """Before the first step, every so many optimizer steps and at the end, look through the network at photographs that
    it is not trained on, and say which step is the best (docs/evaluation_in_training.md)."""
    evaluate_data_dir: str | None = None
    """Folder with those photographs, laid out as --train_data_dir: its split validation or test, or all of it. By
    default the split validation or test of --train_data_dir."""
    evaluate_photographs: PositiveInt = 16
    """How many of them are looked at."""

    @classmethod
    def section(cls) -> str:
        """The trainer's name in a preset's `training:`."""
        return cls.script.removesuffix(".py")

    @classmethod
    def ours(cls) -> list[str]:
        """The flags that diffusers' script does not have."""
        return [*(name for name in TrainerFlags.model_fields if name not in DiffusersFlags.model_fields), *cls.added]

    @classmethod
    def theirs(cls) -> list[str]:
        """The flags of diffusers' script."""
        return [name for name in cls.model_fields if name not in cls.ours()]

    @classmethod
    def meaning(cls, name: str) -> str:
        """What a flag is for. A trainer that only changes a default leaves it to the class above."""
        fields = (c.model_fields[name] for c in cls.__mro__ if issubclass(c, BaseModel) and name in c.model_fields)
        return next((" ".join(field.description.split()) for field in fields if field.description), "")

    def faults(self) -> Iterator[str]:
        """Which flags cannot work together."""
        yield from super().faults()
        if (jitter := self.color_jitter) is not None and not (
            len(jitter) == 4 and all(limit >= 0 for limit in jitter) and jitter[3] <= 0.5
        ):
            yield (
                f"--color_jitter is {' '.join(f'{limit:g}' for limit in jitter)}, expected four numbers of at least "
                "0: brightness, contrast, saturation, and hue of at most 0.5."
            )
        if self.cache_latents and jitter is not None:
            yield "--cache_latents cannot hold colours that are drawn in each pass: leave out --color_jitter."
        if self.latents_cache_dir is not None and not self.cache_latents:
            yield "--latents_cache_dir is for --cache_latents; give both, or neither."
        if self.evaluate_data_dir is not None and self.evaluate_steps is None:
            yield "--evaluate_data_dir is for --evaluate_steps; give both, or neither."
        if self.curve_steps and not self.loss_plugin:
            yield "--curve_steps logs by range of t with --loss-plugin alone; give both, or neither."
        yield from self._condition_faults()

    def _condition_faults(self) -> Iterator[str]:
        if self.condition_dropout and not self.condition:
            yield "--condition_dropout drops nothing without --condition."
        if self.condition and len({*self.condition}) < len(self.condition):
            yield f"--condition {' '.join(self.condition)} names one twice."
        for option in self.condition_option or ():
            name, _, rest = option.partition(".")
            if "=" not in rest:
                yield f"--condition_option {option}: expected NAME.OPTION=VALUE, such as semantic_mask.pooled=true."
            elif name not in (self.condition or ()):
                yield f"--condition_option {option}: {name} is no --condition of this run."

    @model_validator(mode="after")
    def _complete(self) -> TrainerFlags:
        if faults := list(self.faults()):
            raise ValueError("; ".join(fault.removesuffix(".") for fault in faults))
        if self.loss_plugin:
            self.panel_steps = DEFAULT_PANEL_STEPS if self.panel_steps is None else self.panel_steps
            self.curve_steps = DEFAULT_CURVE_STEPS if self.curve_steps is None else self.curve_steps
        return self

    def _resolution_faults(self) -> Iterator[str]:
        if self.resolution % 8:
            yield f"--resolution is {self.resolution}, expected a multiple of 8, the VAE's reduction."


NO_RANDOM_CROPS = "--cache_latents cannot hold crops that are drawn at random in each pass"


class ControlNetFlags(TrainerFlags):
    """The flags of train_controlnet.py."""

    script: ClassVar[str] = "train_controlnet.py"
    description: ClassVar[str] = "Train a ControlNet for Stable Diffusion 1.x, with losses on people and faces."
    added: ClassVar[tuple[str, ...]] = ("conditioning", "random_crop", "random_flip")

    output_dir: str = "controlnet-model"
    train_batch_size: PositiveInt = 4
    num_train_epochs: PositiveInt = 1
    learning_rate: float = 5e-6
    controlnet_model_name_or_path: str | None = None
    """A ControlNet to start from; without it, a copy of the U-Net's encoder."""
    tokenizer_name: str | None = None
    """A tokenizer other than the pipeline's."""
    lr_num_cycles: int = 1
    """Restarts of cosine_with_restarts."""
    lr_power: float = 1.0
    """Exponent of polynomial."""
    set_grads_to_none: bool = False
    """Free gradients between steps instead of zeroing them."""
    conditioning_image_column: str = "conditioning_image"
    """Column of the hints."""
    proportion_empty_prompts: Annotated[float, Field(ge=0, le=1)] = 0
    """Share of captions replaced by an empty one, 0 to 1."""
    validation_prompt: Several = None
    """Prompts to sample every --validation_steps."""
    validation_image: Several = None
    """Hints for the validation prompts: as many, or one for all."""
    validation_steps: PositiveInt = 100
    """Sample the validation prompts every so many optimizer steps."""
    tracker_project_name: str = "train_controlnet"
    """The project's name in the tracker."""
    conditioning: Literal["image", "none"] = "image"
    """What the ControlNet sees: the hint, or none (Masked LDM, section 3: the conditioning embedding is zero and not
    trained; no hints are needed)."""
    random_crop: bool = False
    """Draw the crop at random, the same for picture, hint, mask, boxes and keypoints; without it it is the middle."""
    random_flip: bool = False
    """Mirror every other picture, drawn at random, with its hint, mask, boxes and keypoints. Not for hints whose
    colours tell left from right, as OpenPose's do."""

    def faults(self) -> Iterator[str]:
        """Which flags cannot work together."""
        yield from super().faults()
        yield from self._resolution_faults()
        if self.cache_latents and self.random_crop:
            yield f"{NO_RANDOM_CROPS}: leave out --random_crop."
        texts, images = self.validation_prompt, self.validation_image
        if texts is None and images is not None:
            yield "--validation_image needs --validation_prompt."
        if texts is None or self.conditioning == "none":
            return
        if images is None:
            yield "--validation_prompt needs --validation_image, the hint to sample with."
        elif len(texts) != len(images) and 1 not in (len(texts), len(images)):
            yield (
                f"{len(texts)} --validation_prompt and {len(images)} --validation_image: give as many of both, or one "
                "of either."
            )


class LoraFlags(TrainerFlags):
    """The flags of train_text_to_image_lora.py."""

    script: ClassVar[str] = "train_text_to_image_lora.py"
    description: ClassVar[str] = "Train a LoRA of the U-Net of Stable Diffusion 1.x, with losses on people and faces."
    added: ClassVar[tuple[str, ...]] = ("clip_gradients",)

    output_dir: str = "sd-model-finetuned-lora"
    train_batch_size: PositiveInt = 16
    num_train_epochs: PositiveInt = 100
    learning_rate: float = 1e-4
    rank: PositiveInt = 4
    """Rank of the LoRA matrices; their scale alpha is the same number."""
    center_crop: bool = False
    """Cut out the middle; without it the crop is drawn at random."""
    random_flip: bool = False
    """Mirror every other picture, drawn at random, with its hint, mask, boxes and keypoints. Not for hints whose
    colours tell left from right, as OpenPose's do."""
    image_interpolation_mode: Literal[
        "bicubic", "bilinear", "box", "hamming", "lanczos", "nearest", "nearest_exact"
    ] = "lanczos"
    """How pictures are resized. Masks are always resized by nearest neighbour."""
    prediction_type: str | None = None
    """What the U-Net predicts, epsilon or v_prediction; by default what the pipeline's scheduler says."""
    snr_gamma: Annotated[float, Field(gt=0)] | None = None
    """Min-SNR weighting of the plain loss with this gamma; 5.0 is its paper's."""
    noise_offset: float = 0
    """Add so much noise that is constant over each channel."""
    validation_prompt: str | None = None
    """A prompt to sample every --validation_epochs."""
    validation_epochs: PositiveInt = 1
    """Sample the validation prompt at the end of every so many passes."""
    local_rank: int = -1
    """Accepted and not needed: accelerate finds it."""
    clip_gradients: bool = False
    """Clip the gradient to --max_grad_norm. Without it nothing is clipped, as in diffusers' script, which clips an
    iterator that its optimizer has used up."""

    def faults(self) -> Iterator[str]:
        """Which flags cannot work together."""
        yield from super().faults()
        if self.cache_latents and not self.center_crop:
            yield f"{NO_RANDOM_CROPS}: add --center_crop."
        if self.loss_plugin or self.cache_latents or self.evaluate_steps:
            yield from self._resolution_faults()
        if self.prediction_type not in (None, "epsilon", "v_prediction"):
            yield f"--prediction_type is {self.prediction_type!r}, expected epsilon or v_prediction."
