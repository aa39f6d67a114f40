"""A LoRA in the format that kohya's programs and their relatives read."""

from __future__ import annotations

import json
from pathlib import Path

from mldm_plugin.errors import MldmError

METADATA = "lora_adapter_metadata"  # under which diffusers keeps the adapter's settings in the file


def export_kohya(lora: Path, out: Path) -> None:
    """Write a LoRA of diffusers' format in kohya's.

    Args:
        lora: pytorch_lora_weights.safetensors of a U-Net, with or without text encoders.
        out: the file to write.

    Raises:
        MldmError: it is none, or of a transformer, which has other names there.
    """
    import torch
    from diffusers.utils import convert_state_dict_to_kohya
    from diffusers.utils.state_dict_utils import convert_all_state_dict_to_peft
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    try:
        with safe_open(lora, "pt") as opened:
            told = json.loads((opened.metadata() or {}).get(METADATA, "{}"))
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise MldmError(f"{lora} cannot be read as a LoRA: {error}") from error
    if not state or not all(name.startswith(("unet.", "text_encoder")) for name in state):
        raise MldmError(
            f"{lora} holds {next(iter(state), 'nothing')}: kohya's names are known for U-Nets (SD 1.x, SDXL); ComfyUI "
            "reads diffusers' LoRAs of Flux and SD3 as they are."
        )
    made = convert_state_dict_to_kohya(convert_all_state_dict_to_peft(state))
    for name in [name for name in made if name.endswith(".alpha")]:
        part = "unet" if name.startswith("lora_unet") else "text_encoder_2" if "te2" in name else "text_encoder"
        alpha = told.get(f"{part}.lora_alpha")  # without it alpha is the rank, as the conversion takes it
        made[name] = made[name].float() if alpha is None else torch.tensor(float(alpha))
    save_file({name: tensor.contiguous() for name, tensor in made.items()}, out, {"format": "pt"})
