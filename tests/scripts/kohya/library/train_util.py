"""A library in the manner of kohya's `library.train_util`, written for the tests: data sets that make whole batches."""

import random
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

IMAGE_TRANSFORMS = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
BucketBatchIndex = namedtuple("BucketBatchIndex", ["bucket_index", "bucket_batch_size", "batch_index"])


def load_image(image_path, alpha=False):
    with Image.open(image_path) as image:
        return np.array(image.convert("RGBA" if alpha else "RGB"), np.uint8)


def resize_image(image, width, height, resized_width, resized_height, resize_interpolation=None):
    resampling = Image.Resampling.BOX if resized_width <= width else Image.Resampling.LANCZOS
    return np.array(Image.fromarray(image).resize((resized_width, resized_height), resampling))


def trim_and_resize_if_required(random_crop, image, reso, resized_size, resize_interpolation=None):
    original_size = (image.shape[1], image.shape[0])
    if original_size != resized_size:
        image = resize_image(image, *original_size, *resized_size, resize_interpolation)
    spare = (resized_size[0] - reso[0], resized_size[1] - reso[1])
    x, y = (random.randint(0, s) if random_crop else s // 2 for s in spare)
    return image[y : y + reso[1], x : x + reso[0]], original_size, (0, 0, 0, 0)


def encode(vae, image):
    latents = vae.encode(image)
    return (latents if isinstance(latents, torch.Tensor) else latents.latent_dist.sample())[0]


class BaseDataset(torch.utils.data.Dataset):
    is_training_dataset = True

    def __init__(self, args, vae):
        self.subset = SimpleNamespace(flip_aug=args.flip_aug, random_crop=args.random_crop, alpha_mask=args.alpha_mask)
        self.image_data, self.caching_mode, self.image_transforms = {}, None, IMAGE_TRANSFORMS
        for folder, is_reg in ((args.train_data_dir, False), (args.reg_data_dir, True)):
            for path in sorted(Path(folder).glob("*.png")) if folder else ():
                self.image_data[str(path)] = self.read_info(path, is_reg, args.resolution)
        sizes = sorted({info.bucket_reso for info in self.image_data.values()})
        self.bucket_manager = SimpleNamespace(
            buckets=[[k for k, info in self.image_data.items() if info.bucket_reso == size] for size in sizes]
        )
        n = args.train_batch_size
        self.buckets_indices = [
            BucketBatchIndex(b, n, i)
            for b, bucket in enumerate(self.bucket_manager.buckets)
            for i in range(-(-len(bucket) // n))
        ]
        if args.cache_latents:
            self.cache_latents(vae)

    def read_info(self, path, is_reg, resolution):
        with Image.open(path) as image:
            width, height = image.size
        reso = (resolution, resolution * 3 // 2) if height > width else (resolution * 3 // 2, resolution)
        scale = max(reso[0] / width, reso[1] / height)
        return SimpleNamespace(
            absolute_path=str(path),
            is_reg=is_reg,
            bucket_reso=reso,
            resized_size=(max(reso[0], round(width * scale)), max(reso[1], round(height * scale))),
            resize_interpolation=None,
            latents=None,
        )

    def cache_latents(self, vae):
        infos = list(self.image_data.values())
        with ThreadPoolExecutor(2) as executor:
            images = list(executor.map(load_image, [info.absolute_path for info in infos]))
        for info, image in zip(infos, images, strict=True):
            image, info.original_size, _ = trim_and_resize_if_required(
                False, np.array(image), info.bucket_reso, info.resized_size
            )
            tensor = IMAGE_TRANSFORMS(image)[None]
            info.latents, info.latents_flipped = encode(vae, tensor), encode(vae, tensor.flip(3))

    def __len__(self):
        return len(self.buckets_indices)

    def __getitem__(self, index):
        place = self.buckets_indices[index]
        start = place.batch_index * place.bucket_batch_size
        images, latents, masks, sizes, flippeds, weights = [], [], [], [], [], []
        for key in self.bucket_manager.buckets[place.bucket_index][start : start + place.bucket_batch_size]:
            info = self.image_data[key]
            flipped = self.subset.flip_aug and random.random() < 0.5
            if info.latents is not None:
                latents.append(info.latents_flipped if flipped else info.latents)
                original_size = info.original_size
            else:
                img = load_image(info.absolute_path, self.subset.alpha_mask)
                img, original_size, _ = trim_and_resize_if_required(
                    self.subset.random_crop, img, info.bucket_reso, info.resized_size
                )
                if flipped:
                    img = img[:, ::-1, :].copy()
                if self.subset.alpha_mask:
                    masks.append(torch.FloatTensor(img[:, :, 3].astype(np.float32) / 255))
                images.append(self.image_transforms(img[:, :, :3]))
            sizes.append(torch.LongTensor((original_size[1], original_size[0])))
            flippeds.append(flipped)
            weights.append(0.5 if info.is_reg else 1.0)
        return {
            "images": torch.stack(images).to(memory_format=torch.contiguous_format).float() if images else None,
            "latents": torch.stack(latents) if latents else None,
            "alpha_masks": torch.stack(masks) if masks else None,
            "original_sizes_hw": torch.stack(sizes),
            "flippeds": flippeds,
            "loss_weights": torch.FloatTensor(weights),
        }


class DreamBoothDataset(BaseDataset):
    pass


class DatasetGroup(torch.utils.data.ConcatDataset):
    pass


class collator_class:  # noqa: N801 as in the library
    def __init__(self, dataset):
        self.dataset = dataset

    def __call__(self, examples):
        return examples[0]


def get_noise_noisy_latents_and_timesteps(args, noise_scheduler, latents):
    noise = torch.randn_like(latents)
    timesteps = torch.randint(0, args.max_timestep, (len(latents),))
    return noise, noise_scheduler.add_noise(latents, noise, timesteps), timesteps
