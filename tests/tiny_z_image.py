"""A tiny Z-Image pipeline of seeded weights; its text encoder has Qwen3's architecture and reads bytes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from mldm_plugin.perceptual.frozen import build_seeded

WIDTH = 32  # of the text encoders' hidden states
SMALL: dict[str, Any] = {"num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}  # of a transformer


def build_z_image(folder: Path, vae: nn.Module, seed: int) -> Path:
    """Write the pipeline into `folder` and return it."""
    import diffusers

    tokenizer = byte_tokenizer()
    diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=build_seeded(partial(_text_encoder, len(tokenizer)), seed).eval(),
        tokenizer=tokenizer,
        transformer=build_seeded(_transformer, seed).eval(),
    ).save_pretrained(folder)
    return folder


def byte_tokenizer() -> Any:
    """Qwen2's tokenizer without merges: a token a byte."""
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokens = (*special, *bytes_to_unicode().values())
    tokenizer = Qwen2Tokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"
    return tokenizer


def _transformer() -> nn.Module:
    from diffusers import ZImageTransformer2DModel

    return ZImageTransformer2DModel(
        in_channels=16,
        dim=WIDTH,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )


def _text_encoder(vocab_size: int) -> nn.Module:
    from transformers import Qwen3Config, Qwen3Model

    return Qwen3Model(
        Qwen3Config(
            vocab_size=vocab_size,
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
        )
    )
