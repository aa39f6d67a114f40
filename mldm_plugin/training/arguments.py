"""The trainer's flags: those of diffusers' ControlNet script, and ours. Nothing here needs torch.

Names, meaning and defaults of the first group are diffusers' (examples/controlnet/train_controlnet.py), so
that a command written for that script runs unchanged.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mldm_plugin.errors import MldmError, PresetError, nearest

DEFAULT_PANEL_STEPS = 500  # chosen: as rare as diffusers' checkpoints


@dataclass(frozen=True)
class Flag:
    """One flag.

    `kind` is what a value is made of; `bool` makes a switch. `many` takes several values, `repeated` may be
    given several times.
    """

    name: str
    kind: type
    default: Any
    help: str
    choices: tuple[str, ...] | None = None
    many: bool = False
    repeated: bool = False
    spellings: tuple[str, ...] = ()

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        """Declare the flag. It leaves nothing in the namespace unless the user gives it."""
        options: dict[str, Any] = {"dest": self.name, "default": argparse.SUPPRESS, "help": self._help_text()}
        if self.kind is bool:
            options["action"] = "store_true"
        else:
            options |= {"type": self.kind, "choices": self.choices}
            if self.many:
                options["nargs"] = "+"
            if self.repeated:
                options["action"] = "append"
        parser.add_argument(f"--{self.name}", *self.spellings, **options)

    def convert(self, value: Any) -> Any:
        """A value from a preset, as the command line would have made it; raises ValueError or TypeError."""
        if value is None and self.default is None:
            return None
        if self.many or self.repeated:
            return [self._convert_one(v) for v in (value if isinstance(value, list) else [value])]
        return self._convert_one(value)

    def _convert_one(self, value: Any) -> Any:
        if self.kind is bool:
            if not isinstance(value, bool):
                raise TypeError("expected true or false")
            return value
        if isinstance(value, (bool, list, dict)) or value is None:
            raise TypeError(f"expected {self.kind.__name__}")
        converted = self.kind(value)
        if self.kind is int and isinstance(value, float) and converted != value:
            raise ValueError("expected int")
        if self.choices is not None and converted not in self.choices:
            raise ValueError("expected one of " + ", ".join(self.choices))
        return converted

    def _help_text(self) -> str:
        shown = "" if self.default in (None, False) else f" (default: {self.default})"
        return (self.help + shown).replace("%", "%%")


DIFFUSERS_FLAGS: tuple[Flag, ...] = (
    Flag(
        "pretrained_model_name_or_path",
        str,
        None,
        "The Stable Diffusion pipeline: a folder or a Hub name. Required.",
    ),
    Flag(
        "controlnet_model_name_or_path",
        str,
        None,
        "A ControlNet to start from; without it, a copy of the U-Net's encoder.",
    ),
    Flag("revision", str, None, "Branch, tag or commit of the pipeline on the Hub."),
    Flag("variant", str, None, "Variant of the weight files, for example fp16."),
    Flag("tokenizer_name", str, None, "A tokenizer other than the pipeline's."),
    Flag("output_dir", str, "controlnet-model", "The run folder: weights, checkpoints, metrics."),
    Flag("cache_dir", str, None, "Where downloaded models and data sets are kept."),
    Flag("seed", int, None, "Seed of every random draw; without it no two runs are alike."),
    Flag(
        "resolution",
        int,
        512,
        "Side of the square pictures, a multiple of 8: the short side is resized to it, the middle cut out.",
    ),
    Flag("train_batch_size", int, 4, "Pictures per device and forward pass."),
    Flag("num_train_epochs", int, 1, "Passes over the data set."),
    Flag(
        "max_train_steps",
        int,
        None,
        "Stop after this many optimizer steps, whatever --num_train_epochs says.",
    ),
    Flag("checkpointing_steps", int, 500, "Save a checkpoint every so many optimizer steps."),
    Flag("checkpoints_total_limit", int, None, "Keep at most so many checkpoints; the oldest go first."),
    Flag(
        "resume_from_checkpoint",
        str,
        None,
        "Continue from this checkpoint of the run folder, or from 'latest'.",
    ),
    Flag("gradient_accumulation_steps", int, 1, "Forward passes per optimizer step."),
    Flag(
        "gradient_checkpointing",
        bool,
        False,
        "Recompute activations in the backward pass: less memory, slower.",
    ),
    Flag("learning_rate", float, 5e-6, "Learning rate after warm-up."),
    Flag("scale_lr", bool, False, "Multiply the learning rate by devices, accumulation steps and batch size."),
    Flag(
        "lr_scheduler",
        str,
        "constant",
        "Course of the learning rate: linear, cosine, cosine_with_restarts, polynomial, constant or "
        "constant_with_warmup.",
    ),
    Flag("lr_warmup_steps", int, 500, "Steps of warm-up, for the courses that have one."),
    Flag("lr_num_cycles", int, 1, "Restarts of cosine_with_restarts."),
    Flag("lr_power", float, 1.0, "Exponent of polynomial."),
    Flag("use_8bit_adam", bool, False, "AdamW with 8-bit state (needs bitsandbytes)."),
    Flag(
        "dataloader_num_workers",
        int,
        0,
        "Processes that load pictures; 0 loads them in the training process.",
    ),
    Flag("adam_beta1", float, 0.9, "AdamW's first moment decay."),
    Flag("adam_beta2", float, 0.999, "AdamW's second moment decay."),
    Flag("adam_weight_decay", float, 1e-2, "AdamW's weight decay."),
    Flag("adam_epsilon", float, 1e-08, "AdamW's epsilon."),
    Flag("max_grad_norm", float, 1.0, "Clip the gradient to this norm."),
    Flag("push_to_hub", bool, False, "Upload the run folder to the Hub at the end."),
    Flag("hub_token", str, None, "Token for the upload."),
    Flag("hub_model_id", str, None, "Repository for the upload; by default named like the run folder."),
    Flag("logging_dir", str, "logs", "Folder of the trackers' files inside the run folder."),
    Flag("allow_tf32", bool, False, "TF32 matrix products on Ampere GPUs and later: faster, less exact."),
    Flag("report_to", str, "tensorboard", "Tracker: tensorboard, wandb, comet_ml or all."),
    Flag(
        "mixed_precision",
        str,
        None,
        "Precision of the forward pass; by default what `accelerate config` says.",
        choices=("no", "fp16", "bf16"),
    ),
    Flag("enable_xformers_memory_efficient_attention", bool, False, "Attention by xformers."),
    Flag("set_grads_to_none", bool, False, "Free gradients between steps instead of zeroing them."),
    Flag("dataset_name", str, None, "Data set: a Hub name, or a folder that `datasets` can read."),
    Flag("dataset_config_name", str, None, "Configuration of the data set, where it has several."),
    Flag("train_data_dir", str, None, "Folder of pictures with a metadata.jsonl (docs/quickstart.md)."),
    Flag("image_column", str, "image", "Column of the pictures."),
    Flag("conditioning_image_column", str, "conditioning_image", "Column of the hints."),
    Flag("caption_column", str, "text", "Column of the captions; a list is drawn from at random."),
    Flag("max_train_samples", int, None, "Train on so many pictures, chosen at random."),
    Flag("proportion_empty_prompts", float, 0, "Share of captions replaced by an empty one, 0 to 1."),
    Flag("validation_prompt", str, None, "Prompts to sample every --validation_steps.", many=True),
    Flag("validation_image", str, None, "Hints for the validation prompts: as many, or one for all.", many=True),
    Flag("num_validation_images", int, 4, "Pictures per validation prompt."),
    Flag("validation_steps", int, 100, "Sample the validation prompts every so many optimizer steps."),
    Flag("tracker_project_name", str, "train_controlnet", "The project's name in the tracker."),
)

OUR_FLAGS: tuple[Flag, ...] = (
    Flag(
        "loss_plugin",
        str,
        None,
        "Losses to train with: mldm (the built-in ones), an installed plugin, a dotted module or a .py file. "
        "May be repeated.",
        repeated=True,
        spellings=("--loss-plugin",),
    ),
    Flag(
        "preset",
        str,
        None,
        "What to optimise: the name of a preset or a .yaml file. With --loss-plugin mldm alone it is mldm.",
    ),
    Flag(
        "set",
        str,
        None,
        "Override one value of the preset, for example losses.face.weight=0.3. May be repeated.",
        repeated=True,
    ),
    Flag(
        "conditioning",
        str,
        "image",
        "What the ControlNet sees: the hint, or none (Masked LDM, section 3: the conditioning embedding is "
        "zero and not trained; no hints are needed).",
        choices=("image", "none"),
    ),
    Flag(
        "mask_column",
        str,
        "mask",
        "Column of the person masks: 8-bit label pictures, 0 background, k the k-th person.",
    ),
    Flag(
        "face_boxes_column",
        str,
        "face_boxes",
        "Column of the face boxes: x0, y0, x1, y1 in pixels of the stored picture.",
    ),
    Flag(
        "panel_steps",
        int,
        None,
        "Write a panel picture every so many optimizer steps, 0 for none; with --loss-plugin "
        f"{DEFAULT_PANEL_STEPS} by default.",
    ),
)

FLAGS: dict[str, Flag] = {flag.name: flag for flag in (*DIFFUSERS_FLAGS, *OUR_FLAGS)}
NOT_IN_PRESETS = frozenset({"loss_plugin", "preset", "set"})
MINIMA = {
    "train_batch_size": 1,
    "num_train_epochs": 1,
    "max_train_steps": 1,
    "checkpointing_steps": 1,
    "checkpoints_total_limit": 1,
    "gradient_accumulation_steps": 1,
    "resolution": 8,
    "validation_steps": 1,
    "max_train_samples": 1,
    "dataloader_num_workers": 0,
    "panel_steps": 0,
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of train_controlnet.py. Flags that are not given leave no trace in its namespace."""
    parser = argparse.ArgumentParser(
        prog="train_controlnet.py",
        description="Train a ControlNet for Stable Diffusion 1.x, with losses on people and faces.",
    )
    ours = parser.add_argument_group("losses and data")
    theirs = parser.add_argument_group("as in diffusers' train_controlnet.py")
    for flag in OUR_FLAGS:
        flag.add_to(ours)
    for flag in DIFFUSERS_FLAGS:
        flag.add_to(theirs)
    return parser


