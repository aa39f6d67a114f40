"""What training scripts call their variables, read from diffusers' examples v0.14 to v0.40 and from sd-scripts."""

from __future__ import annotations

# The first that is there is taken. A wrong guess cannot pass: the start-up checks compare them with each other.
NAMES: dict[str, tuple[str, ...]] = {
    "vae": ("vae", "vae_model", "autoencoder", "ae"),
    "noise_scheduler": ("noise_scheduler", "noise_scheduler_copy", "dummy_scheduler", "scheduler"),
    # Where there are several, `scope.read` takes those that the noisy latents were made of.
    "latents": ("pixel_latents", "latents", "model_input"),
    "noisy_latents": ("noisy_latents", "noisy_model_input", "noisy_model_inputs"),
    # T2I-Adapter's script compares its x₀, and leaves the output that it made it from in model_pred.
    "model_pred": ("denoised_latents", "model_pred", "noise_pred", "model_output"),
    "timesteps": ("timesteps",),
    # Input perturbation keeps the noise that it added apart from the noise to be predicted.
    "noise": ("new_noise", "noise"),
}
TARGETS = ("target", "flow_target")
