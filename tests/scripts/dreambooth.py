"""A training script in the manner of diffusers' DreamBooth ones for flow matching, written for the tests.

Pictures come from a folder, cropped and flipped once at the start; prior preservation, cached latents (in one shuffle,
read in another), preconditioned outputs and loss weights by flag.
"""

import argparse
import random
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from PIL import Image
from PIL.ImageOps import exif_transpose
from safetensors.torch import save_file
from torchvision import transforms
from torchvision.transforms.functional import crop


def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--instance_data_dir", required=True)
    parser.add_argument("--class_data_dir")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--vae", required=True)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--with_prior_preservation", action="store_true")
    parser.add_argument("--prior_loss_weight", type=float, default=0.7)
    parser.add_argument("--cache_latents", action="store_true")
    parser.add_argument("--precondition_outputs", action="store_true")
    parser.add_argument("--weighting_scheme", default="none")
    parser.add_argument("--max_train_steps", type=int, default=2)
    return parser.parse_args()


class DreamBoothDataset(torch.utils.data.Dataset):
    def __init__(self, instance_data_root, class_data_root, size):
        train_resize = transforms.Resize(size)
        train_crop = transforms.RandomCrop(size)
        train_flip = transforms.RandomHorizontalFlip(p=1.0)
        train_transforms = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
        self.pixel_values = []
        for path in sorted(Path(instance_data_root).iterdir()):
            image = exif_transpose(Image.open(path))
            if image.mode != "RGB":
                image = image.convert("RGB")
            image = train_resize(image)
            if random.random() < 0.5:
                image = train_flip(image)
            y1, x1, h, w = train_crop.get_params(image, (size, size))
            self.pixel_values.append(train_transforms(crop(image, y1, x1, h, w)))
        self.class_images_path = sorted(Path(class_data_root).iterdir()) if class_data_root else None
        self.image_transforms = transforms.Compose([train_resize, train_crop, train_transforms])

    def __len__(self):
        return len(self.pixel_values)

    def __getitem__(self, index):
        example = {"instance_images": self.pixel_values[index]}
        if self.class_images_path:
            path = self.class_images_path[index % len(self.class_images_path)]
            example["class_images"] = self.image_transforms(Image.open(path).convert("RGB"))
        return example


def collate_fn(examples, with_prior_preservation=False):
    pixel_values = [example["instance_images"] for example in examples]
    if with_prior_preservation:
        pixel_values += [example["class_images"] for example in examples]
    return {"pixel_values": torch.stack(pixel_values).float()}


def main(args):
    accelerator = Accelerator(cpu=True)
    set_seed(0)
    vae = AutoencoderKL.from_pretrained(args.vae).requires_grad_(False)
    transformer = torch.nn.Conv2d(5, 4, 3, padding=1)
    noise_scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    optimizer = torch.optim.SGD(transformer.parameters(), lr=0.1)
    train_dataset = DreamBoothDataset(args.instance_data_dir, args.class_data_dir, args.resolution)
    train_dataloader = torch.utils.data.DataLoader(
        train_dataset,
        batch_size=2,
        shuffle=True,
        collate_fn=lambda examples: collate_fn(examples, args.with_prior_preservation),
    )
    scaling = vae.config.scaling_factor
    if args.cache_latents:
        latents_cache = []
        for batch in train_dataloader:
            with torch.no_grad():
                latents_cache.append(vae.encode(batch["pixel_values"]).latent_dist)
        del vae
    transformer, optimizer, train_dataloader = accelerator.prepare(transformer, optimizer, train_dataloader)
    global_step = 0
    while global_step < args.max_train_steps:
        for step, batch in enumerate(train_dataloader):
            if args.cache_latents:
                model_input = latents_cache[step].sample()
            else:
                model_input = vae.encode(batch["pixel_values"]).latent_dist.sample()
            model_input = model_input * scaling
            noise = torch.randn_like(model_input)
            indices = torch.randint(0, 1000, (model_input.shape[0],))
            timesteps = noise_scheduler.timesteps[indices]
            sigmas = (timesteps / 1000)[:, None, None, None]
            noisy_model_input = (1.0 - sigmas) * model_input + sigmas * noise
            when = sigmas.expand(-1, 1, *model_input.shape[2:])
            model_pred = transformer(torch.cat([noisy_model_input, when], dim=1))
            target = noise - model_input
            if args.precondition_outputs:
                model_pred = model_pred * (-sigmas) + noisy_model_input
                target = model_input
            weighting = sigmas**-2.0 if args.weighting_scheme == "sigma_sqrt" else torch.ones_like(sigmas)
            if args.with_prior_preservation:
                model_pred, model_pred_prior = torch.chunk(model_pred, 2, dim=0)
                target, target_prior = torch.chunk(target, 2, dim=0)
                weighting, weighting_prior = torch.chunk(weighting, 2, dim=0)
                prior_loss = (weighting_prior * (model_pred_prior - target_prior) ** 2).flatten(1).mean(1).mean()
            loss = (weighting * (model_pred - target) ** 2).flatten(1).mean(1).mean()
            if args.with_prior_preservation:
                loss = loss + args.prior_loss_weight * prior_loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            global_step += 1
            if global_step >= args.max_train_steps:
                break
    state = dict(accelerator.unwrap_model(transformer).state_dict())
    state |= {"torch": torch.rand(4), "python": torch.tensor([random.random()])}
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    save_file(state, Path(args.output_dir) / "weights.safetensors")


if __name__ == "__main__":
    main(parse_args())
