"""The study's claims, written down before it was run (docs/evidence_protocol.md), and what its pictures say of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from mldm_plugin.errors import DataError, MldmError
from mldm_plugin.evaluation import statistics
from mldm_plugin.evaluation.notes import read_notes
from mldm_plugin.evaluation.one_step import TIMESTEPS
from mldm_plugin.evaluation.quantities import QUANTITIES
from mldm_plugin.perceptual.laplacian import luma
from mldm_plugin.plugins import Plugins
from mldm_plugin.records.files import write_text

Array = NDArray[np.float64]
Direction = Literal["smaller", "larger", "equal"]
FILE = "study.json"
JUDGES = {"face": "faceres", "lpips": "alex"}  # docs/evidence_protocol.md
OTHER_JUDGES = {"likeness": {"face": "faceres", "lpips": "vgg"}}  # preset demo trains with AlexNet's LPIPS


@dataclass(frozen=True)
class Claim:
    """One comparison of two arms that a hypothesis rests on.

    Args:
        hypothesis: H1 to H7, L1 to L4 of single losses.
        metric: a metric of `mldm evaluate`, or a quantity of its one-step measurements.
        arm, against: which arms.
        predicted: which of them the hypothesis expects to be smaller or larger; `equal` for no difference.
        refuted_by: what speaks against it; None for the opposite of what is predicted.
    """

    hypothesis: str
    metric: str
    arm: str
    against: str
    predicted: Direction
    refuted_by: Direction | None = None


FACES, PEOPLE = "one_step_face", "one_step_lpips_person"
JUDGED: tuple[tuple[str, Direction], ...] = (
    (FACES, "smaller"),
    (PEOPLE, "smaller"),
    ("kd_faceres", "smaller"),
    ("kd_alexnet_person", "smaller"),
    ("attributes", "larger"),
)


def _better(hypothesis: str, arm: str, against: str) -> tuple[Claim, ...]:
    return tuple(Claim(hypothesis, metric, arm, against, direction) for metric, direction in JUDGED)


def _alike(against: str) -> tuple[Claim, ...]:
    return (
        Claim("H6", "identity", "masked_ldm", against, "larger"),
        Claim("H6", FACES, "masked_ldm", against, "smaller"),
        Claim("H6", "copying", "masked_ldm", against, "equal", "larger"),
    )


CLAIMS: dict[str, tuple[Claim, ...]] = {
    "evidence": (
        *_better("H1", "t100", "plain"),
        *_better("H2", "t100", "plain_t100"),
        Claim("H3", "one_step_blur_person", "t400", "t100", "larger"),
        Claim("H3", "detail", "t400", "t100", "smaller"),
        Claim("H3", "slope", "t400", "t100", "smaller"),
        Claim("H4", FACES, "face_0.75", "face_0", "smaller"),
        Claim("H4", "one_step_lpips_outside", "face_0.75", "face_0", "larger"),
        Claim("H4", "attributes", "face_0.75", "face_0", "smaller"),
        *(Claim("H5", metric, "released", "plain", "equal", better) for metric, better in JUDGED),
        *_better("H7", "p2", "plain"),
    ),
    "likeness": (*_alike("plain"), *_alike("plain_same_time")),
    "losses": (
        Claim("L1", PEOPLE, "latent_perceptual", "plain", "smaller"),
        Claim("L2", FACES, "identity", "plain", "smaller"),
        Claim("L3", "one_step_error_person", "masked_mse", "plain", "smaller"),
        Claim("L4", PEOPLE, "keypoints", "plain", "smaller"),
    ),
}


class Study:
    """What an evaluation wrote down, by arm.

    Args:
        report: its folder.
        plugins: with the metrics of sets.
        claims: that are judged.
        judges: the networks of the one-step measurements.

    Raises:
        MldmError: the one-step measurements were judged by other networks than the protocol names.
    """

    def __init__(
        self, report: Path, plugins: Plugins, claims: Sequence[Claim], judges: Mapping[str, str] = JUDGES
    ) -> None:
        self.report, self.plugins, self.claims = report, plugins, claims
        self.results = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
        self.runs = {model["name"]: len(model["runs"]) for model in self.results["models"]}
        for mark in sorted(report.glob("one_step/*/*/made.json")):
            if (asked := json.loads(mark.read_text(encoding="utf-8"))["judges"]) != judges:
                raise MldmError(f"{mark.parent} was judged by {asked}, expected {dict(judges)}: fetch their weights.")
        self.repetitions = self.results["sampling"]["repetitions"]
        self.cases = [case["key"] for case in self.results["cases"]]

    def write(self) -> Path:
        """study.json: each arm's means by training seed, and what is said of each claim.

        Raises:
            MldmError: something that is claimed was not measured.
        """
        arms = {arm: self._means(arm) for arm in self.runs}
        known = {metric for of_arm in arms.values() for metric in of_arm["metrics"]}
        for claim in self.claims:
            if not {claim.arm, claim.against} <= self.runs.keys() or claim.metric not in known:
                raise MldmError(f"{self.report} cannot say anything of {claim}: an arm or the metric was not measured.")
        found = corrected([self.judge(claim) for claim in self.claims])
        out = self.report / FILE
        study = {"arms": arms, "timesteps": TIMESTEPS, "claims": found}
        write_text(out, json.dumps(_rounded(study), indent=1, allow_nan=False) + "\n")
        return out

    def judge(self, claim: Claim) -> dict[str, Any]:
        """The paired difference of two arms, over the same seeds, prompts and noise, and what could have been seen."""
        gap = self.difference(claim.metric, claim.arm, claim.against)
        runs = min(self.runs[claim.arm], self.runs[claim.against])
        freedom = runs - 1 if runs > 1 else max(len(self.cases) - 1, 1)  # the fewest that the interval may have
        mean = self._means(claim.against)["metrics"][claim.metric]["mean"]
        return {**asdict(claim), **asdict(gap), "against_mean": mean, "freedom": freedom}

    def difference(self, metric: str, arm: str, against: str) -> statistics.Estimate:
        """arm − against."""
        if metric in self.plugins.metrics.entries and self._is_of_sets(metric):
            ours, theirs = self._of_set(metric, arm), self._of_set(metric, against)
            sizes = (self.runs[arm], self.runs[against])
            return statistics.set_difference(ours, theirs, sizes, len(self.cases), same_seeds=sizes[0] == sizes[1])
        one, other = self.values(metric, arm), self.values(metric, against)
        return statistics.paired_difference(one, other, same_seeds=len(one) == len(other))

    def values(self, metric: str, arm: str) -> Array:
        """(R, C) of a metric of pictures or photographs; the one-step quantities are means over t."""
        if metric in ("detail", "slope"):
            index = ("detail", "slope").index(metric)
            return self._textures[arm][:, :, index]
        if any(quantity.name == metric for quantity in QUANTITIES):
            return self.one_step(metric, arm).mean(2)
        label, repetitions = self._label(metric), range(self.repetitions)
        found = [
            [[_number(notes[key, r].get(label)) for r in repetitions] for key in self.cases]
            for notes in self._measured[arm]
        ]
        return np.array(found).mean(2)

    def one_step(self, quantity: str, arm: str) -> Array:
        """(R, photographs, t)."""
        names = [f"{quantity}@{t}" for t in TIMESTEPS]
        return np.stack(
            [[[_number(notes[key].get(n)) for n in names] for key in sorted(notes)] for notes in self._one_step[arm]]
        )

    def _means(self, arm: str) -> dict[str, Any]:
        """By training seed."""
        metrics: dict[str, Any] = {}
        textures = ["detail", "slope"] if self.cases else []  # of drawn pictures, where there are some
        for metric in [m["name"] for m in self.results["metrics"]] + textures:
            if metric in self.plugins.metrics.entries and self._is_of_sets(metric):
                of_runs = [self._of_set(metric, arm)(run, range(len(self.cases))) for run in range(self.runs[arm])]
            else:
                of_runs = np.nanmean(self.values(metric, arm), axis=1).tolist()
            metrics[metric] = {"mean": float(np.mean(of_runs)), "seeds": of_runs}
        curves = {q.name: np.nanmean(self.one_step(q.name, arm), axis=1).tolist() for q in QUANTITIES}
        return {"runs": self.runs[arm], "metrics": metrics, "curves": curves}

    def _folders(self, kind: str, arm: str) -> list[Path]:
        return [self.report / kind / arm / str(number) for number in range(self.runs[arm])]

    @cached_property
    def _measured(self) -> dict[str, list[Any]]:
        return {arm: [read_notes(folder) for folder in self._folders("measured", arm)] for arm in self.runs}

    @cached_property
    def _one_step(self) -> dict[str, list[Any]]:
        return {arm: [read_notes(folder) for folder in self._folders("one_step", arm)] for arm in self.runs}

    @cached_property
    def _real(self) -> Any:
        return read_notes(self.report / "measured" / "photographs")

    @cached_property
    def _textures(self) -> dict[str, Array]:
        """(R, C, 2): detail and spectral slope of every picture."""
        return {
            arm: np.array([[texture(folder / f"{key}-0.png") for key in self.cases] for folder in folders])
            for arm in self.runs
            if (folders := self._folders("pictures", arm))
        }

    def _label(self, metric: str) -> str:
        """The name that a metric's values have, which ends in a digest of its source."""
        notes = next(iter(self._measured.values()))[0]
        return next((label for label in next(iter(notes.values())) if label.partition("@")[0] == metric), metric)

    def _is_of_sets(self, metric: str) -> bool:
        return any(m["name"] == metric and m["kind"] == "set" for m in self.results["metrics"])

    def _of_set(self, metric: str, arm: str) -> Callable[[int, Sequence[int]], float]:
        label, distance = self._label(metric), self.plugins.metrics[metric]().distance
        real = _stacked(values.get(label) for values in self._real.values())

        def value(run: int, cases: Sequence[int]) -> float:
            notes = self._measured[arm][run]
            keys = [(self.cases[c], r) for c in cases for r in range(self.repetitions)]
            try:
                return float(distance(_stacked(notes[key].get(label) for key in keys), real))
            except DataError:  # too few faces are found in its pictures
                return math.nan

        return value


