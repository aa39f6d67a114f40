"""A plain loop in a function, in the manner of kohya's older scripts; its scale is written into the loop."""

import random

import torch
from accelerate import Accelerator
from library import train_util
from library.models import AutoencoderKL, DDPMScheduler, Network, difference, parse_args, save


def train(args):
    random.seed(0)
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    vae, network, noise_scheduler = AutoencoderKL(), Network(), DDPMScheduler()
    group = train_util.DatasetGroup([train_util.DreamBoothDataset(args, vae)])
    collator = train_util.collator_class(group)
    train_dataloader = torch.utils.data.DataLoader(group, batch_size=1, shuffle=True, collate_fn=collator)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
    network, optimizer, train_dataloader = accelerator.prepare(network, optimizer, train_dataloader)
    for step, batch in enumerate(train_dataloader):
        if step >= args.max_train_steps:
            break
        with torch.no_grad():
            if batch["latents"] is not None:
                latents = batch["latents"]
            else:
                latents = vae.encode(batch["images"]).latent_dist.sample()
            latents = latents * 0.2
        noise, noisy_latents, timesteps = train_util.get_noise_noisy_latents_and_timesteps(
            args, noise_scheduler, latents
        )
        noise_pred = network(noisy_latents, timesteps)
        target = noise_scheduler.get_velocity(latents, noise, timesteps) if args.v_parameterization else noise
        loss = difference(noise_pred.float(), target.float(), args.loss_type)
        loss = (loss.mean([1, 2, 3]) * batch["loss_weights"]).mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    save(args, accelerator.unwrap_model(network))


if __name__ == "__main__":
    train(parse_args())
