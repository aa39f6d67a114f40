"""On PYTHONPATH this makes DiffSynth-Studio know small networks: MLDM_SMALL is JSON, each file and its model_name.

Its scripts run as they are. It tells networks by the shapes in their files, and has the sizes of each in a table: that
of the small ones, from their config.json, is added as the table is imported. Its scripts set no seed, so that is done
here.
"""

import importlib
import inspect
import json
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from when_imported import when_imported


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


when_imported({"diffsynth.models.model_loader": _know})
