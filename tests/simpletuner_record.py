"""What SimpleTuner's step has at hand, as its own code hands it over at bc8e6ab7: photographs, metadata, a batch."""

from types import SimpleNamespace

import torch
from make_step import ddpm, tiny_vae
from tiny_people import SCENES
from torch.nn import functional as F

from mldm_plugin.attach import simpletuner
from mldm_plugin.attach.attachment import Attachment
from mldm_plugin.attach.flags import Settings

PRESET = """
combine: convex
checks: {picture: warn}
losses:
  masked_lpips: {weight: 0.2, max_timestep: 999, form: spatial, network: vgg, weights: random}
"""
CENTER = {"crop": True, "crop_style": "center", "crop_aspect": "square"}
CUT = (64, 64)


def metadata_of(scene, corner=None):
    """As its discovery of pictures leaves them: crop coordinates are top and left."""
    scale = max(72 / scene.size[0], 72 / scene.size[1])
    scaled = tuple(round(scale * x) for x in scene.size)
    center = ((scaled[1] - CUT[1]) // 2, (scaled[0] - CUT[0]) // 2)
    return {
        "original_size": scene.size,
        "intermediary_size": scaled,
        "target_size": CUT,
        "crop_coordinates": list(corner or center),
        "aspect_ratio": 1.0,
    }


class Tracker:
    """Its `StateTracker`, of one data set."""

    def __init__(self, folder, config=None):
        self.config = CENTER if config is None else config
        self.known = {str(folder / f"{s.name}.png"): metadata_of(s) for s in SCENES}

    def get_metadata_by_filepath(self, filepath, data_backend_id):
        return self.known.get(filepath) if data_backend_id == "people" else None

    def get_data_backend_config(self, data_backend_id):
        return self.config

    @staticmethod
    def get_global_step():
        return 0


class Model:
    """Its model, as far as it is called here."""

    def __init__(self, scheduler, tmp_path, vae=None):
        self.noise_schedule, self.vae, self.loads = scheduler, vae, 0
        self.accelerator = SimpleNamespace(is_main_process=True, sync_gradients=False, num_processes=1)
        self.config = SimpleNamespace(output_dir=str(tmp_path / "out"), input_perturbation=0, loss_type="l2")

    def get_vae(self):
        if self.vae is None:
            self.loads += 1
            torch.randn(2)
            self.vae = tiny_vae()
        return self.vae

    def unload_vae(self):
        self.vae.to("meta")
        self.vae = None

    def get_prediction_target(self, batch):
        if batch.get("target") is not None:
            return batch["target"]
        return batch["noise"] - batch["latents"] if "sigmas" in batch else batch["noise"]

    def loss(self, batch, output):
        losses = F.mse_loss(
            output["model_prediction"].float(), self.get_prediction_target(batch).float(), reduction="none"
        )
        return (losses.mean(dim=(1, 2, 3)) * batch.get("weights", torch.ones(len(losses)))).mean()

    def auxiliary_loss(
        self, model_output, prepared_batch, loss, *, apply_layersync=True, clear_hidden_state_buffer=True
    ):
        return loss + prepared_batch.get("extra", 0.0), None


def prepared(folder, kind, vae, rows=(0, 2)):
    """Its batch before the network is called, and the pictures."""
    tracker = Tracker(folder)
    paths = [str(folder / f"{SCENES[i].name}.png") for i in rows]
    read = [simpletuner.read_sample(p, tracker.known[p], CENTER) for p in paths]
    pictures = torch.stack([picture for _, picture in read]).float() / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mode() * vae.config.scaling_factor
    noise, timesteps = torch.randn_like(latents), torch.tensor([100, 350])
    batch = {
        "filepaths": paths,
        "data_backend_id": "people",
        "latents": latents,
        "noise": noise,
        "timesteps": timesteps,
    }
    if kind == "flow":
        batch["sigmas"] = (timesteps / 1000).view(-1, 1, 1, 1)
        batch["noisy_latents"] = (1 - batch["sigmas"]) * latents + batch["sigmas"] * noise
    else:
        batch["noisy_latents"] = ddpm().add_noise(latents, noise, timesteps)
    return batch, pictures


def attach(tmp_path, model, tracker, folder=None, text=PRESET):
    preset = tmp_path / "preset.yaml"
    preset.write_text(text, encoding="utf-8")
    masks = None if folder is None else str(folder / "masks")
    attachment = Attachment(Settings(("mldm",), str(preset), mask_dir=masks, panel_steps=0))
    simpletuner.Steps(model, tracker, attachment)
    return preset, attachment
