"""The flags that the trainers have in common: those of diffusers' scripts, and ours."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mldm_plugin.errors import MldmError
from mldm_plugin.training.flags import DEFAULT_PANEL_STEPS, Flag

# A default of None here that is not None in a script is filled in by `with_defaults`.
DIFFUSERS_FLAGS: tuple[Flag, ...] = (
    Flag(
        "pretrained_model_name_or_path",
        str,
        None,
        "The Stable Diffusion pipeline: a folder or a Hub name. Required.",
    ),
    Flag("revision", str, None, "Branch, tag or commit of the pipeline on the Hub."),
    Flag("variant", str, None, "Variant of the weight files, for example fp16."),
    Flag("output_dir", str, None, "The run folder: weights, checkpoints, metrics."),
    Flag("cache_dir", str, None, "Where downloaded models and data sets are kept."),
    Flag("seed", int, None, "Seed of every random draw; without it no two runs are alike."),
    Flag(
        "resolution",
        int,
        512,
        "Side of the square pictures, a multiple of 8: the short side is resized to it, the rest cut off.",
    ),
    Flag("train_batch_size", int, None, "Pictures per device and forward pass."),
    Flag("num_train_epochs", int, None, "Passes over the data set."),
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
    Flag("learning_rate", float, None, "Learning rate after warm-up."),
    Flag("scale_lr", bool, False, "Multiply the learning rate by devices, accumulation steps and batch size."),
    Flag(
        "lr_scheduler",
        str,
        "constant",
        "Course of the learning rate: linear, cosine, cosine_with_restarts, polynomial, constant or "
        "constant_with_warmup.",
    ),
    Flag("lr_warmup_steps", int, 500, "Steps of warm-up, for the courses that have one."),
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
    Flag("dataset_name", str, None, "Data set: a Hub name, or a folder that `datasets` can read."),
    Flag("dataset_config_name", str, None, "Configuration of the data set, where it has several."),
    Flag("train_data_dir", str, None, "Folder of pictures with a metadata.jsonl (docs/quickstart.md)."),
    Flag("image_column", str, "image", "Column of the pictures."),
    Flag("caption_column", str, "text", "Column of the captions; a list is drawn from at random."),
    Flag("max_train_samples", int, None, "Train on so many pictures, chosen at random."),
    Flag("num_validation_images", int, 4, "Pictures per validation prompt."),
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
        "pixel_memory_gb",
        float,
        None,
        "What decoding with gradient may take at most, in GB: as many pictures at a time as fit, and if one does not, "
        "the decoder's activations are computed twice. The same as --set pixel_memory_gb=…; without it one large "
        "picture is decoded at a time, and nothing twice.",
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
        "keypoints_column",
        str,
        "keypoints",
        "Column of the keypoints: for each person, in the order of the mask's labels, x, y, v of COCO's 17 points in "
        "pixels of the stored picture. Read where the data set has it, for losses of your own.",
    ),
    Flag(
        "timestep_sampling",
        str,
        "uniform",
        "How timesteps are drawn: each image's by itself, or stratified, one from each of as many equal parts of the "
        "schedule as there are images between two optimizer steps, so that every process has its share of those that "
        "are decoded. Either way each image's timestep is uniform.",
        choices=("uniform", "stratified"),
    ),
    Flag(
        "color_jitter",
        float,
        None,
        "Change brightness, contrast, saturation and hue of every picture at random by at most these four, as "
        "torchvision's ColorJitter; for example 0.2 0.2 0.2 0.05. Hints keep their colours.",
        many=True,
    ),
    Flag(
        "cache_latents",
        bool,
        False,
        "Encode every picture (and its mirror image, with --random_flip) and every caption once, before the first "
        "step, and keep them on disk for later runs. Not with crops or colours that are drawn anew in each pass. "
        "Pictures are then loaded only for losses that compare with them (target: image).",
    ),
    Flag(
        "latents_cache_dir",
        str,
        None,
        "Where --cache_latents keeps what it encodes; by default beside the folder of the data set, named like it "
        "with .latents at the end.",
    ),
    Flag(
        "panel_steps",
        int,
        None,
        "Write a panel picture every so many optimizer steps, 0 for none; with --loss-plugin "
        f"{DEFAULT_PANEL_STEPS} by default.",
    ),
)

RANDOM_FLIP = Flag(
    "random_flip",
    bool,
    False,
    "Mirror every other picture, drawn at random, with its hint, mask, boxes and keypoints. Not for hints whose "
    "colours tell left from right, as OpenPose's do.",
)

MINIMA = {
    "train_batch_size": 1,
    "num_train_epochs": 1,
    "max_train_steps": 1,
    "checkpointing_steps": 1,
    "checkpoints_total_limit": 1,
    "gradient_accumulation_steps": 1,
    "resolution": 8,
    "max_train_samples": 1,
    "dataloader_num_workers": 0,
    "panel_steps": 0,
}


def with_defaults(**defaults: Any) -> tuple[Flag, ...]:
    """`DIFFUSERS_FLAGS` with the defaults of one script."""
    return tuple(replace(flag, default=defaults.get(flag.name, flag.default)) for flag in DIFFUSERS_FLAGS)


def check_shared(arguments: argparse.Namespace, minima: Mapping[str, int]) -> None:
    """Refuse flags that cannot work together in any trainer; `minima` are those of a trainer's own flags."""
    if arguments.pretrained_model_name_or_path is None:
        raise MldmError(
            "--pretrained_model_name_or_path is missing: give a Stable Diffusion pipeline (folder, Hub name)."
        )
    if arguments.dataset_name is None and arguments.train_data_dir is None:
        raise MldmError("no data set: give --train_data_dir (a folder) or --dataset_name (a Hub name).")
    for name, least in {**MINIMA, **minima}.items():
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise MldmError(f"--{name} is {value}, expected at least {least}.")
    _check_color_jitter(arguments.color_jitter)
    if arguments.report_to == "wandb" and arguments.hub_token is not None:
        raise MldmError("--hub_token would be sent to W&B with the other flags: log in with `hf auth login` instead.")


def check_resolution(arguments: argparse.Namespace) -> None:
    """Refuse a resolution that the VAE does not give back."""
    if arguments.resolution % 8:
        raise MldmError(f"--resolution is {arguments.resolution}, expected a multiple of 8, the VAE's reduction.")


def check_cacheable(arguments: argparse.Namespace, *, random_crop: bool, way_out: str) -> None:
    """Refuse to cache what is drawn anew in each pass."""
    if not arguments.cache_latents:
        if arguments.latents_cache_dir is not None:
            raise MldmError("--latents_cache_dir is for --cache_latents; give both, or neither.")
        return
    if random_crop:
        raise MldmError(f"--cache_latents cannot hold crops that are drawn at random in each pass: {way_out}.")
    if arguments.color_jitter is not None:
        raise MldmError("--cache_latents cannot hold colours that are drawn in each pass: leave out --color_jitter.")


def _check_color_jitter(given: Sequence[float] | None) -> None:
    if given is None:
        return
    if len(given) != 4 or not all(limit >= 0 for limit in given) or not given[3] <= 0.5:
        raise MldmError(
            f"--color_jitter is {' '.join(f'{limit:g}' for limit in given)}, expected four numbers of at least 0: "
            "brightness, contrast, saturation, and hue of at most 0.5."
        )
