"""A trainer class in the manner of kohya's, written for the tests: a step is spread over three methods."""

import random

import torch
from accelerate import Accelerator
from library import train_util
from library.models import AutoencoderKL, DDPMScheduler, Network, difference, parse_args, save


class NetworkTrainer:
    def __init__(self):
        self.vae_scale_factor = 0.25

    def load_vae(self):
        return AutoencoderKL()

    def get_noise_scheduler(self):
        return DDPMScheduler()

    def encode_images_to_latents(self, vae, images):
        return vae.encode(images).latent_dist.sample()

    def shift_scale_latents(self, latents):
        return latents * self.vae_scale_factor

    def get_noise_pred_and_target(self, args, noise_scheduler, latents, network, is_train=True):
        noise, noisy_latents, timesteps = train_util.get_noise_noisy_latents_and_timesteps(
            args, noise_scheduler, latents
        )
        noise_pred = network(noisy_latents.requires_grad_(True), timesteps)
        target = noise_scheduler.get_velocity(latents, noise, timesteps) if args.v_parameterization else noise
        return noise_pred, target, timesteps, None

    def process_batch(self, batch, vae, network, noise_scheduler, args, is_train=True):
        with torch.no_grad():
            if batch["latents"] is not None:
                latents = batch["latents"]
            else:
                latents = self.encode_images_to_latents(vae, batch["images"])
            latents = self.shift_scale_latents(latents)
        noise_pred, target, timesteps, weighting = self.get_noise_pred_and_target(
            args, noise_scheduler, latents, network, is_train=is_train
        )
        loss = difference(noise_pred.float(), target.float(), args.loss_type)
        if weighting is not None:
            loss = loss * weighting
        if args.masked_loss:
            loss = loss * torch.nn.functional.interpolate(batch["alpha_masks"][:, None], loss.shape[2:], mode="area")
        loss = loss.mean(dim=list(range(1, loss.ndim))) * batch["loss_weights"]
        if args.min_snr_gamma:
            abar = noise_scheduler.alphas_cumprod[timesteps]
            loss = loss * (args.min_snr_gamma * (1 - abar) / abar).clamp_max(1)
        return loss.mean()

    def train(self, args):
        random.seed(0)
        torch.manual_seed(0)
        accelerator = Accelerator(cpu=True)
        vae, network, noise_scheduler = self.load_vae(), Network(), self.get_noise_scheduler()
        group = train_util.DatasetGroup([train_util.DreamBoothDataset(args, vae)])
        collator = train_util.collator_class(group if args.workers == 0 else None)
        train_dataloader = torch.utils.data.DataLoader(
            group,
            batch_size=1,
            shuffle=True,
            collate_fn=collator,
            num_workers=args.workers,
        )
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
        network, optimizer, train_dataloader = accelerator.prepare(network, optimizer, train_dataloader)
        global_step = 0
        while global_step < args.max_train_steps:
            for batch in train_dataloader:
                with accelerator.accumulate(network):
                    loss = self.process_batch(batch, vae, network, noise_scheduler, args)
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
                global_step += 1
                with torch.no_grad():
                    self.process_batch(batch, vae, network, noise_scheduler, args, is_train=False)
                if global_step >= args.max_train_steps:
                    break
        save(args, accelerator.unwrap_model(network))


if __name__ == "__main__":
    NetworkTrainer().train(parse_args())
