"""The models and data sets that diffusers' own tests of its examples name, as small ones of random weights.

They lie in a folder under the hub's names (`hf-internal-testing/tiny-flux-pipe`), beside links to the checkout's own
folders. In that folder as the current one, the tests and the scripts find all of it without a network, as they are.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tiny_families import build
from tiny_people import SCENES
from tiny_z_image import WIDTH

from mldm_plugin.perceptual.frozen import build_seeded

NAME = re.compile(r"(?:hf-internal-testing|DavyMorgan|diffusers)/[\w.-]*\w")


def stand(folder: Path, checkout: Path, text: str) -> Path:
    """Make what `text`, a test file's, names, and is not there yet; links to the folders of `checkout`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("docs", "examples", "tests"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(checkout / name)
    for name in sorted(set(NAME.findall(text)) & MAKERS.keys()):
        if not (folder / name).exists():
            (folder / name).parent.mkdir(exist_ok=True)
            MAKERS[name](folder / name)
    return folder


def _data(folder: Path, columns: tuple[str, ...], rows: int = 6) -> None:
    """A data set of so many pictures; of the columns, those named by a text hold one."""
    from datasets import Dataset, Features, Image, Value

    kinds = {name: Value("string") if name in ("text", "edit_prompt") else Image() for name in columns}
    scenes = [SCENES[i % len(SCENES)] for i in range(rows)]
    made = {
        name: [scene.text if isinstance(kind, Value) else _picture(scene) for scene in scenes]
        for name, kind in kinds.items()
    }
    folder.mkdir()
    Dataset.from_dict(made, features=Features(kinds)).to_parquet(folder / "train.parquet")


def _picture(scene: Any) -> Any:
    from PIL import Image

    return Image.fromarray(np.asarray(scene.pixels()))


def _controlnet(kind: str, family: str, folder: Path) -> None:
    import diffusers

    pipeline = _part(folder, family)
    if kind == "SD3ControlNetModel":
        base = diffusers.SD3Transformer2DModel.from_pretrained(pipeline / "transformer")
        made = diffusers.SD3ControlNetModel.from_transformer(base, num_extra_conditioning_channels=0)
    else:
        made = diffusers.ControlNetModel.from_unet(diffusers.UNet2DConditionModel.from_pretrained(pipeline / "unet"))
    made.save_pretrained(folder)
    shutil.rmtree(pipeline)


def _copied(family: str, parts: tuple[str, ...], folder: Path) -> None:
    """Parts of a pipeline, in one folder."""
    pipeline = _part(folder, family)
    for part in parts:
        shutil.copytree(pipeline / part, folder, dirs_exist_ok=True)
    shutil.rmtree(pipeline)


def _part(folder: Path, family: str) -> Path:
    return build(family, folder.with_name(f"{folder.name}-from"))


def _flux2(family: str, folder: Path) -> None:
    """A pipeline of FLUX.2 whose transformer is told one layer of the text encoder, `--text_encoder_out_layers 1`."""
    from diffusers import Flux2Transformer2DModel

    build(family, folder)
    config = {**Flux2Transformer2DModel.load_config(folder / "transformer"), "joint_attention_dim": WIDTH}
    build_seeded(lambda: Flux2Transformer2DModel.from_config(config), 0).save_pretrained(folder / "transformer")


def _if(folder: Path) -> None:
    """DeepFloyd IF: a T5 encoder and a U-Net of pixels that tells a variance."""
    import diffusers
    from transformers import T5EncoderModel, T5Tokenizer

    flux = _part(folder, "flux")
    diffusers.IFPipeline(
        tokenizer=T5Tokenizer.from_pretrained(flux / "tokenizer_2"),
        text_encoder=T5EncoderModel.from_pretrained(flux / "text_encoder_2"),
        unet=build_seeded(_if_unet, 0).eval(),
        scheduler=diffusers.DDPMScheduler(variance_type="learned_range", beta_schedule="squaredcos_cap_v2"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    shutil.rmtree(flux)


def _if_unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=32,
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(WIDTH, 2 * WIDTH),
        layers_per_block=1,
        encoder_hid_dim=WIDTH,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        class_embed_type=None,
        act_fn="gelu",
        resnet_time_scale_shift="scale_shift",
    )


def _ddpm(folder: Path) -> None:
    """The configuration of a U-Net of pixels, without weights."""
    from diffusers import UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(sample_size=64, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, **blocks)
    unet.save_config(folder)


MAKERS: dict[str, Callable[[Path], Any]] = {
    **{
        f"hf-internal-testing/{name}": partial(build, family)
        for name, family in {
            "tiny-stable-diffusion-torch": "sd",
            "tiny-stable-diffusion-xl-pipe": "sdxl",
            "tiny-sdxl-pipe": "sdxl",
            "tiny-sd3-pipe": "sd3",
            "tiny-sd35-pipe": "sd3",
            "tiny-flux-pipe": "flux",
            "tiny-flux-kontext-pipe": "flux",
            "tiny-lumina2-pipe": "lumina2",
            "tiny-qwenimage-pipe": "qwen_image",
            "tiny-sana-pipe": "sana",
            "tiny-hidream-i1-pipe": "hidream",
        }.items()
    },
    "hf-internal-testing/tiny-flux2": partial(_flux2, "flux2"),
    "hf-internal-testing/tiny-flux2-klein": partial(_flux2, "flux2_klein"),
    "DavyMorgan/tiny-sd3-pipe": partial(build, "sd3"),
    "hf-internal-testing/tiny-playground-v2-5-pipe": partial(build, "sdxl", edm=True),
    "hf-internal-testing/tiny-if-pipe": _if,
    "hf-internal-testing/tiny-random-LlamaForCausalLM": partial(_copied, "hidream", ("text_encoder_4", "tokenizer_4")),
    "hf-internal-testing/tiny-adapter": partial(_copied, "sdxl", ("adapter",)),
    "hf-internal-testing/tiny-controlnet": partial(_controlnet, "ControlNetModel", "sd"),
    "hf-internal-testing/tiny-controlnet-sdxl": partial(_controlnet, "ControlNetModel", "sdxl"),
    "DavyMorgan/tiny-controlnet-sd3": partial(_controlnet, "SD3ControlNetModel", "sd3"),
    "DavyMorgan/tiny-controlnet-sd35": partial(_controlnet, "SD3ControlNetModel", "sd3"),
    "diffusers/ddpm_dummy": _ddpm,
    "hf-internal-testing/dummy_image_text_data": partial(_data, columns=("image", "text")),
    "hf-internal-testing/dummy_image_class_data": partial(_data, columns=("image",)),
    "hf-internal-testing/fill10": partial(_data, columns=("image", "text", "conditioning_image"), rows=10),
    "hf-internal-testing/instructpix2pix-10-samples": partial(
        _data, columns=("input_image", "edit_prompt", "edited_image"), rows=10
    ),
}
