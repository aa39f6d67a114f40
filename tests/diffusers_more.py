"""diffusers' further training scripts: which of them train with what there is, and how the others are refused.

As `diffusers_scripts`, with one variant each. docs/attach_runs.yaml records the outcomes.
"""

from __future__ import annotations

from dataclasses import replace

from diffusers_scripts import CONTROLNET, DREAMBOOTH, LORA, SHORT, Script, Variant

UNET = "unet/diffusion_pytorch_model.safetensors"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
ADAPTER = "diffusion_pytorch_model.safetensors"
EMBEDDING = "learned_embeds.safetensors"
COLUMNS = "--image_column image --caption_column text"
EDIT = "--original_image_column conditioning_image --edited_image_column image --edit_prompt_column text"
TOKEN = "--placeholder_token sks --initializer_token person"
HUBER = "research_projects/scheduled_huber_loss_training"
RATE = "--learning_rate 1e-3"
LONGER = "--max_sequence_length 32"
# Sana's script repeats the prompt for a batch and not the prompt's mask, HiDream's repeats it in each step again.
ONE = "--train_batch_size 1"
PAIRS = f"{COLUMNS} --cond_image_column conditioning_image"
KANDINSKY = " ".join(
    f"--pretrained_{part}_model_name_or_path PIPELINE{folder}"
    for part, folder in (("decoder", ""), ("prior", "/prior"))
)
LLAMA = " ".join(f"--pretrained_{part}_name_or_path PIPELINE/{part}" for part in ("text_encoder_4", "tokenizer_4"))


def _script(
    path: str, family: str, data: str, flags: str = "", weights: str = "", in_channels: int = 4, without: str = ""
) -> Script:
    """A script whose one variant is `plain`; `dreambooth` data come with the prompt."""
    prompt = DREAMBOOTH if data == "dreambooth" else []
    pipeline = {} if in_channels == 4 else {"in_channels": in_channels}
    return Script(
        path=path,
        family=family,
        data=data,
        flags=(*prompt, *flags.split()),
        weights=(weights,) if weights else (),
        variants={"plain": Variant(pipeline=pipeline)},
        without=tuple(without.split()),
    )


def _of_pairs(script: Script) -> Script:
    """The same on a data set of pairs, whose masks lie in a folder."""
    return replace(script, variants={"plain": Variant(tuple(PAIRS.split()), data="dataset")})


def _by_path(*scripts: Script) -> dict[str, Script]:
    return {script.path.removesuffix(".py"): script for script in scripts}


