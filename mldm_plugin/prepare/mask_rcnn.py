"""Who is in a picture without any annotation: torchvision's Mask R-CNN, trained on COCO."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mldm_plugin.perceptual.frozen import build_to_fill
from mldm_plugin.perceptual.weights import fill, load_state_dict
from mldm_plugin.prepare.source import MOST_PEOPLE, People, Shown, Source

WEIGHTS = "mask_rcnn"
PERSON = 1  # among the categories of torchvision's COCO weights
INSIDE = 0.5  # of a mask's probability; that of the paper and of torchvision's examples


@dataclass(frozen=True)
class MaskRCNN:
    """The people that Mask R-CNN (ResNet-50 FPN, torchvision's v2) finds, on a GPU if there is one.

    v2 and not v1: both are BSD-3-Clause, and v2 has a mask AP of 41.8 on COCO's val2017 where v1 has 34.6, for 334
    against 134 GFLOP a picture (torchvision's figures).

    The picture is reduced to `short_side` and `long_side` here, as the network would do itself, and its label map
    enlarged again with the nearest neighbour. For the network puts its masks, of 28x28 numbers each, into floats of
    the picture's size: 20 people of 24 megapixels would be 2 GB, of at most 1333x800 they are 85 MB, and no detail
    is lost that it could have seen.

    The rows get a column `person_scores`: how sure it is of each person, in the order of their labels.

    Args:
        least_score: of a person. Chosen: what is less sure is often a statue, a poster or a heap of clothes.
        short_side, long_side: pixels; torchvision's own. Smaller is faster and misses small people.

    Raises:
        WeightsError: on the first call, where the weights are missing; the message says where to get them.

    Source: He et al., Mask R-CNN, ICCV 2017; v2 by Li et al., Benchmarking Detection Transfer Learning with Vision
    Transformers, 2021.
    """

    least_score: float = 0.7
    short_side: int = 800
    long_side: int = 1333

    def __call__(self, source: Source, picture: Shown) -> People:
        """A label for each person, the surest first."""
        network = load_network(self.least_score, self.short_side, self.long_side)
        smaller = self.reduced(picture.rgb())
        pixels = torch.from_numpy(np.array(smaller)).permute(2, 0, 1).float() / 255
        with torch.inference_mode():
            [detections] = network([pixels.to(next(network.parameters()).device)])
        labels, scores = label_map(detections, (smaller.height, smaller.width), self.least_score)
        if smaller.size != picture.size:
            labels = np.asarray(Image.fromarray(labels).resize(picture.size, Image.Resampling.NEAREST))
        return People(labels, count=len(scores), columns={"person_scores": scores})

    def reduced(self, picture: Image.Image) -> Image.Image:
        """`picture` at the size that the network looks at; never enlarged."""
        scale = min(self.short_side / min(picture.size), self.long_side / max(picture.size))
        if scale >= 1:
            return picture
        width, height = (max(round(side * scale), 1) for side in picture.size)
        return picture.resize((width, height), Image.Resampling.BILINEAR)


def label_map(
    detections: Mapping[str, Tensor], size: tuple[int, int], least_score: float
) -> tuple[np.ndarray, list[float]]:
    """The people among a picture's detections.

    Where people overlap, the pixel is the smaller one's, who is more likely to be in front: the rule for COCO's own
    annotations. So a person may be left with no pixel, and is counted still.

    Args:
        detections: of torchvision's Mask R-CNN: `labels` (N,), `scores` (N,) and `masks` (N, 1, H, W) in [0, 1].
        size: H and W, for where there are none.
        least_score: of a person.

    Returns:
        uint8 (H, W): 0 background, k the k-th person, the surest first, at most 255; and their scores.
    """
    sure = (detections["labels"] == PERSON) & (detections["scores"] >= least_score)
    by_score = detections["scores"].argsort(descending=True, stable=True)
    chosen = by_score[sure[by_score]].tolist()
    masks = {k: (detections["masks"][k, 0] >= INSIDE).cpu().numpy() for k in chosen}
    people = [k for k in chosen if masks[k].any()][:MOST_PEOPLE]
    labels = np.zeros(size, np.uint8)
    for number, k in sorted(enumerate(people, 1), key=lambda pair: -int(masks[pair[1]].sum())):
        labels[masks[k]] = number
    return labels, [round(float(detections["scores"][k]), 4) for k in people]


@functools.cache
def load_network(least_score: float, short_side: int, long_side: int) -> nn.Module:
    """The network, once a process; detections below the score are dropped before their masks are made."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn_v2

    state = load_state_dict(WEIGHTS)
    options: dict[str, Any] = {"min_size": short_side, "max_size": long_side, "box_score_thresh": least_score}
    network = build_to_fill(lambda: maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, **options))
    fill(network, state, WEIGHTS)
    return network.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
