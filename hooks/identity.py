"""Identity: likeness to a person, in the eyes of a face recognition network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mldm_plugin import DiffusionStep, hookimpl
from mldm_plugin.errors import DataError
from mldm_plugin.perceptual.face_crops import largest
from mldm_plugin.perceptual.face_embedding import FaceEmbedding, weight_files
from mldm_plugin.perceptual.identity_bank import IdentityBank, load_bank

# a: 1 − the mean cosine of two people's faces, 1 where it was not measured. docs/losses/identity.md has the run.
APART = {"dlib_resnet": 0.128}


def identity_distance(
    likeness: Tensor, others: Tensor, negative: Tensor, temperature: float, contrast: float
) -> Tensor:
    """d_k = 1 − s_k + c · (log(e^{s_k/τ} + Σ_j e^{n_kj/τ}) − s_k/τ) of each face: its distance, and InfoNCE.

    Args:
        likeness: s, (K,) ≤ 1, to who the face should be; gradients flow, as for `others`.
        others: n, (K, J), its likeness to J faces.
        negative: (K, J) bool, which of them are somebody else's.
        temperature, contrast: τ > 0, c ≥ 0.

    Returns:
        (K,) ≥ 0.

    >>> likeness, others = torch.tensor([1.0, 0.5]), torch.tensor([[0.0], [0.5]])
    >>> identity_distance(likeness, others, torch.tensor([[False], [True]]), 0.1, 1.0)  # 0, and 1/2 + log 2
    tensor([0.0000, 1.1931])
    """
    logits = torch.cat([likeness[:, None], others.masked_fill(~negative, float("-inf"))], dim=1) / temperature
    return 1 - likeness + contrast * (logits.logsumexp(dim=1) - logits[:, 0])


class Identity:
    """Who the face in the estimate is: the cosine of its embedding with that of the photograph's face, cut out alike.

    The cosine is told as a likeness, 1 − (1 − cos)/a: 1 for the same face, on average 0 for two people's. With `bank`
    also with reference photographs of that person; who a face is, is told from the photograph. All others, in the bank
    and in the picture, are negatives that the face must not be like. With it `identity/copying` is logged: by how much
    the estimate is more like a reference than the photograph is, and than two photographs of that person ever are.

    Args:
        network: `dlib_resnet`, free for any use, `vggface2_resnet50` or `vggface2_inception`, by the mean over pixels
            of their last stage.
        weights: `pretrained`, or `random` (seeded, for tests and demos).
        align: how both faces are cut out: `box`, the square around the photograph's, or `landmarks`, by its eyes, nose
            and mouth, as MTCNN finds them in the box; where it finds none the box stands in, as `identity/by_box` says.
        bank: folder of reference photographs of each person, as `mldm data folder` makes it of folders of their names.
        bank_share: weight of the references in s_k, in [0, 1], the photograph's own face has the rest.
        contrast: c, weight of InfoNCE; 0 leaves negatives out.
        temperature: τ of InfoNCE.
        max_faces: at most so many faces of an image, the largest ones; null takes all.

    Raises:
        DataError: a bank that cannot be read, or has a single photograph of somebody.
        WeightsError: pretrained weights that cannot be had.

    Source: Guo et al., "PuLID" (arXiv 2404.16022), for the cosine on a clean estimate; "WithAnyone" (arXiv 2510.14975)
    for aligning by the photograph's face, and for InfoNCE with all others of a bank. Differs: τ, `bank_share` and
    `contrast` are chosen.

    Example:
        >>> z, box = torch.zeros(1, 4, 4, 4), [torch.tensor([[8.0, 8.0, 24.0, 28.0]])]
        >>> step = DiffusionStep(
        ...     latents=z, noise=z, noisy_latents=z, timesteps=torch.tensor([10]), model_pred=z, target=z,
        ...     face_boxes=box, pred_images=torch.ones(1, 3, 32, 32), target_images=torch.ones(1, 3, 32, 32),
        ... )
        >>> bool(Identity(weights="random")(step).abs() < 1e-6)
        True
    """

    needs = frozenset({"pred_images", "face_boxes"})
    weight_files = staticmethod(weight_files)

    def __init__(
        self,
        *,
        network: Literal["dlib_resnet", "vggface2_resnet50", "vggface2_inception"] = "dlib_resnet",
        weights: Literal["pretrained", "random"] = "pretrained",
        align: Literal["box", "landmarks"] = "box",
        bank: str | None = None,
        bank_share: Annotated[float, Field(ge=0, le=1)] = 0.5,
        contrast: Annotated[float, Field(ge=0)] = 1.0,
        temperature: Annotated[float, Field(gt=0)] = 0.1,
        max_faces: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        self.embedded = FaceEmbedding(network, weights, align)
        self.features = self.embedded.features
        self.networks, self.max_faces = self.embedded.networks, max_faces
        self.apart = APART.get(network, 1.0)
        self.bank_share, self.contrast, self.temperature = bank_share, contrast, temperature
        self.bank: IdentityBank | None = None
        self.logs: tuple[str, ...] = ("by_box",) if align == "landmarks" else ()
        if bank is not None:
            self.bank = load_bank(bank, lambda photo: self.embedded.of(photo[0][None], [photo[1]])[0])
            self.logs = (*self.logs, "copying")

    def __call__(self, step: DiffusionStep) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """(n,) the mean over each image's faces, with gradient to `pred_images`; and what is logged, where it is."""
        if step.pred_images is None or step.target_images is None or step.face_boxes is None:
            raise DataError("identity needs pred_images, target_images and face_boxes: LossStack fills them in.")
        boxes = [largest(b, self.max_faces) for b in step.face_boxes]
        placed, logs = self.embedded.place(step.target_images, boxes), {}
        with torch.no_grad():
            true = self.embedded(step.target_images, boxes, placed)
        faces = self.embedded(step.pred_images, boxes, placed)
        counts = [len(b) for b in boxes]
        if placed is not None:
            logs["by_box"] = _of_images((~placed.found).float(), counts)
        image = torch.tensor([i for i, n in enumerate(counts) for _ in range(n)], dtype=torch.long)
        image = image.to(faces.device, non_blocking=True)
        others = self._likeness(faces @ true.T)
        likeness = others.diagonal()
        negative = (image[:, None] == image) & ~torch.eye(len(faces), dtype=torch.bool, device=faces.device)
        if self.bank is not None:
            bank = self.bank.to(faces)
            who = bank.recognised(true, image)
            known, towards = who >= 0, self._likeness(faces @ bank.means.T)
            own = towards.gather(1, who.clamp_min(0)[:, None])[:, 0]
            likeness = torch.where(known, (1 - self.bank_share) * likeness + self.bank_share * own, likeness)
            # A stranger may be somebody of the bank whom the photograph hardly shows: only the known are kept away.
            strange = known[:, None] & (who[:, None] != torch.arange(len(bank.names), device=who.device))
            others, negative = torch.cat([others, towards], dim=1), torch.cat([negative, strange], dim=1)
            logs["copying"] = _of_images(bank.copied(faces.detach(), true, who) / self.apart, counts)
        distance = identity_distance(likeness, others, negative, self.temperature, self.contrast)
        return (_of_images(distance, counts), logs) if logs else _of_images(distance, counts)

    def _likeness(self, cosine: Tensor) -> Tensor:
        """1 for the same face, about 0 for two people's."""
        return 1 - (1 - cosine) / self.apart


def _of_images(values: Tensor, counts: list[int]) -> Tensor:
    """The mean of each image's faces, (n,); 0, with gradient, without any."""
    return torch.stack([of_image.sum() / max(len(of_image), 1) for of_image in values.split(counts)])


@hookimpl
def register_losses(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("identity", Identity)
