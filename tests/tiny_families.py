"""Tiny pipelines of thirteen model families, with the architecture and the files of the real ones.

Weights are random and seeded, except that the VAE is set by hand to keep the mean colour of each 8×8 block: its
latents have mean 0 and a standard deviation near 1 after the trainer's shift and scale, and `decode(encode(x))`
looks like `x`, so that a wrong scale, shift or packing shows in the picture. No network is needed.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tiny_flows import build_flux2_klein, build_lumina2, build_qwen_image
from tiny_newer import build_flux2, build_kandinsky, build_krea2, build_sana, hidream_parts
from tiny_z_image import SMALL, WIDTH, build_z_image
from torch import Tensor, nn

from mldm_plugin.people_mini.architecture import SCHEDULER, TINY, Size, build_text_encoder, build_tiny_pipeline
from mldm_plugin.people_mini.tokenizer import MODEL_MAX_LENGTH, TEXT, vocabulary, write_tokenizer
from mldm_plugin.perceptual.frozen import build_seeded
from mldm_plugin.records.folders import replaced_folder

FAMILIES = (
    "sd",
    "sdxl",
    "sd3",
    "flux",
    "z_image",
    "flux2_klein",
    "lumina2",
    "qwen_image",
    "sana",
    "krea2",
    "flux2",
    "hidream",
)

# vae/config.json of stable-diffusion-v1-5, stable-diffusion-xl-base-1.0, stable-diffusion-3-medium and FLUX.1-dev.
VAE_CONFIGS: dict[str, dict[str, Any]] = {
    "sd": {"latent_channels": 4, "scaling_factor": 0.18215},
    "sdxl": {"latent_channels": 4, "scaling_factor": 0.13025, "force_upcast": True},
    "sd3": {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609, "quant": False},
    "flux": {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159, "quant": False},
    "flux2": {"latent_channels": 8},  # a quarter of FLUX.2's; its scale is that of its batch norm
}


def build(
    family: str, folder: str | Path, *, seed: int = 0, edm: bool = False, in_channels: int = 4, **scheduler: Any
) -> Path:
    """Write a tiny pipeline of `family` into `folder` and return it.

    Args:
        family: one of `FAMILIES`.
        seed: of all weights; the host's random generators stay as they were.
        edm: give `sdxl` the EDM scheduler and the latent statistics of playground-v2.5.
        in_channels: of the U-Net of `sd`; nine for stable-diffusion-inpainting, eight for instruct-pix2pix.
        scheduler: changes values of the scheduler's configuration, e.g. `prediction_type="v_prediction"`.
    """
    folder = Path(folder)
    if family == "sd":
        return _build_sd(folder, seed, in_channels, scheduler)
    if family == "sdxl":
        return _build_sdxl(folder, seed, edm, scheduler)
    if family == "sd3":
        return _build_sd3(folder, seed, scheduler)
    if family == "flux":
        return _build_flux(folder, seed, scheduler)
    if family == "z_image":
        return build_z_image(folder, build_vae("flux", seed), seed)
    if family == "flux2_klein":
        return build_flux2_klein(folder, build_vae("flux2", seed), seed)
    if family == "qwen_image":
        return build_qwen_image(folder, seed)
    if family == "flux2":
        return build_flux2(folder, build_vae("flux2", seed), seed)
    if family == "kandinsky":
        return build_kandinsky(folder, seed)
    if family == "hidream":
        return _build_hidream(folder, seed)
    if family == "sana":
        return build_sana(folder, seed)
    if family == "krea2":
        return build_krea2(folder, seed)
    if family == "lumina2":
        return build_lumina2(folder, build_vae("flux", seed), seed)
    raise ValueError(f"family is one of {', '.join(FAMILIES)}, not {family!r}")


def build_vae(family: str, seed: int = 0, **config: Any) -> Any:
    """AutoencoderKL (factor 8) of `family` that keeps the mean colour of each block."""
    from diffusers import AutoencoderKL, AutoencoderKLFlux2

    kind = AutoencoderKLFlux2 if family == "flux2" else AutoencoderKL
    given = {**VAE_CONFIGS[family], **config}
    quant = given.pop("quant", True)
    vae = build_seeded(
        lambda: kind(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=1,
            sample_size=64,
            use_quant_conv=quant,
            use_post_quant_conv=quant,
            **given,
        ),
        seed,
    )
    with torch.no_grad():
        _keep_block_colours(vae, seed)
        if family == "flux2":
            vae.bn.running_mean.copy_(torch.linspace(-0.5, 0.5, vae.bn.num_features))
            vae.bn.running_var.copy_(torch.linspace(0.7, 1.3, vae.bn.num_features))
    return vae.eval()


# The VAE's eight channels: red, green, blue, the same three negated, and two constants. With one group, group norm
# then has mean 0 and a standard deviation that hardly depends on the picture; an offset keeps SiLU straight.
CONSTANT, OFFSET = 10.0, 8.0
NOISE = 0.02  # how much of the residual branches' random weights stays
BLOCK_STD = 0.5  # of block colours in [-1, 1], for latents of unit variance


def _keep_block_colours(vae: Any, seed: int) -> None:
    """latents = shift + `mixing` @ colours / scale, and back; the log variance is -10."""
    channels, scale = vae.config.latent_channels, vae.config.get("scaling_factor", 1.0)
    shift = vae.config.get("shift_factor") or 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixing = torch.linalg.qr(torch.randn(channels, 3)).Q * (channels / 3) ** 0.5 / BLOCK_STD
    to_latents = torch.cat([mixing / scale, torch.zeros(channels, 3)])
    offset = torch.cat([torch.full((channels,), shift), torch.full((channels,), -10.0)])
    _set_ends(vae.encoder, torch.eye(3), torch.zeros(3), to_latents, offset)
    to_colours = torch.linalg.pinv(mixing) * scale
    _set_ends(vae.decoder, to_colours, -shift * to_colours.sum(1), torch.eye(3), torch.zeros(3))
    for block in vae.encoder.down_blocks[:3]:
        _set(block.downsamplers[0].conv, torch.eye(8)[..., None, None] * _box_kernel())
    for block in vae.decoder.up_blocks[:3]:
        _set(block.upsamplers[0].conv, _centre(torch.eye(8)))
    if vae.quant_conv is not None:
        _set(vae.quant_conv, torch.eye(2 * channels)[..., None, None])
        _set(vae.post_quant_conv, torch.eye(channels)[..., None, None])


def _set_ends(module: Any, first: Tensor, first_bias: Tensor, last: Tensor, last_bias: Tensor) -> None:
    """Make an encoder or decoder `last` @ (`first` @ input + `first_bias`) + `last_bias`, as far as its blocks allow.

    Args:
        first: (3, channels in).
        last: (channels out, 3).
    """
    _quieten(module)
    weight = torch.cat([first, -first, torch.zeros(2, first.shape[1])])
    _set(module.conv_in, _centre(weight), torch.cat([first_bias, -first_bias, torch.tensor([CONSTANT, -CONSTANT])]))
    module.conv_norm_out.weight.fill_(CONSTANT / 2)  # the standard deviation of (±colour, ±CONSTANT)
    module.conv_norm_out.bias.fill_(OFFSET)
    weight = torch.cat([last, torch.zeros(last.shape[0], 5)], dim=1)
    _set(module.conv_out, _centre(weight), last_bias - OFFSET * last.sum(1))


def _quieten(module: nn.Module) -> None:
    """Leave `NOISE` of every residual branch, so that each block is almost the identity."""
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D

    for part in module.modules():
        last: Any = None
        if isinstance(part, ResnetBlock2D):
            last = part.conv2
        elif isinstance(part, Attention):
            last = next(part.to_out.children())
        if last is not None:
            last.weight *= NOISE
            last.bias *= NOISE


def _set(conv: Any, weight: Tensor, bias: Tensor | None = None) -> None:
    conv.weight.copy_(weight)
    conv.bias.copy_(torch.zeros_like(conv.bias) if bias is None else bias)


def _centre(weight: Tensor) -> Tensor:
    """(out, in) → a 3×3 kernel that looks at its centre alone."""
    return torch.nn.functional.pad(weight[..., None, None], (1, 1, 1, 1))


def _box_kernel() -> Tensor:
    """3×3 kernel of the mean of a pixel, its right, its lower and its lower right neighbour."""
    return torch.nn.functional.pad(torch.full((2, 2), 0.25), (0, 1, 0, 1))


def _build_sd(folder: Path, seed: int, in_channels: int, scheduler: dict[str, Any]) -> Path:
    size = Size(**{**TINY.__dict__, "unet_channels": (8, 16, 16, 16), "text_width": WIDTH, "groups": 4, "heads": 2})
    build_tiny_pipeline(folder, size=size, seed=seed)
    build_vae("sd", seed).save_pretrained(folder / "vae")
    if in_channels != 4:
        build_seeded(partial(_wider_unet, folder, in_channels), seed).save_pretrained(folder / "unet")
    path = folder / "scheduler" / "scheduler_config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **scheduler}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return folder


def _build_sdxl(folder: Path, seed: int, edm: bool, scheduler: dict[str, Any]) -> Path:
    import diffusers

    statistics = {"latents_mean": [-0.1, 0.1, 0.0, 0.2], "latents_std": [1.1, 0.9, 1.0, 1.2]} if edm else {}
    if edm:
        chosen = diffusers.EDMEulerScheduler(**scheduler)
    else:
        chosen = diffusers.EulerDiscreteScheduler(**_xl_scheduler(), **scheduler)
    networks = {
        "vae": build_vae("sdxl", seed, **statistics),
        "unet": build_seeded(_xl_unet, seed),
        "text_encoder": build_seeded(partial(build_text_encoder, Size(text_width=WIDTH, text_layers=2)), seed),
        "text_encoder_2": build_seeded(_projected_text_encoder, seed + 1),
    }
    _save(diffusers.StableDiffusionXLPipeline, folder, networks, chosen, ("tokenizer", "tokenizer_2"))
    build_seeded(_xl_adapter, seed).save_pretrained(folder / "adapter")
    return folder


def _build_sd3(folder: Path, seed: int, scheduler: dict[str, Any]) -> Path:
    import diffusers

    networks = {
        "vae": build_vae("sd3", seed),
        "transformer": build_seeded(_sd3_transformer, seed),
        "text_encoder": build_seeded(_projected_text_encoder, seed),
        "text_encoder_2": build_seeded(_projected_text_encoder, seed + 1),
        "text_encoder_3": build_seeded(partial(_t5_encoder, 2 * WIDTH), seed),
    }
    chosen = diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler})
    tokenizers = ("tokenizer", "tokenizer_2", "tokenizer_3")
    return _save(diffusers.StableDiffusion3Pipeline, folder, networks, chosen, tokenizers)


def _build_flux(folder: Path, seed: int, scheduler: dict[str, Any]) -> Path:
    import diffusers

    networks = {
        "vae": build_vae("flux", seed),
        "transformer": build_seeded(_flux_transformer, seed),
        "text_encoder": build_seeded(partial(build_text_encoder, Size(text_width=WIDTH)), seed),
        "text_encoder_2": build_seeded(partial(_t5_encoder, WIDTH), seed),
    }
    # FLUX.1-dev, scheduler/scheduler_config.json.
    shift = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    chosen = diffusers.FlowMatchEulerDiscreteScheduler(**{**shift, **scheduler})
    return _save(diffusers.FluxPipeline, folder, networks, chosen, ("tokenizer", "tokenizer_2"))


def _build_hidream(folder: Path, seed: int) -> Path:
    import diffusers

    parts = hidream_parts(seed)
    networks = {
        "vae": build_vae("flux", seed),
        "transformer": parts.pop("transformer"),
        "text_encoder": build_seeded(_projected_text_encoder, seed),
        "text_encoder_2": build_seeded(_projected_text_encoder, seed + 1),
        "text_encoder_3": build_seeded(partial(_t5_encoder, WIDTH), seed),
    }
    chosen = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    whole = partial(diffusers.HiDreamImagePipeline, **parts)
    return _save(whole, folder, networks, chosen, ("tokenizer", "tokenizer_2", "tokenizer_3"))


def _xl_scheduler() -> dict[str, Any]:
    """stable-diffusion-xl-base-1.0, scheduler/scheduler_config.json, as far as it differs from the defaults."""
    kept = ("beta_start", "beta_end", "beta_schedule", "steps_offset")
    return {key: SCHEDULER[key] for key in kept} | {"timestep_spacing": "leading"}


def _wider_unet(folder: Path, in_channels: int) -> Any:
    """The U-Net of `folder`, to which more is given than noisy latents."""
    from diffusers import UNet2DConditionModel

    config = UNet2DConditionModel.load_config(folder / "unet")
    return UNet2DConditionModel.from_config({**config, "in_channels": in_channels})


def _xl_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 2, 4),
        norm_num_groups=4,
        use_linear_projection=True,
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )


def _xl_adapter() -> Any:
    from diffusers import T2IAdapter

    channels = [8, 16, 16, 16]  # of the U-Net's blocks and of its middle
    return T2IAdapter(channels=channels, num_res_blocks=1, downscale_factor=16, adapter_type="full_adapter_xl")


def _sd3_transformer() -> nn.Module:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=13,  # SD3ControlNetModel.from_transformer copies the first twelve, of which none may be the last
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
    )


def _flux_transformer() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_single_layers=1,
        **SMALL,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )


def _projected_text_encoder() -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    vocab, _ = vocabulary()
    last = len(vocab) - 1
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(vocab),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MODEL_MAX_LENGTH,
            hidden_act="gelu",
            bos_token_id=last - 1,
            eos_token_id=last,
            pad_token_id=last,
        )
    )


def _t5_encoder(width: int) -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(_pieces()),
            d_model=width,
            d_kv=8,
            d_ff=width,
            num_layers=1,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )


def _pieces() -> list[tuple[str, float]]:
    """T5's special tokens, the words of the captions, and letters for the rest, with their log probabilities."""
    words = sorted(set(TEXT.split()))
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return special + [(f"▁{word}", -4.0) for word in words] + [(letter, -8.0) for letter in letters]


