"""LPIPS on the first three stages of VGG16: what an autoencoder of factor 8 may lose, at a fifth of the weights."""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mldm_plugin.errors import WeightsError
from mldm_plugin.perceptual.unit_difference import unit_normalise
from mldm_plugin.perceptual.weights import load_state_dict

# torchvision's numbers of VGG16's convolutions, stage by stage; a stage ends before its pooling.
STAGES = ((0, 2), (5, 7), (10, 12, 14))
WIDTHS = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256))
# lpips, ScalingLayer.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class ThreeStages(nn.Module):
    """The distance of two pictures in [-1, 1]: (n, 3, H, W) twice → a scalar; gradients flow to the first.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", eq. 1, summed over
    the first three of its five layers.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for numbers, widths in zip(STAGES, WIDTHS, strict=True):
            stage = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
            for number, layer in zip(numbers, stage, strict=True):
                own = {key: state[f"features.{number}.{key}"].float() for key in ("weight", "bias")}
                layer.load_state_dict(own)
            self.stages.append(stage)
        self.lins = nn.ParameterList(state[f"lin{i}"].float() for i in range(len(STAGES)))
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def features(self, images: Tensor) -> list[Tensor]:
        x, found = (images - self.shift) / self.scale, []
        for i, stage in enumerate(self.stages):
            x = F.max_pool2d(x, 2) if i else x
            for layer in stage:  # type: ignore[attr-defined]
                x = F.relu(layer(x))
            found.append(x)
        return found

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.features(targets)
        total = images.new_zeros(())
        for made, target, lin in zip(self.features(images), wanted, self.lins, strict=True):
            difference = unit_normalise(made.float()) - unit_normalise(target.float())
            total = total + F.conv2d(difference.square(), lin).mean()
        return total


def three_stages_state() -> dict[str, Tensor]:
    """VGG16's first three stages out of the weights cache, and the channel weights out of the lpips package."""
    state = load_state_dict("vgg16")
    names = [f"features.{number}.{key}" for stage in STAGES for number in stage for key in ("weight", "bias")]
    found = importlib.util.find_spec("lpips")
    if found is None or not found.submodule_search_locations:
        raise WeightsError("the channel weights of LPIPS are in the lpips package: pip install lpips")
    file = Path(found.submodule_search_locations[0]) / "weights" / "v0.1" / "vgg.pth"
    lins = torch.load(file, weights_only=True, map_location="cpu")
    return {name: state[name] for name in names} | {
        f"lin{i}": lins[f"lin{i}.model.1.weight"] for i in range(len(STAGES))
    }


def write_three_stages(path: Path) -> None:
    """Those weights in one file of half precision, 3.5 MB, to be carried to a machine that has no cache."""
    save_file({name: value.half().contiguous() for name, value in three_stages_state().items()}, path)


def read_three_stages(path: Path | None) -> ThreeStages:
    """The network with the weights in `path`, or in the weights cache."""
    return ThreeStages(load_file(path) if path else three_stages_state())