MORE = _by_path(
    _script("dreambooth/train_dreambooth.py", "sd", "dreambooth", RATE, UNET),
    _script("dreambooth/train_dreambooth_sd3.py", "sd3", "dreambooth", f"{RATE} {SHORT}", TRANSFORMER),
    _script("dreambooth/train_dreambooth_flux.py", "flux", "dreambooth", f"{RATE} {SHORT}", TRANSFORMER),
    _script("dreambooth/train_dreambooth_lora_flux_kontext.py", "flux", "dreambooth", f"{SHORT} --cache_latents", LORA),
    _script("dreambooth/train_dreambooth_lora_z_image.py", "z_image", "dreambooth", LONGER, LORA),
    _script("dreambooth/train_dreambooth_lora_flux2_klein.py", "flux2_klein", "dreambooth", LONGER, LORA),
    _script("dreambooth/train_dreambooth_lora_flux2.py", "flux2", "dreambooth", LONGER, LORA),
    _of_pairs(_script("dreambooth/train_dreambooth_lora_flux2_img2img.py", "flux2", "dreambooth", LONGER, LORA)),
    _of_pairs(
        _script("dreambooth/train_dreambooth_lora_flux2_klein_img2img.py", "flux2_klein", "dreambooth", LONGER, LORA)
    ),
    _script(
        "dreambooth/train_dreambooth_lora_hidream.py", "hidream", "dreambooth", f"{RATE} {SHORT} {ONE} {LLAMA}", LORA
    ),
    _script("dreambooth/train_dreambooth_lora_lumina2.py", "lumina2", "dreambooth", f"{RATE} {SHORT}", LORA),
    _script("advanced_diffusion_training/train_dreambooth_lora_sd15_advanced.py", "sd", "dreambooth", RATE, LORA),
    _script("advanced_diffusion_training/train_dreambooth_lora_sdxl_advanced.py", "sdxl", "dreambooth", RATE, LORA),
    _script("advanced_diffusion_training/train_dreambooth_lora_flux_advanced.py", "flux", "dreambooth", SHORT, LORA),
    _script("flux-control/train_control_flux.py", "flux", "dataset", CONTROLNET, ADAPTER),
    _script("flux-control/train_control_lora_flux.py", "flux", "dataset", CONTROLNET, LORA),
    _script(
        "t2i_adapter/train_t2i_adapter_sdxl.py",
        "sdxl",
        "imagefolder",
        f"{CONTROLNET} --adapter_model_name_or_path PIPELINE/adapter",
        ADAPTER,
    ),
    _script(
        "research_projects/dreambooth_inpaint/train_dreambooth_inpaint.py",
        "sd",
        "dreambooth",
        RATE,
        UNET,
        in_channels=9,
        without="--dataloader_num_workers",
    ),
    _script("instruct_pix2pix/train_instruct_pix2pix.py", "sd", "imagefolder", EDIT, UNET),
    _script("instruct_pix2pix/train_instruct_pix2pix_sdxl.py", "sdxl", "imagefolder", EDIT, UNET),
    _script(
        "research_projects/instructpix2pix_lora/train_instruct_pix2pix_lora.py",
        "sd",
        "imagefolder",
        EDIT,
        LORA,
        in_channels=8,
    ),
    _script("textual_inversion/textual_inversion.py", "sd", "concept", f"{TOKEN} --center_crop", EMBEDDING),
    _script("textual_inversion/textual_inversion_sdxl.py", "sdxl", "concept", TOKEN, EMBEDDING),
    _script(f"{HUBER}/dreambooth/train_dreambooth.py", "sd", "dreambooth", RATE, UNET),
    _script(f"{HUBER}/dreambooth/train_dreambooth_lora.py", "sd", "dreambooth", RATE, LORA),
    _script(f"{HUBER}/dreambooth/train_dreambooth_lora_sdxl.py", "sdxl", "dreambooth", RATE, LORA),
    _script(f"{HUBER}/text_to_image/train_text_to_image.py", "sd", "imagefolder", f"{COLUMNS} {RATE}", UNET),
    _script(f"{HUBER}/text_to_image/train_text_to_image_lora.py", "sd", "imagefolder", f"{COLUMNS} {RATE}", LORA),
    _script(f"{HUBER}/text_to_image/train_text_to_image_lora_sdxl.py", "sdxl", "imagefolder", COLUMNS, LORA),
)

# Whose tiny autoencoder is random, so that pictures need not resemble themselves.
RANDOM_VAE = _by_path(
    _script("dreambooth/train_dreambooth_lora_qwen_image.py", "qwen_image", "dreambooth", f"{RATE} {SHORT}", LORA),
    _script("dreambooth/train_dreambooth_lora_sana.py", "sana", "dreambooth", f"{RATE} {SHORT} {ONE}", LORA),
    _script("dreambooth/train_dreambooth_lora_krea2.py", "krea2", "dreambooth", f"{RATE} {SHORT}", LORA),
    _script(
        "kandinsky2_2/text_to_image/train_text_to_image_decoder.py",
        "kandinsky",
        "imagefolder",
        KANDINSKY,
        UNET,
        without="--pretrained_model_name_or_path",
    ),
)

# Whose loss is of a part of each picture, so that ours can only be added to it.
MASKED = _by_path(
    _script(
        "custom_diffusion/train_custom_diffusion.py",
        "sd",
        "dreambooth",
        "--class_prompt person --modifier_token <sks> --initializer_token person",
        "pytorch_custom_diffusion_weights.safetensors",
    ),
    _script(
        "research_projects/realfill/train_realfill.py",
        "sd",
        "realfill",
        "",
        UNET,
        in_channels=9,
        without="--dataloader_num_workers",
    ),
)

# Scripts that are refused in their first step, by what they are told then.
REFUSED = {
    "the losses need an autoencoder of diffusers that says how its latents are scaled": _by_path(
        _script("text_to_image/train_text_to_image_sdxl.py", "sdxl", "captions", COLUMNS),
        _script(f"{HUBER}/text_to_image/train_text_to_image_sdxl.py", "sdxl", "captions", COLUMNS),
        _script("research_projects/lpl/train_sdxl_lpl.py", "sdxl", "captions", COLUMNS),
    ),
    "the noisy latents are not α·latents + σ·noise": _by_path(
        _script(
            "consistency_distillation/train_lcm_distill_lora_sdxl.py",
            "sdxl",
            "imagefolder",
            f"{COLUMNS} --pretrained_teacher_model PIPELINE --pretrained_vae_model_name_or_path PIPELINE/vae",
            without="--pretrained_model_name_or_path",
        ),
    ),
}
