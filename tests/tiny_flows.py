"""Tiny pipelines of Flux.2 [klein], Lumina 2 and Qwen-Image, of seeded weights; their text encoders read bytes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tiny_z_image import SMALL, WIDTH, byte_tokenizer
from torch import nn

from mldm_plugin.perceptual.frozen import build_seeded

TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
DEEP = {**TEXT, "num_hidden_layers": 31}  # FLUX.2 reads three layers of its text encoder, the last of them the 30th
VISION = {"depth": 1, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_heads": 2, "out_hidden_size": WIDTH}


def build_flux2_klein(folder: Path, vae: nn.Module, seed: int) -> Path:
    """Write the pipeline into `folder` and return it."""
    import diffusers
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = byte_tokenizer()
    text_encoder = build_seeded(lambda: Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **DEEP)), seed)
    diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        transformer=build_seeded(partial(flux2_transformer, vae.bn.num_features), seed).eval(),
    ).save_pretrained(folder)
    return folder


def flux2_transformer(channels: int, *, guidance: bool = False) -> nn.Module:
    """Of FLUX.2; [dev]'s is told the guidance that it was distilled for."""
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel(
        patch_size=1,
        in_channels=channels,
        num_single_layers=1,
        **SMALL,
        joint_attention_dim=3 * WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )


def build_lumina2(folder: Path, vae: nn.Module, seed: int) -> Path:
    """Write the pipeline into `folder` and return it."""
    import diffusers
    from transformers import Gemma2Config, Gemma2Model

    tokenizer = byte_tokenizer()
    text_encoder = build_seeded(lambda: Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), **TEXT)), seed)
    diffusers.Lumina2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=vae,
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        transformer=build_seeded(_lumina2_transformer, seed).eval(),
    ).save_pretrained(folder)
    return folder


def _lumina2_transformer() -> nn.Module:
    from diffusers import Lumina2Transformer2DModel

    return Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        hidden_size=WIDTH,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(8, 4, 4),
        axes_lens=(512, 64, 64),
        cap_feat_dim=WIDTH,
    )


def build_qwen_image(folder: Path, seed: int) -> Path:
    """Write the pipeline into `folder` and return it. Its autoencoder of films is random: what it decodes is noise."""
    import diffusers
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = byte_tokenizer()
    rope = {"rope_type": "default", "type": "default", "mrope_section": [2, 2, 4], "rope_theta": 1e6}
    text = {name: value for name, value in TEXT.items() if name != "head_dim"}
    config = Qwen2_5_VLConfig(
        text_config={**text, "vocab_size": len(tokenizer), "rope_scaling": rope, "rope_parameters": rope},
        vision_config={**VISION},
    )
    diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=film_vae(seed),
        text_encoder=build_seeded(lambda: Qwen2_5_VLForConditionalGeneration(config), seed).eval(),
        tokenizer=tokenizer,
        transformer=build_seeded(_qwen_transformer, seed).eval(),
    ).save_pretrained(folder)
    return folder


def film_vae(seed: int) -> nn.Module:
    """Qwen-Image's, of random weights."""
    from diffusers import AutoencoderKLQwenImage

    vae = build_seeded(lambda: AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1), seed)
    return vae.eval()


def _qwen_transformer() -> nn.Module:
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(joint_attention_dim=WIDTH, axes_dims_rope=(8, 4, 4), **SMALL)
