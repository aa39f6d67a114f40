"""MTCNN, three small networks in torch: faces with their score and five points.

torch is imported with the networks: workers that find faces otherwise start in less than a second without it.
"""

from __future__ import annotations

import functools
import multiprocessing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mldm_plugin.perceptual.weights import fill, load_state_dict, locate
from mldm_plugin.prepare.faces.boxes import tidied
from mldm_plugin.prepare.source import Face, People, Shown, Source

if TYPE_CHECKING:
    from mldm_plugin.perceptual.mtcnn_networks import MTCNNNetworks

WEIGHTS = "mtcnn"


@dataclass(frozen=True)
class Mtcnn:
    """Faces by MTCNN with facenet-pytorch's weights, each with its score and its eyes, nose and corners of the mouth.

    On openpeople's 60 pictures it finds all 260 faces, three more that are none, and takes 0.6 to 1.8 s a picture on
    one core (`side` 1024).

    Args:
        least_score: of a face. Chosen: true faces there have 0.98 and more, the three false ones 0.75 to 0.89.
        side: pixels that the longer side of the picture is reduced to.
        least_face: side in pixels of the smallest face, in the reduced picture; 20 is facenet-pytorch's own.

    Raises:
        WeightsError: on the first call, where the weights cannot be had.

    Source: Zhang et al., Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks, 2016.
    """

    name = "mtcnn"
    scored = True
    pointed = True

    least_score: float = 0.9
    side: int = 1024
    least_face: float = 20

    def __call__(self, source: Source, picture: Shown, people: People | None) -> list[Face]:
        """The faces, the largest first."""
        import torch

        from mldm_plugin.perceptual.mtcnn_networks import CELL

        reduced = picture.rgb()
        scale = min(self.side / max(reduced.size), 1)
        if scale < 1:
            width, height = (max(round(side * scale), 1) for side in reduced.size)
            reduced = reduced.resize((width, height), Image.Resampling.BOX)
        if min(reduced.size) < CELL:
            return []
        pixels = torch.from_numpy(np.array(reduced)).permute(2, 0, 1).float()
        boxes, scores, points = (found.tolist() for found in load_network()(pixels, self.least_face))
        back_x, back_y = picture.size[0] / reduced.width, picture.size[1] / reduced.height
        faces = [
            Face(
                (x0 * back_x, y0 * back_y, x1 * back_x, y1 * back_y),
                score,
                tuple((x * back_x, y * back_y) for x, y in of_face),
            )
            for (x0, y0, x1, y1), score, of_face in zip(boxes, scores, points, strict=True)
            if score >= self.least_score
        ]
        return tidied(faces, picture.size)


def is_here() -> bool:
    """Whether the weights are on this machine."""
    return locate(WEIGHTS) is not None


@functools.cache
def load_network() -> MTCNNNetworks:
    """The networks, once a process; one thread in each where the work is spread over processes."""
    import torch

    from mldm_plugin.perceptual.mtcnn_networks import MTCNNNetworks

    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)
    network = MTCNNNetworks()
    fill(network, load_state_dict(WEIGHTS), WEIGHTS)
    return network.eval().requires_grad_(False)
