"""The networks that sets of pictures are compared in, by name, each with its own input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mldm_plugin.errors import PresetError, WeightsError, nearest
from mldm_plugin.perceptual import fid_inception
from mldm_plugin.perceptual.face_crops import VGGFACE2_CROP, FaceCrop
from mldm_plugin.perceptual.face_networks import FaceFeatures
from mldm_plugin.perceptual.faceres import BLOCKS
from mldm_plugin.perceptual.fid_inception import FIDInception, fid_input
from mldm_plugin.perceptual.frozen import Frozen, build_seeded, build_to_fill
from mldm_plugin.perceptual.lpips_network import LPIPSNetwork
from mldm_plugin.perceptual.vision_transformers import VISION_TRANSFORMERS, load_vision_transformer
from mldm_plugin.perceptual.weights import described, fill, load_state_dict
from mldm_plugin.perceptual.weights.dlib_dat import EMBEDDING

Weights = Literal["pretrained", "random"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# openai/CLIP, clip.py, _transform
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class ImageNetwork:
    """A frozen network that turns pictures into vectors, in float32.

    Args:
        title: its name in a table.
        size: side in pixels of its input.
        width: numbers of a vector.
        embed: (K, 3, size, size) RGB in [-1, 1] → (K, width).
        networks: it in words, where its weights came from and their terms of use.
        face: the square around a face that it is shown.
        faces_only: whether it knows nothing but faces.
    """

    title: str
    size: int
    width: int
    embed: Callable[[Tensor], Tensor]
    networks: tuple[str, ...]
    face: FaceCrop
    faces_only: bool = False


def image_network(name: str, weights: Weights = "pretrained", path: str | None = None) -> ImageNetwork:
    """The network `name`.

    Args:
        name: `vgg16`, relu5_3 averaged over the picture, at 128 px (chosen: at 224 px it takes three times as long).
            `inception`, FID's, its global average, at 299 px. `clip`, the projected embedding of ViT-L/14, at 336 px.
            `dinov2`, the class token of ViT-L/14, at 224 px. `dlib`, the embedding of a face, at 150 px. Two more for
            models that VGG16 and dlib's network trained: `alexnet`, relu5 averaged over the picture, at 128 px, and
            `faceres`, the embedding of a face, at 224 px.
        weights: `pretrained`, or `random` (seeded, for tests), which `clip` and `dinov2` have not.
        path: of `clip` and `dinov2`: a folder with such a network.

    Raises:
        PresetError: an option that the network does not have.
        WeightsError: unknown network, or weights that cannot be had.

    Source of inputs and layers: Stein et al., "Exposing flaws of generative model evaluation metrics" (dgm-eval), for
    DINOv2; Jayasumana et al., "Rethinking FID", for CLIP. VGG16's layer: chosen, its last.
    """
    if name in VISION_TRANSFORMERS:
        if weights == "random":
            raise PresetError(f"{name} has no random weights: give a folder with a small network as `path`.")
        return _clip(path) if name == "clip" else _dinov2(path)
    if name not in _FROM_TABLE:
        known = [*_FROM_TABLE, *VISION_TRANSFORMERS]
        raise WeightsError(f"No image network is called {name!r}; {nearest(name, known)}")
    if path is not None:
        raise PresetError(f"path is an option of clip and dinov2; {name} comes from the weights cache, leave it out.")
    return _FROM_TABLE[name](weights)


def _vgg16(weights: Weights) -> ImageNetwork:
    return _trunk("VGG16", LPIPSNetwork("vgg", weights), 512)


def _alexnet(weights: Weights) -> ImageNetwork:
    return _trunk("AlexNet", LPIPSNetwork("alex", weights), 256)


def _trunk(title: str, network: LPIPSNetwork, width: int) -> ImageNetwork:
    def embed(images: Tensor) -> Tensor:
        return network.features(images)[-1].mean(dim=(2, 3))

    return ImageNetwork(title, 128, width, embed, network.networks, VGGFACE2_CROP)


def _inception(weights: Weights) -> ImageNetwork:
    if weights == "pretrained":
        network = build_to_fill(FIDInception)
        fill(network, load_state_dict("fid_inception"), "fid_inception", ignore=("fc.",))
    else:
        network = build_seeded(FIDInception)
    frozen = Frozen(network)

    def embed(images: Tensor) -> Tensor:
        out: Tensor = frozen(fid_input(images))
        return out

    networks = (described("fid_inception"),) if weights == "pretrained" else ()
    return ImageNetwork("Inception", 299, fid_inception.WIDTH, embed, networks, VGGFACE2_CROP)


def _dlib(weights: Weights) -> ImageNetwork:
    return _of_faces("dlib", FaceFeatures("dlib_resnet", weights), EMBEDDING)


def _faceres(weights: Weights) -> ImageNetwork:
    return _of_faces("FaceRes", FaceFeatures("faceres", weights), BLOCKS[-1][0])


def _of_faces(title: str, network: FaceFeatures, width: int) -> ImageNetwork:
    def embed(faces: Tensor) -> Tensor:
        return network(faces)[-1].flatten(1)

    return ImageNetwork(title, network.crop.size, width, embed, network.networks, network.crop, faces_only=True)


def _clip(path: str | None) -> ImageNetwork:
    network, words = load_vision_transformer("clip", path)
    frozen = Frozen(network)

    def embed(images: Tensor) -> Tensor:
        out: Tensor = frozen(_normalised(images, *CLIP)).image_embeds
        return out

    config = network.config
    return ImageNetwork("CLIP", config.image_size, config.projection_dim, embed, (words,), VGGFACE2_CROP)


def _dinov2(path: str | None) -> ImageNetwork:
    network, words = load_vision_transformer("dinov2", path)
    frozen = Frozen(network)

    def embed(images: Tensor) -> Tensor:
        out: Tensor = frozen(_normalised(images, *IMAGENET)).pooler_output
        return out

    return ImageNetwork("DINOv2", 224, network.config.hidden_size, embed, (words,), VGGFACE2_CROP)


def _normalised(images: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """RGB in [-1, 1] → (x - mean)/deviation of [0, 1]."""
    m, s = (torch.tensor(numbers, dtype=images.dtype, device=images.device) for numbers in (mean, deviation))
    return ((images + 1) / 2 - m.view(3, 1, 1)) / s.view(3, 1, 1)


_FROM_TABLE = {"vgg16": _vgg16, "alexnet": _alexnet, "inception": _inception, "dlib": _dlib, "faceres": _faceres}
