"""On PYTHONPATH this makes DiffSynth-Studio know the small networks in the folder that MLDM_SMALL names.

Its scripts run as they are. It tells networks by the shapes in their files, and has the sizes of each in a table: that
of the small ones is added as the table is imported. Its scripts set no seed, so that is done here.
"""

import importlib.machinery
import inspect
import json
import os
import sys
from pathlib import Path

TABLE = "diffsynth.models.model_loader"
LIKE = {
    "text_encoder/model.safetensors": "stable_diffusion_text_encoder",
    "unet/diffusion_pytorch_model.safetensors": "stable_diffusion_unet",
    "vae/diffusion_pytorch_model.safetensors": "stable_diffusion_vae",
}


def _know(module):
    import torch

    for name, like in LIKE.items():
        path = Path(os.environ["MLDM_SMALL"]) / name
        (known, *_) = (entry for entry in module.MODEL_CONFIGS if entry["model_name"] == like)
        takes = inspect.signature(module.ModelPool().import_model_class(known["model_class"])).parameters
        sizes = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        sizes = {key: value for key, value in sizes.items() if key in takes}
        shapes = module.hash_model_file(str(path))
        module.MODEL_CONFIGS.append({**known, "model_hash": shapes, "extra_kwargs": sizes})
    torch.manual_seed(0)


class Finder:
    """Finds the module of the table as Python does, and adds to it when it has been run."""

    def find_spec(self, name, path=None, target=None):
        if name != TABLE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                _know(module)

            spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
