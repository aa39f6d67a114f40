"""CLIP and DINOv2, as transformers loads them from this machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mldm_plugin.errors import WeightsError
from mldm_plugin.requirements import pip_install


@dataclass(frozen=True)
class VisionTransformer:
    """A published network that transformers knows.

    Args:
        repository: its name on the Hugging Face hub.
        model: transformers' class.
        licence: its terms of use.
    """

    repository: str
    model: str
    licence: str


VISION_TRANSFORMERS = {
    "clip": VisionTransformer("openai/clip-vit-large-patch14-336", "CLIPVisionModelWithProjection", "MIT"),
    "dinov2": VisionTransformer("facebook/dinov2-large", "Dinov2Model", "Apache-2.0"),
}
CLIP_TEXT = replace(VISION_TRANSFORMERS["clip"], model="CLIPTextModelWithProjection")


def load_clip_text(path: str | None = None) -> tuple[Any, Any, str]:
    """CLIP's text half, its tokenizer and it in a few words; arguments and errors as for `load_vision_transformer`."""
    network, words = _load("clip", CLIP_TEXT, path)
    from transformers import AutoTokenizer

    place = path or CLIP_TEXT.repository
    try:
        return network, AutoTokenizer.from_pretrained(place, local_files_only=True), words
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise WeightsError(f"{place} has no tokenizer of CLIP: {reason}") from None


def load_vision_transformer(name: str, path: str | None = None) -> tuple[Any, str]:
    """The network `name` in float32, and it in a few words: where it came from and its terms of use.

    Nothing is downloaded: it lies in Hugging Face's cache or in a folder.

    Args:
        name: a key of `VISION_TRANSFORMERS`.
        path: a folder with a network of that kind, as transformers saves it; None takes the published one.

    Raises:
        WeightsError: transformers is not installed, or there is no such network on this machine.
    """
    return _load(name, VISION_TRANSFORMERS[name], path)


def _load(name: str, known: VisionTransformer, path: str | None) -> tuple[Any, str]:
    try:
        import transformers
    except ImportError:
        raise WeightsError(f"{name} needs transformers: {pip_install('transformers')}") from None
    if path is not None and not (Path(path) / "config.json").is_file():
        raise WeightsError(f"{path} holds no config.json; expected a folder of {known.model}.save_pretrained.")
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it would list every weight of CLIP's text half
    try:
        found, told = getattr(transformers, known.model).from_pretrained(
            path or known.repository, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if path is not None:
            reason = str(error).strip().partition("\n")[0]
            raise WeightsError(f"{path} cannot be read as {known.model}: {reason}") from None
        raise WeightsError(
            f"{name} is not on this machine. Fetch it: hf download {known.repository}, or name a folder as `path`."
        ) from None
    finally:
        transformers.logging.set_verbosity(verbosity)
    if missing := sorted(told["missing_keys"]):
        raise WeightsError(f"{path or known.repository} has no {missing[0]}; expected the weights of {known.model}.")
    return found, f"{name} from {path or known.repository} ({known.licence if path is None else 'your own'})"