def _write_t5_tokenizer(folder: Path) -> None:
    from transformers import T5Tokenizer

    T5Tokenizer(vocab=_pieces(), extra_ids=0, model_max_length=512).save_pretrained(folder)


def _save(
    pipeline_class: Callable[..., Any],
    folder: Path,
    networks: dict[str, nn.Module],
    scheduler: Any,
    tokenizers: tuple[str, ...],
) -> Path:
    """Save the pipeline; the last of three tokenizers, and Flux's second, is T5's."""
    from transformers import CLIPTokenizer, T5Tokenizer

    t5 = {"text_encoder_3", "text_encoder_2"} & {
        n for n, net in networks.items() if type(net).__name__.startswith("T5")
    }
    with replaced_folder(folder, "model_index.json") as made:
        loaded: dict[str, Any] = {}
        for name in tokenizers:
            is_t5 = name.replace("tokenizer", "text_encoder") in t5
            (_write_t5_tokenizer if is_t5 else write_tokenizer)(made / name)
            loaded[name] = (T5Tokenizer if is_t5 else CLIPTokenizer).from_pretrained(made / name)
        absent = {"image_encoder", "feature_extractor"} if "unet" not in networks else set()
        extra = dict.fromkeys(absent & inspect.signature(pipeline_class).parameters.keys())
        pipeline = pipeline_class(
            **{n: net.eval() for n, net in networks.items()}, **loaded, **extra, scheduler=scheduler
        )
        pipeline.save_pretrained(made)
        for name in tokenizers:
            if name.replace("tokenizer", "text_encoder") not in t5:
                write_tokenizer(made / name)
    return folder
