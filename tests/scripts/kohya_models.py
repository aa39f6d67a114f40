"""Writes the models that sd-scripts' scripts start from; run in their environment, with their folder on PYTHONPATH.

python kohya_models.py {sd|sdxl|flux} FOLDER VAE_FOLDER. Weights are random and seeded. Shapes are those of
`library.*`: tiny where kohya_small/ is on PYTHONPATH too, the real ones otherwise.
"""

import dataclasses
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from mldm_plugin.people_mini.tokenizer import vocabulary, write_tokenizer

CLIP_L = "openai_clip-vit-large-patch14"


def clip(width, kind="CLIPTextModel", **config):
    import transformers

    last = len(vocabulary()[0]) - 1
    heads = {"num_attention_heads": 4, "num_hidden_layers": 12, "intermediate_size": 64, "projection_dim": width}
    tokens = {"vocab_size": last + 1, "bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}
    return getattr(transformers, kind)(transformers.CLIPTextConfig(hidden_size=width, **heads, **tokens, **config))


def build_sd(folder, vae):
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from library import original_unet

    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=original_unet.BLOCK_OUT_CHANNELS,
        cross_attention_dim=64 if original_unet.BLOCK_OUT_CHANNELS[0] < 320 else 768,
        attention_head_dim=8,
    )
    parts = {
        "vae": AutoencoderKL.from_pretrained(vae),
        "unet": unet,
        "text_encoder": clip(unet.config.cross_attention_dim),
    }
    rest = dict.fromkeys(("tokenizer", "safety_checker", "feature_extractor"))
    StableDiffusionPipeline(**parts, scheduler=DDPMScheduler(), requires_safety_checker=False, **rest).save_pretrained(
        folder
    )


def build_sdxl(folder, vae):
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from library import sdxl_original_unet

    c = sdxl_original_unet.MODEL_CHANNELS
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(c, 2 * c, 4 * c),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(c // 64, c // 32, c // 16),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    parts = {"text_encoder": clip(768), "text_encoder_2": clip(1280, "CLIPTextModelWithProjection")}
    parts |= {"unet": unet, "scheduler": DDPMScheduler(), "tokenizer": None, "tokenizer_2": None}
    StableDiffusionXLPipeline(vae=AutoencoderKL.from_pretrained(vae), **parts).save_pretrained(folder)


def build_flux(folder, vae):
    from library import flux_models, flux_utils
    from transformers import CLIPTextModel, T5EncoderModel

    spec = flux_models.configs["dev"]
    params = dataclasses.replace(spec.params, depth=1, depth_single_blocks=1)
    ae = flux_models.AutoEncoder(spec.ae_params)
    torch.nn.init.constant_(ae.encoder.conv_out.bias[spec.ae_params.z_channels :], -30.0)  # latents are their means
    folder.mkdir(parents=True)
    save_file(flux_models.Flux(params).state_dict(), folder / "flux.safetensors")
    save_file(ae.state_dict(), folder / "ae.safetensors")
    clip_config = {"max_position_embeddings": 77, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"}
    clip_config |= {"attention_dropout": 0.0, "initializer_factor": 1.0, "initializer_range": 0.02, "eos_token_id": 2}
    for name, network in (
        ("clip_l", CLIPTextModel._from_config(flux_utils.CLIPConfig(**clip_config))),
        ("t5xxl", T5EncoderModel._from_config(flux_utils.T5Config(feed_forward_proj="gated-gelu"))),
    ):
        weights = {k: v.clone().contiguous() for k, v in network.state_dict().items()}
        save_file(weights, folder / f"{name}.safetensors")


def write_t5_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((chr(c), -8.0) for c in range(33, 127))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special).save_pretrained(folder)


def main(family, folder, vae):
    torch.manual_seed(0)
    tokenizers = folder.parent / "tokenizers"
    for name in (CLIP_L, "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k"):
        write_tokenizer(tokenizers / name)
    if family == "flux":
        write_t5_tokenizer(tokenizers / "google_t5-v1_1-xxl")
    {"sd": build_sd, "sdxl": build_sdxl, "flux": build_flux}[family](folder, vae)


main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
