"""The flags of train_text_to_image_lora.py: those of the script of that name in diffusers' examples, and ours."""

from __future__ import annotations

import argparse

from mldm_plugin.errors import MldmError
from mldm_plugin.training.flags import Flag, FlagTable
from mldm_plugin.training.shared_flags import (
    OUR_FLAGS,
    RANDOM_FLIP,
    check_cacheable,
    check_resolution,
    check_shared,
    with_defaults,
)

OF_THIS_SCRIPT: tuple[Flag, ...] = (
    Flag("rank", int, 4, "Rank of the LoRA matrices; their scale alpha is the same number."),
    Flag("center_crop", bool, False, "Cut out the middle; without it the crop is drawn at random."),
    RANDOM_FLIP,
    Flag(
        "image_interpolation_mode",
        str,
        "lanczos",
        "How pictures are resized. Masks are always resized by nearest neighbour.",
        choices=("bicubic", "bilinear", "box", "hamming", "lanczos", "nearest", "nearest_exact"),
    ),
    Flag(
        "prediction_type",
        str,
        None,
        "What the U-Net predicts, epsilon or v_prediction; by default what the pipeline's scheduler says.",
    ),
    Flag("snr_gamma", float, None, "Min-SNR weighting of the plain loss with this gamma; 5.0 is its paper's."),
    Flag("noise_offset", float, 0, "Add so much noise that is constant over each channel."),
    Flag("validation_prompt", str, None, "A prompt to sample every --validation_epochs."),
    Flag("validation_epochs", int, 1, "Sample the validation prompt at the end of every so many passes."),
    Flag("local_rank", int, -1, "Accepted and not needed: accelerate finds it."),
)

CLIP_GRADIENTS = Flag(
    "clip_gradients",
    bool,
    False,
    "Clip the gradient to --max_grad_norm. Without it nothing is clipped, as in diffusers' script, which clips an "
    "iterator that its optimizer has used up.",
)


def check(arguments: argparse.Namespace) -> None:
    """Refuse flags that cannot work together."""
    check_shared(arguments, {"validation_epochs": 1, "rank": 1})
    check_cacheable(arguments, random_crop=not arguments.center_crop, way_out="add --center_crop")
    if arguments.loss_plugin or arguments.cache_latents:
        check_resolution(arguments)
    if arguments.snr_gamma is not None and not arguments.snr_gamma > 0:
        raise MldmError(f"--snr_gamma is {arguments.snr_gamma}, expected more than 0, for example 5.0.")
    if arguments.prediction_type not in (None, "epsilon", "v_prediction"):
        raise MldmError(f"--prediction_type is {arguments.prediction_type!r}, expected epsilon or v_prediction.")


FLAGS = FlagTable(
    script="train_text_to_image_lora.py",
    description="Train a LoRA of the U-Net of Stable Diffusion 1.x, with losses on people and faces.",
    theirs=(
        *with_defaults(
            output_dir="sd-model-finetuned-lora", train_batch_size=16, num_train_epochs=100, learning_rate=1e-4
        ),
        *OF_THIS_SCRIPT,
    ),
    ours=(*OUR_FLAGS, CLIP_GRADIENTS),
    check=check,
    constants={
        "tokenizer_name": None,
        "lr_num_cycles": 1,
        "lr_power": 1.0,
        "tracker_project_name": "text2image-fine-tune",
    },
)
