"""Tiny pipelines of Sana, Krea 2 and FLUX.2 [dev], and parts of HiDream, of seeded weights.

The autoencoders of the first two are random, so what they decode is noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_flows import DEEP, TEXT, VISION, film_vae, flux2_transformer
from tiny_z_image import SMALL, WIDTH, byte_tokenizer
from torch import nn

from mldm_plugin.people_mini.tokenizer import write_tokenizer
from mldm_plugin.perceptual.frozen import build_seeded


def build_sana(folder: Path, seed: int) -> Path:
    """Write the pipeline into `folder` and return it. Its autoencoder gives latents, and no distribution of them."""
    import diffusers
    from transformers import Gemma2Config, Gemma2Model

    tokenizer = byte_tokenizer()
    widths, plain = (8, 8, 8, 8), ((), (), (), ())
    vae = {
        **{f"{end}_block_out_channels": widths for end in ("encoder", "decoder")},
        **{f"{end}_layers_per_block": (1, 1, 1, 1) for end in ("encoder", "decoder")},
        **{f"{end}_qkv_multiscales": plain for end in ("encoder", "decoder")},
        **{"latent_channels": 8, "attention_head_dim": 8, "scaling_factor": 0.41407},
    }
    text_encoder = build_seeded(lambda: Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), **TEXT)), seed)
    diffusers.SanaPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=build_seeded(lambda: diffusers.AutoencoderDC(**vae), seed).eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        transformer=build_seeded(_sana_transformer, seed).eval(),
    ).save_pretrained(folder)
    return folder


def _sana_transformer() -> nn.Module:
    from diffusers import SanaTransformer2DModel

    return SanaTransformer2DModel(
        in_channels=8,
        out_channels=8,
        **SMALL,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        sample_size=8,
    )


def build_krea2(folder: Path, seed: int) -> Path:
    """Write the pipeline into `folder` and return it; its autoencoder is Qwen-Image's, of films."""
    import diffusers
    from transformers import Qwen3VLConfig, Qwen3VLModel

    tokenizer = byte_tokenizer()
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True, "rope_theta": 1e6}
    config = Qwen3VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "rope_scaling": rope, "rope_parameters": rope},
        vision_config={**VISION, "deepstack_visual_indexes": [0]},
    )
    diffusers.Krea2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=film_vae(seed),
        text_encoder=build_seeded(lambda: Qwen3VLModel(config), seed).eval(),
        tokenizer=tokenizer,
        transformer=build_seeded(_krea2_transformer, seed).eval(),
        text_encoder_select_layers=(1, 2),
    ).save_pretrained(folder)
    return folder


def _krea2_transformer() -> nn.Module:
    from diffusers import Krea2Transformer2DModel

    return Krea2Transformer2DModel(
        **SMALL,
        num_key_value_heads=2,
        intermediate_size=WIDTH,
        timestep_embed_dim=WIDTH,
        text_hidden_dim=WIDTH,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=WIDTH,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )


def build_flux2(folder: Path, vae: nn.Module, seed: int) -> Path:
    """Write the pipeline of FLUX.2 [dev] into `folder` and return it; its text encoder is Mistral 3's architecture."""
    import diffusers
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PixtralImageProcessor, PixtralProcessor

    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]})
    template = "{% for message in messages %}{{ message['content'][0]['text'] }}<|im_end|>{% endfor %}"
    config = Mistral3Config(
        text_config={**DEEP, "vocab_size": len(tokenizer), "model_type": "mistral"},
        vision_config={"model_type": "pixtral", "hidden_size": WIDTH, "intermediate_size": WIDTH, "head_dim": 16}
        | {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16},
    )
    diffusers.Flux2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=build_seeded(lambda: Mistral3ForConditionalGeneration(config), seed).eval(),
        tokenizer=PixtralProcessor(PixtralImageProcessor(), tokenizer, chat_template=template),
        transformer=build_seeded(lambda: flux2_transformer(vae.bn.num_features, guidance=True), seed).eval(),
    ).save_pretrained(folder)
    return folder


def hidream_parts(seed: int) -> dict[str, Any]:
    """What HiDream has and Stable Diffusion 3 has not: transformer, fourth text encoder and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    tokenizer.pad_token = "<|endoftext|>"
    config = LlamaConfig(vocab_size=len(tokenizer), **TEXT)
    return {
        "transformer": build_seeded(_hidream_transformer, seed).eval(),
        "text_encoder_4": build_seeded(lambda: LlamaForCausalLM(config), seed).eval(),
        "tokenizer_4": tokenizer,
    }


def _hidream_transformer() -> nn.Module:
    from diffusers import HiDreamImageTransformer2DModel

    return HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        num_single_layers=1,
        **SMALL,
        caption_channels=[WIDTH, WIDTH],
        text_emb_dim=2 * WIDTH,
        axes_dims_rope=(4, 6, 6),
        max_resolution=(16, 16),
        llama_layers=[0, 1],
        force_inference_output=True,
    )


def build_kandinsky(folder: Path, seed: int) -> Path:
    """Write Kandinsky 2.2's decoder into `folder`, with its prior in `folder`/prior, and return it."""
    import diffusers

    ends = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    movq = {"block_out_channels": (WIDTH,) * 4, "latent_channels": 4, "norm_num_groups": 8, "norm_type": "spatial"}
    diffusers.KandinskyV22Pipeline(
        unet=build_seeded(_kandinsky_unet, seed).eval(),
        scheduler=diffusers.DDPMScheduler(),
        movq=build_seeded(lambda: diffusers.VQModel(num_vq_embeddings=12, vq_embed_dim=4, **ends, **movq), seed).eval(),
    ).save_pretrained(folder)
    _build_prior(folder / "prior", seed)
    # By which the two are loaded as one.
    (folder / "README.md").write_text(f"---\nprior:\n- {folder.resolve() / 'prior'}\n---\n", encoding="utf-8")
    return folder


def _build_prior(folder: Path, seed: int) -> None:
    import diffusers
    from transformers import (
        CLIPImageProcessor,
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    size = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "projection_dim": WIDTH, "num_hidden_layers": 1}
    size |= {"num_attention_heads": 2}
    vision, text = CLIPVisionConfig(image_size=32, patch_size=16, **size), CLIPTextConfig(**size)
    prior = {"num_attention_heads": 2, "attention_head_dim": WIDTH // 2, "num_layers": 1, "embedding_dim": WIDTH}
    write_tokenizer(folder / "tokenizer")
    diffusers.KandinskyV22PriorPipeline(
        prior=build_seeded(lambda: diffusers.PriorTransformer(**prior), seed),
        image_encoder=build_seeded(lambda: CLIPVisionModelWithProjection(vision), seed),
        text_encoder=build_seeded(lambda: CLIPTextModelWithProjection(text), seed),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=diffusers.UnCLIPScheduler(),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    ).save_pretrained(folder)


def _kandinsky_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(WIDTH, 2 * WIDTH),
        layers_per_block=1,
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
    )
