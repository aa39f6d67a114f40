"""CLIP and DINOv2 in small, with seeded random weights, saved as transformers saves them."""

import torch
import transformers


def save_clip(folder, words=40):
    """A whole CLIP of 28 px with embeddings of 24 numbers, as the published file is one; its folder."""
    both = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={
            **both,
            "projection_dim": 24,
            "vocab_size": words,
            "max_position_embeddings": 8,
            "bos_token_id": words - 2,
            "eos_token_id": words - 1,
        },
        vision_config={**both, "image_size": 28, "patch_size": 14, "projection_dim": 24},
        projection_dim=24,
    )
    return _save(transformers.CLIPModel, config, folder)


def save_dinov2(folder):
    """A DINOv2 with 32 numbers, position embeddings of 518 px; its folder."""
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=518, patch_size=14, mlp_ratio=2
    )
    return _save(transformers.Dinov2Model, config, folder)


def _save(model, config, folder):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model(config).save_pretrained(folder)
    return str(folder)
