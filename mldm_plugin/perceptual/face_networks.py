"""The face networks by name, each with the input it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mldm_plugin.errors import WeightsError, nearest
from mldm_plugin.perceptual.dlib_resnet import DlibResNet
from mldm_plugin.perceptual.face_crops import VGGFACE2_CROP, FaceCrop
from mldm_plugin.perceptual.faceres import FaceRes
from mldm_plugin.perceptual.frozen import Frozen, build_seeded, build_to_fill
from mldm_plugin.perceptual.inception_resnet_v1 import InceptionResnetV1
from mldm_plugin.perceptual.vggface2_resnet50 import VGGFace2ResNet50
from mldm_plugin.perceptual.weights import described, fill, load_state_dict
from mldm_plugin.perceptual.weights.dlib_dat import MEAN_RGB, SIZE

# cydonia999/VGGFace2-pytorch and ox-vgg/vgg_face2: "from resnet50_ft.prototxt", blue, green, red.
VGGFACE2_MEAN_BGR = (91.4953, 103.8827, 131.0912)

# HSE_FaceRec_tf, facial_analysis.py: ImageNet's, blue, green, red. `human` itself gives RGB and no mean, so AUC .992.
FACERES_MEAN_BGR = (103.939, 116.779, 123.68)


def vggface2_input(faces: Tensor) -> Tensor:
    """(K, 3, S, S) RGB in [-1, 1] → BGR of 0–255 minus VGGFace2's mean."""
    return (faces.flip(1) + 1) * 127.5 - _per_channel(VGGFACE2_MEAN_BGR, faces)


def faceres_input(faces: Tensor) -> Tensor:
    """(K, 3, S, S) RGB in [-1, 1] → BGR of 0–255 minus ImageNet's mean."""
    return (faces.flip(1) + 1) * 127.5 - _per_channel(FACERES_MEAN_BGR, faces)


def facenet_input(faces: Tensor) -> Tensor:
    """(K, 3, S, S) RGB in [-1, 1] → (x - 127.5)/128 of 0–255, facenet-pytorch's fixed standardisation."""
    return ((faces + 1) * 127.5 - 127.5) / 128


def dlib_input(faces: Tensor) -> Tensor:
    """(K, 3, S, S) RGB in [-1, 1] → (x - mean)/256 of 0–255, as dlib's input_rgb_image_sized gives it."""
    return ((faces + 1) * 127.5 - _per_channel(MEAN_RGB, faces)) / 256


def weight_files(options: Mapping[str, Any]) -> list[str]:
    """The weights that a loss with these options `network` and `weights` asks for."""
    return [options["network"]] if options["weights"] == "pretrained" else []


def _per_channel(numbers: Sequence[float], like: Tensor) -> Tensor:
    """(1, 3, 1, 1) on the device of `like`; the copy is queued, where `new_tensor` would wait for a GPU."""
    return torch.tensor(numbers, dtype=like.dtype).view(1, -1, 1, 1).to(like.device, non_blocking=True)


@dataclass(frozen=True)
class FaceNetwork:
    """What is known of a face network.

    Args:
        build: makes it with random weights.
        crop: the faces it was trained on.
        prepare: RGB in [-1, 1] → its input.
        layer_weights: α_l of what it gives, stage by stage.
        unused: beginnings of the names in its weights file that it has no use for.
        points: where the eyes, the nose and the corners of the mouth lie in the faces it was trained on, in sides of
            the crop; None where those were cut out by boxes.
    """

    build: Callable[[], nn.Module]
    crop: FaceCrop
    prepare: Callable[[Tensor], Tensor]
    layer_weights: tuple[float, ...]
    unused: tuple[str, ...]
    points: tuple[tuple[float, float], ...] | None = None


# dlib's get_face_chip_details with padding .25: (p + .25)/1.5 of its mean face's points, of an eye the mean of its six.
DLIB_POINTS = ((0.3170, 0.3107), (0.6698, 0.3107), (0.4934, 0.5104), (0.3361, 0.6868), (0.6507, 0.6868))

FACE_NETWORKS: dict[str, FaceNetwork] = {
    "vggface2_resnet50": FaceNetwork(
        build=VGGFace2ResNet50,
        crop=VGGFACE2_CROP,
        prepare=vggface2_input,
        # The released Masked LDM code, mldm/face_loss.py: conv1, layer1 to layer4.
        layer_weights=(0.1, 0.0025, 0.025, 0.05, 0.005),
        unused=("fc.",),
    ),
    "vggface2_inception": FaceNetwork(
        build=InceptionResnetV1,
        crop=FaceCrop(size=160, extent=1.3),
        prepare=facenet_input,
        # Chosen: the papers have no values for this network, and its stages are of one magnitude.
        layer_weights=(0.2, 0.2, 0.2, 0.2, 0.2),
        unused=("logits.",),
    ),
    # docs/losses/face.md has the runs. The crop: that of the best same/different AUC on openpeople's 200 faces, boxes
    # by MTCNN. α: 1 / (6 · mean |difference| of two people's faces there), for the five levels and the embedding, so
    # that each says as much of another person, all together 1, and a blur of σ = 2 costs about the same at each.
    "dlib_resnet": FaceNetwork(
        build=DlibResNet,
        crop=FaceCrop(size=SIZE, extent=0.97, down=0.085),
        prepare=dlib_input,
        layer_weights=(0.162, 0.220, 0.373, 0.658, 0.615, 3.12),
        unused=(),
        points=DLIB_POINTS,
    ),
    # The judge: no loss offers it, and it gives the embedding alone. docs/judge.md has the runs that chose the crop.
    "faceres": FaceNetwork(
        build=FaceRes,
        crop=FaceCrop(size=224, extent=1.15),
        prepare=faceres_input,
        layer_weights=(1.0,),
        unused=(),
    ),
}


class FaceFeatures:
    """A frozen face network that takes faces as pictures.

    Args:
        name: a key of `FACE_NETWORKS`.
        weights: "pretrained" (fetched on first use) or "random" (from a fixed seed).

    `networks` names it, where its weights came from and their terms of use.

    Raises:
        WeightsError: unknown network, or weights that cannot be had.
    """

    def __init__(self, name: str, weights: Literal["pretrained", "random"] = "pretrained") -> None:
        if name not in FACE_NETWORKS:
            raise WeightsError(f"No face network is called {name!r}; {nearest(name, FACE_NETWORKS)}")
        known = FACE_NETWORKS[name]
        if weights == "pretrained":
            network = build_to_fill(known.build)
            fill(network, load_state_dict(name), name, ignore=known.unused)
        else:
            network = build_seeded(known.build)
        self.networks = (described(name),) if weights == "pretrained" else ()
        self.crop, self.points, self.layer_weights = known.crop, known.points, known.layer_weights
        self._prepare, self.frozen = known.prepare, Frozen(network)

    def __call__(self, faces: Tensor) -> list[Tensor]:
        """Features of `faces`, (K, 3, S, S) RGB in [-1, 1], stage by stage; gradients flow."""
        return self.frozen(self._prepare(faces))
