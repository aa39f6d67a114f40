"""A trainer class that takes its loop from another file and predicts a flow, in the manner of kohya's for Flux."""

import torch
import train_network
from library import train_util
from library.models import AutoEncoder, FlowMatchEulerDiscreteScheduler, parse_args

collator_class = train_util.collator_class


class FlowNetworkTrainer(train_network.NetworkTrainer):
    def load_vae(self):
        return AutoEncoder()

    def get_noise_scheduler(self):
        return FlowMatchEulerDiscreteScheduler()

    def encode_images_to_latents(self, vae, images):
        return vae.encode(images)

    def shift_scale_latents(self, latents):
        return latents

    def get_noise_pred_and_target(self, args, noise_scheduler, latents, network, is_train=True):
        noise = torch.randn_like(latents)
        sigmas = torch.rand(len(latents), 1, 1, 1)
        noisy_model_input = (1 - sigmas) * latents + sigmas * noise
        timesteps = sigmas.flatten() * 1000

        def call_dit(img):
            model_pred = network(img, timesteps)
            return model_pred

        model_pred = call_dit(noisy_model_input)
        weighting = 1 + sigmas
        target = noise - latents
        return model_pred, target, timesteps, weighting

    def process_batch(self, batch, vae, network, noise_scheduler, args, is_train=True):
        return super().process_batch(batch, vae, network, noise_scheduler, args, is_train)


if __name__ == "__main__":
    FlowNetworkTrainer().train(parse_args())
