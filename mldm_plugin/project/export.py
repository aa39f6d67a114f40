"""A LoRA in the format that kohya's programs and their relatives read, or in diffusers'."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from mldm_plugin.errors import MldmError

if TYPE_CHECKING:
    from torch import Tensor

METADATA = "lora_adapter_metadata"  # under which diffusers keeps the adapter's settings in the file
# kohya's names of layers of a U-Net, as diffusers calls its blocks or as SDXL's authors do, and of text encoders.
KOHYAS = re.compile(r"lora_(te[12]?_|unet_(down_|mid_|up_|input_|middle_|output_|time_|label_|conv_|out_|add_))")
PARTS = (".lora_down.weight", ".lora_up.weight", ".alpha")


def export_kohya(lora: Path, out: Path) -> None:
    """Write a LoRA in kohya's format.

    Args:
        lora: of a U-Net, with or without text encoders; one that is in kohya's format already is copied.
        out: the file to write.

    Raises:
        MldmError: it is none, or of a transformer, which has other names there.
    """
    import torch
    from diffusers.utils import convert_state_dict_to_kohya
    from diffusers.utils.state_dict_utils import convert_all_state_dict_to_peft
    from safetensors.torch import save_file

    state, told = _read(lora)
    if all(name.startswith("lora_") for name in state):
        shutil.copyfile(lora, out)
        return
    if not all(name.startswith(("unet.", "text_encoder")) for name in state):
        raise MldmError(
            f"{lora} holds {next(iter(state))}: kohya's names are known for U-Nets (SD 1.x, SDXL); ComfyUI "
            "reads diffusers' LoRAs of Flux and SD3 as they are."
        )
    made = convert_state_dict_to_kohya(convert_all_state_dict_to_peft(state))
    for name in [name for name in made if name.endswith(".alpha")]:
        part = "unet" if name.startswith("lora_unet") else "text_encoder_2" if "te2" in name else "text_encoder"
        alpha = told.get(f"{part}.lora_alpha")  # without it alpha is the rank, as the conversion takes it
        made[name] = made[name].float() if alpha is None else torch.tensor(float(alpha))
    save_file({name: tensor.contiguous() for name, tensor in made.items()}, out, {"format": "pt"})


def export_diffusers(lora: Path, base: str, out: Path) -> None:
    """Write a LoRA in diffusers' format.

    Args:
        lora: of kohya's format, of a U-Net, with or without text encoders; one of diffusers' format is copied.
        base: the pipeline that it goes with, for the layout of its blocks.
        out: the file to write.

    Raises:
        MldmError: it is none, or has parts that diffusers' format has not.
    """
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from safetensors.torch import save_file

    state, _ = _read(lora)
    if not any(name.startswith("lora_") for name in state):
        shutil.copyfile(lora, out)
        return
    if strange := next((name for name in state if not (KOHYAS.match(name) and name.endswith(PARTS))), None):
        raise MldmError(
            f"{lora} holds {strange}: expected a plain LoRA of a U-Net (SD 1.x, SDXL), with lora_down, lora_up and "
            "alpha; diffusers' load_lora_weights reads many others of kohya's as they are."
        )
    for name in [name for name in state if name.endswith(".lora_up.weight")]:
        layer = name.removesuffix(".lora_up.weight")
        alpha, rank = state.pop(f"{layer}.alpha", None), state[f"{layer}.lora_down.weight"].shape[0]
        if alpha is not None:  # diffusers' file has none for each layer, and takes the rank
            state[name] = (state[name].float() * (alpha.float() / rank)).to(state[name].dtype)
    layout = SimpleNamespace(**UNet2DConditionModel.load_config(base, subfolder="unet"))
    made, _ = StableDiffusionXLPipeline.lora_state_dict(state, unet_config=layout)
    save_file({name: tensor.contiguous() for name, tensor in made.items()}, out, {"format": "pt"})


def _read(lora: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The tensors of a file, and what diffusers' says of the adapter.

    Raises:
        MldmError: it is none, or holds nothing.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(lora, "pt") as opened:
            told = json.loads((opened.metadata() or {}).get(METADATA, "{}"))
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise MldmError(f"{lora} cannot be read as a LoRA: {error}") from error
    if not state:
        raise MldmError(f"{lora} cannot be read as a LoRA: it holds nothing.")
    return state, told
