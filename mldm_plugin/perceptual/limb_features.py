"""What MediaPipe's hand and pose networks make of hands and bodies on their way to keypoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mldm_plugin.perceptual.frozen import Frozen, build_seeded, computing_in
from mldm_plugin.perceptual.tflite_graph import TfliteGraph
from mldm_plugin.perceptual.turned_squares import cut_out
from mldm_plugin.perceptual.weights import described, load_state_dict


@dataclass(frozen=True)
class LimbNetwork:
    """What is known of a network.

    Args:
        size: side in pixels of its input.
        stages: numbers of the tensors in its graph that are compared.
    """

    size: int
    stages: tuple[int, ...]


# Chosen on drawn people: docs/losses/keypoints.md.
LIMB_NETWORKS = {
    "mediapipe_hand": LimbNetwork(224, (131, 142, 157)),  # 14², 14² and 7²
    "mediapipe_pose": LimbNetwork(256, (226,)),  # 32²
}
RANDOM_SIZE = 32


class SmallNetwork(nn.Module):
    """Two stages with random weights, for tests and demos."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, 2, padding=1), nn.Conv2d(8, 8, 3, 2, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        first = torch.tanh(self.first(x))
        return [stage.permute(0, 2, 3, 1) for stage in (first, torch.tanh(self.last(first)))]


class LimbFeatures:
    """A frozen network of `LIMB_NETWORKS` that takes pictures and squares; `networks` names it and its terms.

    It computes in float32 where others compute in bfloat16, too.

    Raises:
        WeightsError: weights that cannot be had.
    """

    def __init__(self, name: str, weights: Literal["pretrained", "random"]) -> None:
        known = LIMB_NETWORKS[name]
        if weights == "pretrained":
            self.frozen = Frozen(TfliteGraph(load_state_dict(name), (), known.stages))
        else:
            self.frozen = Frozen(build_seeded(SmallNetwork))
        self.networks = (described(name),) if weights == "pretrained" else ()
        self.size = known.size if weights == "pretrained" else RANDOM_SIZE

    def __call__(self, images: Tensor, squares: Sequence[Tensor]) -> list[Tensor]:
        """Features of each square (K_i, 4) of images (N, 3, H, W) in [-1, 1], stage by stage, (ΣK_i, h, w, C), with
        gradient to the images."""
        pairs = zip((images + 1) / 2, squares, strict=True)
        cut = torch.cat([cut_out(image, those, self.size) for image, those in pairs])
        with computing_in(torch.float32):  # in bfloat16 rounding is most of the gradient
            stages: list[Tensor] = self.frozen(cut)
        return stages


def weight_files(options: Mapping[str, Any]) -> list[str]:
    """The weights that a loss with these options `of` and `weights` asks for."""
    names = {"hands": ["mediapipe_hand"], "bodies": ["mediapipe_pose"], "both": list(LIMB_NETWORKS)}
    return names[options["of"]] if options["weights"] == "pretrained" else []
