"""On PYTHONPATH this makes the networks of sd-scripts small, whose shapes are fixed in its library.

The scripts run as they are; constants of `library.*` are changed as these modules are imported.
"""

import dataclasses
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from when_imported import when_imported


def _unet(module):
    module.BLOCK_OUT_CHANNELS, module.TIMESTEP_INPUT_DIM, module.TIME_EMBED_DIM = (32, 64, 64, 64), 32, 128


def _sdxl_unet(module):
    module.MODEL_CHANNELS, module.TIME_EMBED_DIM = 64, 256


def _flux(module):
    for name, spec in module.configs.items():
        params = dataclasses.replace(spec.params, hidden_size=128, num_heads=1, context_in_dim=32, vec_in_dim=32)
        ae = dataclasses.replace(spec.ae_params, ch=32, ch_mult=[1, 1, 1, 1], num_res_blocks=1)
        module.configs[name] = dataclasses.replace(spec, params=params, ae_params=ae)


def _flux_text(module):
    t5, clip = module.T5Config, module.CLIPConfig
    small_t5 = {"d_model": 32, "d_ff": 32, "d_kv": 8, "num_heads": 4, "num_layers": 1, "vocab_size": 512}
    small_clip = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1}
    module.T5Config = lambda **config: t5(**{**config, **small_t5})
    module.CLIPConfig = lambda **config: clip(**{**config, **small_clip, "projection_dim": 32, "vocab_size": 2048})


when_imported(
    {
        "library.original_unet": _unet,
        "library.sdxl_original_unet": _sdxl_unet,
        "library.flux_models": _flux,
        "library.flux_utils": _flux_text,
    }
)
