"""Who is in a picture without any annotation: MediaPipe's selfie segmentation, small and for people who are near."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mldm_plugin.perceptual.tflite_graph import frozen_graph
from mldm_plugin.prepare.source import MOST_PEOPLE, People, Shown, Source

WEIGHTS = "mediapipe_selfie"
SIDE = 256  # pixels of the square picture that the network looks at


@dataclass(frozen=True)
class SelfieSegmentation:
    """The people that MediaPipe's selfie segmentation finds: 0.2 MB, Apache-2.0, a twentieth of a second on a CPU.

    The network tells people from ground in the whole picture, squeezed into a square of 256 pixels. Each connected
    piece is a person, so people who touch are one; whoever stands farther away than a few metres is missed, and without
    anybody a large thing in front may be taken for a person. Mask R-CNN does all three better.

    Args:
        least: of the probability of a pixel to be a person's. MediaPipe's own graphs use 0.5, too, to draw a mask.
        smallest: part of the picture from which a piece is a person. Chosen: smaller ones were bags and plants.

    Raises:
        WeightsError: on the first call, where the weights are missing; the message says where to get them.

    Source: MediaPipe, the graph selfie_segmentation_cpu and the model card "MediaPipe Selfie Segmentation" (2021).
    """

    least: float = 0.5
    smallest: float = 0.01

    def __call__(self, source: Source, picture: Shown) -> People:
        """A label for each piece, the largest first."""
        rgb = picture.rgb()
        share = probability(rgb).numpy()
        whole = Image.fromarray(share).resize(rgb.size, Image.Resampling.BILINEAR)
        labels, count = pieces(np.asarray(whole) >= self.least, self.smallest)
        return People(labels, count)


def probability(picture: Image.Image) -> Tensor:
    """(256, 256) in [0, 1], how likely each pixel of the squeezed picture is a person's."""
    small = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        [found] = frozen_graph(WEIGHTS, (0,))(pixels)
    return found[0, ..., 0]


def pieces(people: np.ndarray, smallest: float) -> tuple[np.ndarray, int]:
    """Labels of the connected pieces of a mask, the largest first.

    Args:
        people: bool (H, W).
        smallest: part of H × W from which a piece counts.

    Returns:
        uint8 (H, W), 0 background, k the k-th piece; and how many there are.

    >>> pieces(np.array([[True, False, True], [True, False, False]]), 0.0)
    (array([[1, 0, 2],
           [1, 0, 0]], dtype=uint8), 2)
    """
    from scipy import ndimage

    found, _ = ndimage.label(people)
    areas = np.bincount(found.ravel())
    areas[0] = 0
    kept = [k for k in np.argsort(-areas, kind="stable") if areas[k] > smallest * people.size][:MOST_PEOPLE]
    table = np.zeros(len(areas), np.uint8)
    for number, k in enumerate(kept, 1):
        table[k] = number
    return table[found], len(kept)