def corrected(claims: list[dict[str, Any]], pending: int = 0) -> list[dict[str, Any]]:
    """Claims with p-values corrected for their number, verdicts, and what each could have shown.

    So many `pending` claims, of studies that are not done, count as if nothing had been shown in them.

    `detectable` is the difference that four of five such studies would show with this standard error: (t₁₋ₐ + t₀.₈) ·
    error, a = .025 / number of claims, with the fewest degrees of freedom that the interval may have.
    """
    given = [one["p"] if one["p"] is not None else math.nan for one in claims]
    p_values = statistics.holm([*given, *[1.0] * pending])[: len(claims)]
    level = 1 - (1 - statistics.LEVEL) / 2 / max(len(claims) + pending, 1)
    for one, p in zip(claims, p_values, strict=True):
        reach = float(stats.t.ppf(level, one["freedom"]) + stats.t.ppf(statistics.POWER, one["freedom"]))
        one |= {"p_holm": p, "detectable": None if one["error"] is None else reach * one["error"]}
        one |= {"verdict": verdict(one), "refuted": is_refuted(one)}
    return claims


def is_refuted(found: dict[str, Any]) -> bool:
    """Whether the interval lies on the side that speaks against the hypothesis, before any correction."""
    opposite = {"smaller": "larger", "larger": "smaller"}.get(found["predicted"])
    against = found["refuted_by"] or opposite
    if found["low"] is None or not found["low"] <= found["high"]:
        return False
    return bool(found["low"] > 0 if against == "larger" else found["high"] < 0)


