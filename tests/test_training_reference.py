"""The plain trainers against loops written out here, bit for bit: the order of random draws, and the mathematics.

`test_training_parity.py` compares with diffusers' own script where one is at hand; this guards the same in every run.
"""

import random

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import load_dataset
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from run_trainer import forget_accelerate
from safetensors.torch import load_file
from torchvision import transforms
from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer

STEPS, BATCH, SEED = 5, 2, 3


def reference(pipeline, data, empty_prompts):
    """Plain ControlNet training as in diffusers' examples/controlnet/train_controlnet.py, told in a few lines."""
    accelerator = Accelerator(cpu=True)
    set_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(pipeline, subfolder="tokenizer", use_fast=False)
    schedule = DDPMScheduler.from_pretrained(pipeline, subfolder="scheduler")
    text_encoder = CLIPTextModel.from_pretrained(pipeline, subfolder="text_encoder").requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(pipeline, subfolder="vae").requires_grad_(False)
    unet = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet").requires_grad_(False)
    controlnet = ControlNetModel.from_unet(unet).train()
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=5e-6, weight_decay=1e-2)
    frame = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(64), transforms.ToTensor()])

    def prepare(rows):
        captions = []
        for text in rows["text"]:
            captions.append("" if random.random() < empty_prompts else text)
        tokens = tokenizer(captions, max_length=tokenizer.model_max_length, padding="max_length", truncation=True)
        return {
            "pixels": [frame(image.convert("RGB")) * 2 - 1 for image in rows["image"]],
            "hint": [frame(image.convert("RGB")) for image in rows["conditioning_image"]],
            "tokens": [torch.tensor(t) for t in tokens.input_ids],
        }

    rows = load_dataset(str(data), split="train").with_transform(prepare)
    loader = torch.utils.data.DataLoader(rows, shuffle=True, batch_size=BATCH)
    controlnet, optimizer, loader = accelerator.prepare(controlnet, optimizer, loader)
    done = 0
    while done < STEPS:
        for batch in loader:
            latents = vae.encode(batch["pixels"]).latent_dist.sample() * vae.config.scaling_factor
            noise = torch.randn_like(latents)
            t = torch.randint(0, 1000, (len(latents),))
            noisy = schedule.add_noise(latents, noise, t)
            text = text_encoder(batch["tokens"])[0]
            down, middle = controlnet(noisy, t, text, batch["hint"], return_dict=False)
            prediction = unet(
                noisy, t, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
            ).sample
            accelerator.backward(F.mse_loss(prediction, noise))
            accelerator.clip_grad_norm_(controlnet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done == STEPS:
                break
    return controlnet.state_dict()


def test_the_controlnet_trainer_is_the_loop_written_out(train, tiny_pipeline, tiny_data, tmp_path):
    flags = ("--max_train_steps", STEPS, "--proportion_empty_prompts", 0.5)
    assert train(tmp_path / "run", *flags) == 0
    forget_accelerate()
    expected = reference(tiny_pipeline, tiny_data, 0.5)
    trained = load_file(tmp_path / "run" / "diffusion_pytorch_model.safetensors")
    different = [name for name in expected if not torch.equal(expected[name], trained[name])]
    assert different == []


def lora_reference(pipeline, data, flip, gamma):
    """Plain LoRA training as in diffusers' examples/text_to_image/train_text_to_image_lora.py, told in a few lines."""
    accelerator = Accelerator(cpu=True)
    set_seed(SEED)
    tokenizer = CLIPTokenizer.from_pretrained(pipeline, subfolder="tokenizer")
    schedule = DDPMScheduler.from_pretrained(pipeline, subfolder="scheduler")
    text_encoder = CLIPTextModel.from_pretrained(pipeline, subfolder="text_encoder").requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(pipeline, subfolder="vae").requires_grad_(False)
    unet = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet").requires_grad_(False).train()
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets))
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=1e-4, weight_decay=1e-2)
    steps = [transforms.Resize(64, transforms.InterpolationMode.LANCZOS), transforms.RandomCrop(64)]
    steps += [transforms.RandomHorizontalFlip()] if flip else []
    frame = transforms.Compose([*steps, transforms.ToTensor()])

    def prepare(rows):
        pixels = [frame(image.convert("RGB")) * 2 - 1 for image in rows["image"]]
        captions = [random.choice(texts) for texts in rows["text"]]
        tokens = tokenizer(captions, max_length=tokenizer.model_max_length, padding="max_length", truncation=True)
        return {"pixels": pixels, "tokens": [torch.tensor(t) for t in tokens.input_ids]}

    rows = load_dataset(str(data), split="train").with_transform(prepare)
    loader = torch.utils.data.DataLoader(rows, shuffle=True, batch_size=BATCH)
    unet, optimizer, loader = accelerator.prepare(unet, optimizer, loader)
    done = 0
    while done < STEPS:
        for batch in loader:
            latents = vae.encode(batch["pixels"]).latent_dist.sample() * vae.config.scaling_factor
            noise = torch.randn_like(latents)
            t = torch.randint(0, 1000, (len(latents),))
            prediction = unet(schedule.add_noise(latents, noise, t), t, text_encoder(batch["tokens"])[0]).sample
            error = F.mse_loss(prediction, noise, reduction="none").mean(dim=[1, 2, 3])
            if gamma is not None:
                kept = schedule.alphas_cumprod[t]
                snr = (kept**0.5 / (1 - kept) ** 0.5) ** 2
                error = error * (torch.minimum(snr, torch.tensor(gamma)) / snr)
            accelerator.backward(error.mean() if gamma is not None else F.mse_loss(prediction, noise))
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done == STEPS:
                break
    return convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))


@pytest.mark.parametrize(("flip", "gamma"), [(False, None), (True, 5.0)])
def test_the_lora_trainer_is_the_loop_written_out(train_lora, tiny_pipeline, make_data, tmp_path, flip, gamma):
    data = make_data(tmp_path / "data", 7, captions=["a person", "somebody", "a face"], annotated=False)
    flags = ["--train_data_dir", data, "--max_train_steps", STEPS]
    flags += ["--random_flip"] if flip else []
    flags += ["--snr_gamma", gamma] if gamma is not None else []
    assert train_lora(tmp_path / "run", *flags) == 0
    forget_accelerate()
    expected = lora_reference(tiny_pipeline, data, flip, gamma)
    trained = load_file(tmp_path / "run" / "pytorch_lora_weights.safetensors")
    different = [name for name in expected if not torch.equal(expected[name], trained[f"unet.{name}"])]
    assert len(expected) == len(trained)
    assert different == []
