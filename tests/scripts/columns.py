"""A training script in the manner of diffusers' text-to-image ones, written for the tests of mldm_plugin.attach.

Pictures and annotation are columns of an imagefolder; crop, flip, prediction type and SNR weights by flag. Its network
is one convolution on the latents and timesteps, its VAE a small AutoencoderKL.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL, DDPMScheduler
from diffusers.training_utils import compute_snr
from safetensors.torch import save_file
from torchvision import transforms


def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_data_dir", required=True)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--vae", required=True)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--random_flip", action="store_true")
    parser.add_argument("--center_crop", action="store_true")
    parser.add_argument("--prediction_type", default="epsilon")
    parser.add_argument("--snr_gamma", type=float)
    parser.add_argument("--max_train_steps", type=int, default=2)
    parser.add_argument("--dataloader_num_workers", type=int, default=0)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--push_to_hub", action="store_true")
    parser.add_argument("--tensor_crop", action="store_true")
    parser.add_argument("--tensor_roll", action="store_true")
    parser.add_argument("--array_roll", action="store_true")
    parser.add_argument("--through_bytes", action="store_true")
    parser.add_argument("--through_numpy", action="store_true")
    parser.add_argument("--fail_in_step", action="store_true")
    return parser.parse_args()


class Rows(torch.utils.data.Dataset):
    """The rows of an imagefolder's metadata.jsonl, transformed as `datasets` would hand them to the script."""

    def __init__(self, folder, transform):
        lines = (Path(folder) / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        self.folder, self.rows, self.transform = Path(folder), [json.loads(line) for line in lines], transform

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = dict(self.rows[index])
        picture = PIL.Image.open(self.folder / row.pop("file_name"))
        if "mask_file_name" in row:
            mask = row.pop("mask_file_name")
            row["mask"] = mask and PIL.Image.open(self.folder / mask)
        return {**row, "image": picture, "pixel_values": self.transform(picture.convert("RGB"))}


def crop_array(array):
    """The square in the middle, mirrored now and then."""
    height, width, _ = array.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = array[top : top + side, left : left + side]
    return np.ascontiguousarray(np.fliplr(square)) if random.random() < 0.5 else square


def main(args):
    accelerator = Accelerator(gradient_accumulation_steps=args.gradient_accumulation_steps, cpu=True)
    set_seed(0)
    vae = AutoencoderKL.from_pretrained(args.vae).requires_grad_(False)
    unet = torch.nn.Conv2d(5, 4, 3, padding=1)
    noise_scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    noise_scheduler.register_to_config(prediction_type=args.prediction_type)
    optimizer = torch.optim.SGD(unet.parameters(), lr=0.1)
    crop = transforms.CenterCrop(args.resolution) if args.center_crop else transforms.RandomCrop(args.resolution)
    steps = [transforms.Resize(args.resolution), crop]
    if args.random_flip:
        steps.append(transforms.RandomHorizontalFlip())
    if args.tensor_crop:
        steps = [transforms.ToTensor(), transforms.Resize(args.resolution, antialias=True), crop]
        steps += [lambda x: torch.flip(x, [-1]) if random.random() < 0.5 else x[:, :, :], lambda x: x * 2 - 1]
    elif args.tensor_roll:
        steps += [transforms.ToTensor(), lambda x: torch.roll(x, 9, -1), transforms.Normalize([0.5], [0.5])]
    elif args.array_roll:
        steps += [np.array, lambda x: np.roll(x, 9, 1), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
    elif args.through_bytes:
        steps.append(lambda x: PIL.Image.frombytes(x.mode, x.size, x.tobytes()))
        steps += [transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
    elif args.through_numpy:
        steps = [np.array, crop_array, PIL.Image.fromarray, transforms.Resize([args.resolution, args.resolution])]
        steps += [lambda x: np.asarray(x) / 127.5 - 1, lambda x: torch.from_numpy(x).permute(2, 0, 1)]
    else:
        steps += [transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
    train_dataset = Rows(args.train_data_dir, transforms.Compose(steps))

    def collate_fn(examples):
        return {"pixel_values": torch.stack([example["pixel_values"] for example in examples]).float()}

    train_dataloader = torch.utils.data.DataLoader(
        train_dataset,
        shuffle=True,
        collate_fn=collate_fn,
        batch_size=2,
        num_workers=args.dataloader_num_workers,
    )
    unet, optimizer, train_dataloader = accelerator.prepare(unet, optimizer, train_dataloader)
    global_step = 0
    while global_step < args.max_train_steps:
        for batch in train_dataloader:
            with accelerator.accumulate(unet):
                latents = vae.encode(batch["pixel_values"]).latent_dist.sample() * vae.config.scaling_factor
                noise = torch.randn_like(latents)
                timesteps = torch.randint(0, 1000, (latents.shape[0],))
                noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
                when = (timesteps / 1000)[:, None, None, None].expand(-1, 1, *latents.shape[2:])
                model_pred = unet(torch.cat([noisy_latents, when], dim=1))
                if noise_scheduler.config.prediction_type == "epsilon":
                    target = noise
                else:
                    target = noise_scheduler.get_velocity(latents, noise, timesteps)
                if args.fail_in_step:
                    raise KeyError("a fault of the script's own")
                if args.snr_gamma is None:
                    loss = F.mse_loss(model_pred.float(), target.float(), reduction="mean")
                else:
                    snr = compute_snr(noise_scheduler, timesteps)
                    mse_loss_weights = snr.clamp(max=args.snr_gamma) / snr
                    loss = F.mse_loss(model_pred, target, reduction="none").mean(dim=(1, 2, 3)) * mse_loss_weights
                    loss = loss.mean()
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                global_step += 1
            random.random()
            if global_step >= args.max_train_steps:
                break
    state = {f"unet.{k}": v for k, v in accelerator.unwrap_model(unet).state_dict().items()}
    # The state of the generators at the end: a plugin that draws from them changes it.
    state |= {"torch": torch.rand(4), "python": torch.tensor([random.random()])}
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    name = f"weights-{accelerator.process_index}" if accelerator.num_processes > 1 else "weights"
    save_file(state, Path(args.output_dir) / f"{name}.safetensors")
    accelerator.end_training()


if __name__ == "__main__":
    args = parse_args()
    main(args)
