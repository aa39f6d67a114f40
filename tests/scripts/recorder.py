"""A plugin without losses that writes down every step it is shown: STEP_FOLDER/000.safetensors, 001.safetensors, …"""

import os
from pathlib import Path

from safetensors.torch import save_file

from mldm_plugin import hookimpl

FIELDS = (
    *("latents", "noise", "noisy_latents", "timesteps", "model_pred", "target", "sigmas", "base_weights"),
    *("pixel_values", "person_mask", "base_loss", "other_loss"),
)


@hookimpl
def after_loss(step, report):
    folder = Path(os.environ["STEP_FOLDER"])
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: getattr(step, name) for name in FIELDS}
    tensors = {name: t.detach().clone().contiguous() for name, t in tensors.items() if t is not None}
    for row, boxes in enumerate(step.face_boxes or ()):
        tensors[f"face_boxes.{row}"] = boxes.clone()
    for row, people in enumerate(step.keypoints or ()):
        tensors[f"keypoints.{row}"] = people.clone()
    tensors["loss"] = report.loss.detach().reshape(1)
    save_file(tensors, folder / f"{len(list(folder.iterdir())):03}.safetensors")
