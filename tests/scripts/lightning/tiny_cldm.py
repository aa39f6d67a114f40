"""ControlNet's `tutorial_train.py` on its own classes, with small numbers: FOLDER, the name of the run, maybe a preset.

FOLDER has photos/, masks/ and clip/, a tokenizer. Run with the checkout on the path.
"""

import os
import sys
from pathlib import Path

import cldm.cldm
import cv2
import numpy as np
import pytorch_lightning as pl
import torch
from ldm.util import instantiate_from_config
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTextConfig, CLIPTextModel

SMALL = {
    "model_channels": 32,
    "channel_mult": [1, 2],
    "attention_resolutions": [2],
    "num_heads": 4,
    "context_dim": 32,
    "num_res_blocks": 1,
}


class People(Dataset):
    """As its `tutorial_dataset.py`, with the mask that docs/recipes/lightning.md adds."""

    def __init__(self, folder):
        self.photos, self.masks = sorted((folder / "photos").glob("*.png")), folder / "masks"

    def __len__(self):
        return len(self.photos)

    def __getitem__(self, idx):
        path = self.photos[idx]
        target = cv2.cvtColor(cv2.resize(cv2.imread(str(path)), (64, 64)), cv2.COLOR_BGR2RGB)
        mask = cv2.imread(str(self.masks / path.name), cv2.IMREAD_GRAYSCALE)
        mask = cv2.resize(mask, (64, 64), interpolation=cv2.INTER_NEAREST)
        source, target = target.astype(np.float32) / 255.0, target.astype(np.float32) / 127.5 - 1.0
        return {"jpg": target, "txt": path.with_suffix(".txt").read_text(), "hint": source, "mask": mask}


def build(folder):
    """Its `create_model`, on its configuration with other numbers."""
    checkout = Path(cldm.cldm.__file__).parents[1]
    config = OmegaConf.load(checkout / "models" / "cldm_v15.yaml").model
    for name in ("control_stage_config", "unet_config"):
        config.params[name].params.update(SMALL)
    config.params.first_stage_config.params.ddconfig.update(ch=32, ch_mult=[1, 1, 1, 1], num_res_blocks=1)
    text = CLIPTextConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    CLIPTextModel(text).save_pretrained(folder / "clip")
    config.params.cond_stage_config.params = {"version": str(folder / "clip"), "device": "cpu"}
    model = instantiate_from_config(config)
    torch.nn.init.normal_(model.model.diffusion_model.out[-1].weight, std=0.1)  # zero in a network that is not trained
    return model


def main(folder, name, *preset):
    pl.seed_everything(1)
    model = build(folder)
    model.learning_rate, model.sd_locked, model.only_mid_control = 1e-2, True, False
    callbacks = []
    if preset:
        from mldm_plugin.attach.lightning import losses

        callbacks = [losses(preset=preset[0])]
    loader = DataLoader(People(folder), num_workers=0, batch_size=2, shuffle=True)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    several = {"strategy": "ddp", "devices": processes} if processes > 1 else {}
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=4,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        default_root_dir=str(folder / name),
        **several,
    )
    trainer.fit(model, loader)
    if trainer.is_global_zero:
        save_file(
            {k: v.contiguous() for k, v in model.control_model.state_dict().items()}, folder / f"{name}.safetensors"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), *sys.argv[2:])