def verdict(found: dict[str, Any]) -> str:
    """`shown`, `the opposite is shown` or `not shown`; for a predicted equality `a difference is shown` or not."""
    known = found["low"] is not None and found["low"] <= found["high"]
    holds_zero = not known or not (found["low"] > 0 or found["high"] < 0)
    if holds_zero or not found["p_holm"] < 1 - statistics.LEVEL:
        return "no difference is shown" if found["predicted"] == "equal" else "not shown"
    if found["predicted"] == "equal":
        return "a difference is shown"
    return "shown" if (found["value"] < 0) == (found["predicted"] == "smaller") else "the opposite is shown"


def texture(path: Path) -> tuple[float, float]:
    """log₂ of the mean squared Laplacian of the luma, and the slope of log power over log frequency.

    The slope is that of the radially averaged power spectrum from 4 cycles a picture to half of Nyquist's frequency,
    under a Hann window; about −2 for photographs, lower for smooth ones.

    Source: Field, "Relations between the statistics of natural images and the response properties of cortical cells",
    1987.
    """
    from mldm_plugin.evaluation.one_step import detail
    from mldm_plugin.evaluation.picture import read_image

    image = read_image(path)[None]
    grey = luma(image)[0, 0]
    side = min(grey.shape)
    grey = grey[:side, :side] * torch.hann_window(side)[:, None] * torch.hann_window(side)
    power = torch.fft.fft2(grey - grey.mean()).abs().square().numpy()
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(side) * side,) * 2))
    rings = np.arange(4, side // 4)
    radial = [power[(frequency >= ring) & (frequency < ring + 1)].mean() for ring in rings]
    slope = float(np.polyfit(np.log(rings + 0.5), np.log(np.array(radial) + 1e-12), 1)[0])
    return math.log2(float(detail(image, torch.ones_like(image[:, :1])))), slope


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _stacked(rows: Iterator[Any] | Any) -> torch.Tensor:
    filled = [row for row in rows if row is not None and len(row)]
    return torch.from_numpy(np.concatenate(filled)) if filled else torch.zeros(0, 1)


def _rounded(value: Any) -> Any:
    """Six digits; NaN as null."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
