"""What is compared in each table and figure: arms, each a preset with its changes, trained on the same batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

T100, T400 = "mldm", "mldm-t400"  # presets of section 5


@dataclass(frozen=True)
class Arm:
    """One column of a comparison.

    Args:
        name: in commands, folders and reports.
        what: in words.
        preset: what is optimised; None for the model as it is, without training.
        sets: changes to the preset, each `a.b=c`.
        as_long_as: the arm whose time this one is given, instead of its number of steps.
    """

    name: str
    what: str
    preset: str | None = None
    sets: tuple[str, ...] = ()
    as_long_as: str | None = None


@dataclass(frozen=True)
class Recipe:
    """One comparison.

    Args:
        name: of the command.
        what: a sentence, with its source.
        arms: the first is what the others are compared with.
        seeds: of training, how many by default.
        prompts: how many pictures each run draws at the mini scale.
        metrics: of pictures, at the mini scale; all that can be had where none is named.
        family: comparisons that share data and trainings in one folder; its own name where it shares with none.
        stages: of a training at which it is judged, the last at its end.
        repetitions: pictures of each prompt.
        keypoints: whether the drawings have keypoints, at the mini scale.
    """

    name: str
    what: str
    arms: tuple[Arm, ...]
    seeds: int = 1
    prompts: int = 100
    metrics: tuple[str, ...] = ()
    family: str = ""
    stages: int = 1
    repetitions: int = 1
    keypoints: bool = False


def _weights(lpips: float, face: float) -> tuple[str, ...]:
    return f"losses.masked_lpips.weight={lpips}", f"losses.face.weight={face}"


NO_LOSSES = ("losses={}",)  # a preset's settings with the plain loss
PLAIN = Arm("plain", "the plain loss", "baseline")
BASE = Arm("base", "the model before training")
RELEASED = Arm("released", "the released code's objective: losses without gradient", "mldm-released-objective")
P2 = Arm("p2", "P2 weighting", "p2")


def _added(name: str, what: str, limit: str = "400") -> Arm:
    """The plain loss and one more, whose gradient is a quarter as long as the plain one's, whatever its scale."""
    loss = f"losses.{name}"
    sets = ("combine=additive", f"{loss}.weight=0.25", f"{loss}.balance=gradient", f"{loss}.max_timestep={limit}")
    return Arm(name, what, "baseline", sets)


PAPER_OF_FACES = "Conditioning Diffusion Models via Attributes and Semantic Masks"
FACES = "faces"  # their family
OF_SETS = ("fd_vgg16", "kd_vgg16", "fid", "kid")
OF_ATTRIBUTES, OF_MASKS = ("attribute_accuracy",), ("mask_accuracy", "mask_miou")
DIVERSITY = ("condition_diversity",)
FACES_P2 = Arm("p2", "no condition, P2 weighting", "faces-unconditional")
FACES_PLAIN = Arm("plain", "no condition, the plain loss", "faces-unconditional", ("base.gamma=0",))
FROM_ATTRIBUTES = Arm("attributes", "forty attributes, one token", "faces-attributes")
FROM_MASK = Arm("mask", "a mask of eighteen parts, 64 tokens", "faces-mask")
FROM_POOLED = Arm("mask_pooled", "the same mask, one token", "faces-mask-pooled")
FROM_BOTH = Arm("multi", "attributes and mask, 65 tokens", "faces-multi")


