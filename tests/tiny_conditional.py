"""What `mldm evaluate` compares when faces are drawn from conditions, as small as can be: data, models, judges."""

from pathlib import Path

import torch
from click.testing import CliRunner

from mldm_plugin.cli import main
from mldm_plugin.conditions.conditions import Conditions
from mldm_plugin.conditions.judges import AttributeJudge, PartsJudge, write_judge
from mldm_plugin.conditions.pipeline import ConditionalLDMPipeline
from mldm_plugin.prepare.synthetic.dataset import write_synthetic

SIDE = 64
ATTRIBUTES = ("attributes", {"hidden": 8})
MASK = ("semantic_mask", {"resolution": SIDE, "channels": [8, 8, 8]})
# Flags of train_conditional_ldm.py: a small network, and two conditions.
SMALL = (
    *("--block_out_channels", 16, 32, "--attention_head_dim", 8, "--layers_per_block", 1, "--cross_attention_dim", 16),
    *("--attention_resolutions", 8, 4, "--num_train_epochs", 9, "--validation_rows", 0, "--learning_rate", 1e-3),
)
BOTH = ("--condition", "attributes", "semantic_mask", "--condition_option", "semantic_mask.channels=[8, 8, 8, 16]")


def write_faces(folder: Path, count: int = 24) -> Path:
    """Drawn portraits as a training set, every sixth of them held out."""
    write_synthetic(folder / "drawn", count, 3, SIDE, progress=False, portraits=True)
    words = ["data", "celebamask-hq", str(folder / "drawn"), "--out", str(folder / "faces"), "--workers", "0"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    return folder / "faces"


def make_conditional(conditions=(ATTRIBUTES, MASK), seed: int = 0) -> ConditionalLDMPipeline:
    """A pipeline of seeded random weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=SIDE // 4,
        block_out_channels=(16, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
        layers_per_block=1,
    )
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    vae = AutoencoderKL(block_out_channels=(8, 8, 8), latent_channels=4, norm_num_groups=4, **blocks)
    made = Conditions(width=16, conditions=list(conditions)).eval()
    with torch.no_grad():
        for encoder in made.encoders.values():  # random ones hardly tell one picture from another
            for parameter in encoder.parameters():
                parameter.mul_(3)
    pipeline = ConditionalLDMPipeline(vae.eval(), unet.eval(), DDIMScheduler(clip_sample=False), made)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_conditional(folder: Path, conditions=(ATTRIBUTES, MASK), seed: int = 0) -> Path:
    make_conditional(conditions, seed).save_pretrained(folder)
    return folder


def write_judges(folder: Path) -> Path:
    """Judges of seeded random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for kind in (AttributeJudge, PartsJudge):
        write_judge(kind((8, 8, 8, 8)), folder, SIDE)
    return folder
