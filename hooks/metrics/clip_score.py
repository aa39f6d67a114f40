"""clip_score: whether a picture shows what its prompt says, in the eyes of CLIP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mldm_plugin import hookimpl
from mldm_plugin.perceptual.picture_features import PictureFeatures
from mldm_plugin.perceptual.vision_transformers import load_clip_text

SCALE = 2.5  # CLIPScore's, so that values fill [0, 1] about


def clip_score(picture: Tensor, text: Tensor) -> float:
    """2.5 · max(cos(picture, text), 0) of two embeddings (d,), in [0, 2.5].

    Source: Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", eq. 1.

    Example:
        >>> clip_score(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]))
        1.5
    """
    return SCALE * max(float(F.cosine_similarity(picture.double(), text.double(), dim=0)), 0.0)


class CLIPScore:
    """How well a picture fits its prompt, CLIPScore.

    CLIP reads 77 tokens of a prompt and no more, counts badly, and hardly sees hands and small faces.

    Args:
        path: a folder with a CLIP and its tokenizer, as transformers saves them; null takes ViT-L/14 at 336 px.
            Published
            values are mostly those of ViT-B/32, of another scale.

    Raises:
        WeightsError: CLIP is not on this machine.

    Source: see `clip_score`.
    """

    title = "CLIPScore"
    better = "larger"
    asks = "cases with a prompt"

    def __init__(self, *, path: str | None = None) -> None:
        self.clip = PictureFeatures("clip", path=path)
        self._text, self._tokenizer, words = load_clip_text(path)
        self._text.requires_grad_(False).eval()
        self.networks = (*self.clip.networks, words)
        self._known: dict[str, Tensor] = {}

    def __call__(self, picture: Any) -> float | None:
        """The score in [0, 2.5]; None without a prompt."""
        text = picture.case.text
        if not text:
            return None
        if text not in self._known:
            length = self._text.config.max_position_embeddings
            tokens = self._tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
            with torch.no_grad():
                self._known[text] = self._text(tokens.input_ids).text_embeds[0]
        return clip_score(self.clip(picture)[0], self._known[text])


@hookimpl
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("clip_score", CLIPScore)