def _of_faces(
    number: int, what: str, arms: tuple[Arm, ...], metrics: tuple[str, ...], prompts: int, **options: Any
) -> Recipe:
    name, what = f"faces-table{number}", f"{PAPER_OF_FACES}, Table {number}: {what}"
    return Recipe(name, what, arms, prompts=prompts, metrics=(*OF_SETS, *metrics), family=FACES, **options)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "table1",
            "Masked LDM, Table 1: the plain loss, Stable Diffusion, and λ₁ = 0.1, λ₂ = 0.5 with T = 100 and 400",
            (
                PLAIN,
                BASE,
                Arm("t100", "Masked LDM, T = 100", "mldm-table1-t100"),
                Arm("t400", "Masked LDM, T = 400", "mldm-table1-t400"),
            ),
        ),
        Recipe(
            "figure5",
            "Masked LDM, Figure 5: the same noise under other T, λ₁ and λ₂",
            (
                Arm("best", "λ₁ = 0.2, λ₂ = 0.5, T = 100", T100),
                Arm("t400", "T = 400", T400),
                Arm("lpips_0.1", "λ₁ = 0.1", T100, _weights(0.1, 0.5)),
                Arm("face_0.7", "λ₂ = 0.7", T100, _weights(0.2, 0.7)),
                Arm("face_0.2", "λ₂ = 0.2", T100, _weights(0.2, 0.2)),
            ),
            prompts=24,
        ),
        Recipe(
            "ablation-lambda",
            "Masked LDM's λ₂ from 0 to 0.75 at λ₁ = 0.2, T = 400",
            (
                PLAIN,
                *(Arm(f"face_{w}", f"λ₂ = {w}", T400, _weights(0.2, w)) for w in (0, 0.25, 0.5, 0.75)),
            ),
        ),
        Recipe(
            "p2",
            "P2 weighting (k = 1, γ = 0.5), alone and with Masked LDM, against the plain loss",
            (PLAIN, P2, Arm("mldm_p2", "Masked LDM with P2 weighting", "mldm-p2")),
        ),
        Recipe(
            "likeness",
            "A LoRA of somebody whom people-mini has never seen, of ten photographs",
            (
                Arm("masked_ldm", "Masked LDM", "demo"),
                Arm("plain", "the plain loss", "demo", NO_LOSSES),
                Arm(
                    "plain_same_time",
                    "the plain loss, as long as Masked LDM takes",
                    "demo",
                    NO_LOSSES,
                    as_long_as="masked_ldm",
                ),
            ),
            seeds=5,
            prompts=9,
        ),
        Recipe(
            "evidence",
            "The study of docs/evidence.md: does Masked LDM make better people?",
            (
                PLAIN,
                BASE,
                Arm("t100", "Masked LDM, T = 100", T100),
                Arm("t400", "Masked LDM, T = 400", T400),
                Arm("additive", "Masked LDM, T = 400, additive mix", T400, ("combine=additive",)),
                Arm("face_0", "λ₂ = 0, T = 400", T400, _weights(0.2, 0)),
                Arm("face_0.75", "λ₂ = 0.75, T = 400", T400, _weights(0.2, 0.75)),
                RELEASED,
                P2,
                Arm(
                    "masked_mse",
                    "the plain loss, people weighted",
                    "baseline",
                    ("losses.masked_mse.weight=0.5", "losses.masked_mse.max_timestep=null"),
                ),
                Arm("plain_t100", "the plain loss, as long as T = 100 takes", "baseline", as_long_as="t100"),
                Arm("plain_t400", "the plain loss, as long as T = 400 takes", "baseline", as_long_as="t400"),
            ),
            seeds=5,
            prompts=40,
            metrics=("attributes", "kd_faceres", "kd_alexnet_person", "face_found", "pose_found"),
        ),
        Recipe(
            "losses",
            "The short studies of docs/evidence_protocol.md: what each loss that is not the paper's does in one step",
            (
                PLAIN,
                _added("latent_perceptual", "features of the VAE's decoder"),
                _added("identity", "whose face it is"),
                _added("masked_mse", "the plain loss on people", "null"),
                _added("keypoints", "hands"),
            ),
            seeds=3,
            prompts=0,
            keypoints=True,
        ),
        _of_faces(
            1, "P2 weighting and the plain loss, as training goes on", (FACES_PLAIN, FACES_P2), (), 200, stages=3
        ),
        _of_faces(2, "without a condition", (FACES_PLAIN, FACES_P2), ("face_found",), 500),
        _of_faces(
            3,
            "from attributes",
            (FACES_P2, FROM_ATTRIBUTES),
            (*OF_ATTRIBUTES, *DIVERSITY),
            30,
            repetitions=10,
        ),
        _of_faces(
            4,
            "from masks, whose places are kept or averaged",
            (FROM_MASK, FROM_POOLED),
            (*OF_MASKS, *DIVERSITY),
            30,
            repetitions=10,
        ),
        _of_faces(
            5,
            "from attributes, masks, and both",
            (FROM_BOTH, FROM_ATTRIBUTES, FROM_MASK, FROM_POOLED),
            (*OF_ATTRIBUTES, *OF_MASKS, *DIVERSITY),
            30,
            repetitions=10,
        ),
    )
}