def parse_given(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The flags that the user gave, and no others."""
    return vars(build_parser().parse_args(argv))


def resolve(given: Mapping[str, Any], training: Mapping[str, Any] | None = None) -> argparse.Namespace:
    """All flags: what the user gave, else what the preset's `training:` section says, else the default.

    Raises:
        PresetError: `training` names an unknown flag, or gives it a value it cannot have; all at once.
        MldmError: flags that do not belong together.
    """
    defaults = {flag.name: flag.default for flag in FLAGS.values()}
    arguments = argparse.Namespace(**(defaults | convert_training(training or {}) | dict(given)))
    if arguments.panel_steps is None and arguments.loss_plugin:
        arguments.panel_steps = DEFAULT_PANEL_STEPS
    check(arguments)
    return arguments


def convert_training(training: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's `training:` section as flag values."""
    known = [name for name in FLAGS if name not in NOT_IN_PRESETS]
    values, faults = {}, []
    for name, value in training.items():
        if name not in known:
            faults.append(f"training.{name}: unknown flag; {nearest(str(name), known)}")
            continue
        try:
            values[name] = FLAGS[name].convert(value)
        except (TypeError, ValueError) as error:
            faults.append(f"training.{name}: {error}, got {value!r}")
    if faults:
        raise PresetError("; ".join(faults))
    return values


def name_the_plugin(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what `--loss-plugin` and `--preset` leave to each other.

    A preset without a plugin is one of the built-in plugin; `--loss-plugin mldm` without a preset means the
    preset `mldm`; any other plugin needs a preset.
    """
    filled = dict(given)
    if "loss_plugin" not in given and "preset" in given:
        filled["loss_plugin"] = ["mldm"]
    if "loss_plugin" in filled and "preset" not in filled:
        if "mldm" not in filled["loss_plugin"]:
            raise PresetError(
                f"--loss-plugin {' '.join(filled['loss_plugin'])} comes without --preset: name the preset "
                "that gives its losses a weight, or copy one with `mldm presets copy`."
            )
        filled["preset"] = "mldm"
    if "set" in filled and "preset" not in filled:
        raise PresetError("--set changes a preset, but there is none: add --preset or --loss-plugin mldm.")
    return filled


def check(arguments: argparse.Namespace) -> None:
    """Refuse flags that cannot work together."""
    if arguments.pretrained_model_name_or_path is None:
        raise MldmError(
            "--pretrained_model_name_or_path is missing: give a Stable Diffusion pipeline (folder, Hub name)."
        )
    if arguments.dataset_name is None and arguments.train_data_dir is None:
        raise MldmError("no data set: give --train_data_dir (a folder) or --dataset_name (a Hub name).")
    if not 0 <= arguments.proportion_empty_prompts <= 1:
        raise MldmError(f"--proportion_empty_prompts is {arguments.proportion_empty_prompts}, expected 0 to 1.")
    if arguments.resolution % 8:
        raise MldmError(f"--resolution is {arguments.resolution}, expected a multiple of 8, the VAE's reduction.")
    for name, least in MINIMA.items():
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise MldmError(f"--{name} is {value}, expected at least {least}.")
    if arguments.report_to == "wandb" and arguments.hub_token is not None:
        raise MldmError("--hub_token would be sent to W&B with the other flags: log in with `hf auth login` instead.")
    _check_validation(arguments)


def _check_validation(arguments: argparse.Namespace) -> None:
    prompts, images = arguments.validation_prompt, arguments.validation_image
    if prompts is None and images is not None:
        raise MldmError("--validation_image needs --validation_prompt.")
    if prompts is None or arguments.conditioning == "none":
        return
    if images is None:
        raise MldmError("--validation_prompt needs --validation_image, the hint to sample with.")
    if len(prompts) != len(images) and 1 not in (len(prompts), len(images)):
        raise MldmError(
            f"{len(prompts)} --validation_prompt and {len(images)} --validation_image: "
            "give as many of both, or one of either."
        )
