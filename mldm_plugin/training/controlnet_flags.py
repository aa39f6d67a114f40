"""The flags of train_controlnet.py: those of diffusers' examples/controlnet/train_controlnet.py, and ours."""

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
    Flag(
        "controlnet_model_name_or_path",
        str,
        None,
        "A ControlNet to start from; without it, a copy of the U-Net's encoder.",
    ),
    Flag("tokenizer_name", str, None, "A tokenizer other than the pipeline's."),
    Flag("lr_num_cycles", int, 1, "Restarts of cosine_with_restarts."),
    Flag("lr_power", float, 1.0, "Exponent of polynomial."),
    Flag("set_grads_to_none", bool, False, "Free gradients between steps instead of zeroing them."),
    Flag("conditioning_image_column", str, "conditioning_image", "Column of the hints."),
    Flag("proportion_empty_prompts", float, 0, "Share of captions replaced by an empty one, 0 to 1."),
    Flag("validation_prompt", str, None, "Prompts to sample every --validation_steps.", many=True),
    Flag("validation_image", str, None, "Hints for the validation prompts: as many, or one for all.", many=True),
    Flag("validation_steps", int, 100, "Sample the validation prompts every so many optimizer steps."),
    Flag("tracker_project_name", str, "train_controlnet", "The project's name in the tracker."),
)

CONDITIONING = Flag(
    "conditioning",
    str,
    "image",
    "What the ControlNet sees: the hint, or none (Masked LDM, section 3: the conditioning embedding is "
    "zero and not trained; no hints are needed).",
    choices=("image", "none"),
)

RANDOM_CROP = Flag(
    "random_crop",
    bool,
    False,
    "Draw the crop at random, the same for picture, hint, mask, boxes and keypoints; without it it is the middle.",
)


def check(arguments: argparse.Namespace) -> None:
    """Refuse flags that cannot work together."""
    check_shared(arguments, {"validation_steps": 1})
    check_cacheable(arguments, random_crop=arguments.random_crop, way_out="leave out --random_crop")
    check_resolution(arguments)
    if not 0 <= arguments.proportion_empty_prompts <= 1:
        raise MldmError(f"--proportion_empty_prompts is {arguments.proportion_empty_prompts}, expected 0 to 1.")
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


FLAGS = FlagTable(
    script="train_controlnet.py",
    description="Train a ControlNet for Stable Diffusion 1.x, with losses on people and faces.",
    theirs=(
        *with_defaults(output_dir="controlnet-model", train_batch_size=4, num_train_epochs=1, learning_rate=5e-6),
        *OF_THIS_SCRIPT,
    ),
    ours=(*OUR_FLAGS, CONDITIONING, RANDOM_CROP, RANDOM_FLIP),
    check=check,
)
