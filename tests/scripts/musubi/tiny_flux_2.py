"""musubi-tuner's own training of Flux.2, of a network small enough for a CPU.

`tiny_flux_2.py prepare FOLDER` makes the weights and caches latents and texts in FOLDER, with musubi-tuner's own code.
With anything else it is musubi-tuner's own script.
"""

import functools
import sys
from dataclasses import replace
from pathlib import Path

import torch
from musubi_tuner import flux_2_cache_latents, flux_2_train_network
from musubi_tuner.dataset import config_utils
from musubi_tuner.dataset.cache_io import save_text_encoder_output_cache_flux_2
from musubi_tuner.flux_2 import flux2_models, flux2_utils
from safetensors.torch import save_file

VERSION = "klein-base-4b"
PARAMS = flux2_models.Klein4BParams(
    context_in_dim=16, hidden_size=32, num_heads=2, depth=1, depth_single_blocks=1, axes_dim=[4, 4, 4, 4]
)
INFO = replace(flux2_utils.FLUX2_MODEL_INFO[VERSION], params=PARAMS)
flux2_utils.FLUX2_MODEL_INFO[VERSION] = INFO
flux2_models.AutoEncoderParams = functools.partial(
    flux2_models.AutoEncoderParams, ch=32, ch_mult=[1, 1], num_res_blocks=1
)


def prepare(folder: Path) -> None:
    torch.manual_seed(0)
    encoder = flux2_models.AutoEncoder(flux2_models.AutoEncoderParams())
    encoder.bn.running_mean.normal_(0, 0.1)
    encoder.bn.running_var.uniform_(0.5, 2)
    save_file(encoder.state_dict(), folder / "ae.safetensors")
    save_file(flux2_models.Flux2(PARAMS).state_dict(), folder / "dit.safetensors")
    config = str(folder / "data.toml")
    sys.argv[1:] = ["--dataset_config", config, "--vae", str(folder / "ae.safetensors"), "--model_version", VERSION]
    sys.argv += ["--device", "cpu"]
    flux_2_cache_latents.main()
    parser = flux_2_cache_latents.cache_latents.setup_parser_common()
    flux2_utils.add_model_version_args(parser)
    blueprint = config_utils.BlueprintGenerator(config_utils.ConfigSanitizer()).generate(
        config_utils.load_user_config(config), parser.parse_args(), architecture=INFO.architecture
    )
    for data in config_utils.generate_dataset_group_by_blueprint(blueprint.dataset_group).datasets:
        for batch in data.retrieve_text_encoder_output_cache_batches(1):
            for item in batch:
                save_text_encoder_output_cache_flux_2(item, torch.randn(8, 16), INFO.architecture_full)


if __name__ == "__main__":
    if sys.argv[1:2] == ["prepare"]:
        prepare(Path(sys.argv[2]))
    else:
        flux_2_train_network.main()
