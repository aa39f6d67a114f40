"""On PYTHONPATH this makes DiffSynth-Studio know small networks: MLDM_SMALL is JSON, each file and its model_name.

Its scripts run as they are. It tells networks by the shapes in their files, and has the sizes of each in a table: that
of the small ones, from their config.json, is added as the table is imported. Its scripts set no seed, so that is done
here.
"""

import importlib
import importlib.machinery
import inspect
import json
import os
import sys
from pathlib import Path

TABLE = "diffsynth.models.model_loader"


def _know(module):
    import torch

    for path, name in json.loads(os.environ["MLDM_SMALL"]).items():
        (known, *_) = (entry for entry in module.MODEL_CONFIGS if entry["model_name"] == name)
        takes = inspect.signature(module.ModelPool().import_model_class(known["model_class"])).parameters
        config = json.loads(Path(path).with_name("config.json").read_text(encoding="utf-8"))
        sizes = {key: value for key, value in config.items() if key in takes}
        module.MODEL_CONFIGS.append({**known, "model_hash": module.hash_model_file(path), "extra_kwargs": sizes})
        if name == "z_image_text_encoder":  # its sizes stand in its code
            text = importlib.import_module("diffsynth.models.z_image_text_encoder")
            text.Qwen3Config = lambda big=text.Qwen3Config, config=config, **_: big(**config)
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
