"""What is measured of a one-step estimate, by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """One of the things that are measured of an estimate, all better when smaller."""

    name: str
    title: str
    what: str


QUANTITIES = (
    Quantity("one_step_error", "error of ε, whole picture", "squared error of the network's output, as one of ε"),
    Quantity("one_step_error_person", "error of ε, people", "squared error on the latents that people cover"),
    Quantity("one_step_lpips_person", "LPIPS of x̂₀, people", "LPIPS of the decoded estimate on the people's mask"),
    Quantity("one_step_lpips_outside", "LPIPS of x̂₀, elsewhere", "LPIPS of the decoded estimate where no people are"),
    Quantity("one_step_blur_person", "blur of x̂₀, people", "detail that people have lost, in octaves"),
    Quantity("one_step_face", "face distance of x̂₀", "cosine distance of face embeddings, at the annotated boxes"),
)
