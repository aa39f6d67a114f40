"""What a calibration found, for people and for programs: a table, calibration.json and a figure."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mldm_plugin.calibration.propose import LEAST, Telling, as_json, max_timestep, weight
from mldm_plugin.engine.schedule import NoiseSchedule, stable_diffusion_snr
from mldm_plugin.evaluation.figures import COLOURS, DPI, STYLE, SUFFIXES
from mldm_plugin.preset import LossSettings
from mldm_plugin.records.files import write_changed, write_text
from mldm_plugin.requirements import pip_install

log = logging.getLogger(__name__)

JSON, FIGURE = "calibration.json", "calibration"
MOST_FLOOR = 0.5  # of a loss; chosen: where there is more, the VAE's error is most of what it sees


@dataclass(frozen=True)
class Proposal:
    """T and λ of a loss.

    Args:
        limit: T in timesteps of Stable Diffusion; None where the loss tells nothing at any.
        snr: at T, the same on every schedule.
        own: the timestep of the model's own schedule that has it.
        weight: λ; None where it has no gradient, or no T.
        floor: the part of its value at T that the VAE alone leaves.
    """

    limit: int | None
    snr: float | None
    own: float | None
    weight: float | None
    floor: float = 0.0

    @property
    def flow(self) -> float | None:
        """σ of flow matching with this SNR: SNR = ((1 − σ)/σ)²."""
        return None if self.snr is None else 1 / (1 + self.snr**0.5)


def propose(
    telling: Telling, timesteps: Sequence[int], schedule: NoiseSchedule, *, additive: bool, share: float
) -> Proposal:
    """The largest T at which the loss still tells photographs apart, and λ for this share of the gradient there."""
    if not telling.photographs or (limit := max_timestep(telling.tells(), timesteps)) is None:
        return Proposal(None, None, None, None)
    strength = weight(telling, timesteps, limit, additive, share)
    snr = stable_diffusion_snr()[limit].item()
    own = telling.means()[0][list(timesteps).index(limit)]
    floor = telling.mean_floor() / own if own > 0 else 0.0
    return Proposal(limit, snr, schedule.timestep_at(snr), strength if np.isfinite(strength) else None, floor)


def lines(
    tellings: Mapping[str, Telling], proposals: Mapping[str, Proposal], timesteps: Sequence[int], share: float
) -> Iterator[str]:
    """For a terminal."""
    snr = stable_diffusion_snr()
    for name, telling in tellings.items():
        if not telling.photographs:
            yield f"{name}: no photograph had what it looks at"
            continue
        floor = f"encoded and decoded alone {telling.mean_floor():.3g} (the VAE's floor)"
        yield f"{name}: {telling.photographs} photographs; {floor}"
        yield f"  {'t':>5} {'SNR':>9} {'own':>10} {'floor/own':>10} {'other':>10} {'signal':>8} {'right':>6}"
        own, other = telling.means()
        for t, a, b, signal, right in zip(timesteps, own, other, telling.signal(), telling.right(), strict=True):
            part = f"{telling.mean_floor() / a:.0%}" if a else "–"
            yield f"  {t:>5} {snr[t].item():>9.3g} {a:>10.3g} {part:>10} {b:>10.3g} {signal:>8.3g} {right:>6.0%}"
    yield ""
    for name, proposal in proposals.items():
        yield f"{name}: {_told(proposal, share)}"
    if settings := list(flags(proposals)):
        yield f"\n{' '.join(settings)}"


def crowded(proposals: Mapping[str, Proposal], losses: Mapping[str, LossSettings]) -> Iterator[str]:
    """That the convex mix has no room for all of the weights together.

    Args:
        losses: of the preset; what got no weight proposed keeps its own.
    """
    kept = {name: loss.weight for name, loss in losses.items()}
    total = sum((kept | {name: p.weight for name, p in proposals.items() if p.weight is not None}).values())
    if total > 1:
        yield (
            f"These weights are {total:.2g} together, more than the 1 that combine: convex shares out, for each was "
            "proposed beside the plain loss alone: ask for a smaller --share, or set combine=additive."
        )


def _told(proposal: Proposal, share: float) -> str:
    if proposal.limit is None:
        why = f"signal below {LEAST:g}, or so few photographs that it may be chance"
        return f"it is not shown to tell photographs apart from the first of these t on ({why}): no T is proposed"
    where = f"T = {proposal.limit} (SNR {proposal.snr:.3g}; σ = {proposal.flow:.2f} of a flow)"
    if proposal.floor > MOST_FLOOR:
        where += f", {proposal.floor:.0%} of it the VAE's own error, which target: decoded takes out"
    if proposal.weight is None:
        return f"{where}; it has no gradient at the network's output there, so no weight is proposed"
    return f"{where}, weight {proposal.weight:.2g} for {share:.0%} of the gradient"


def flags(proposals: Mapping[str, Proposal]) -> Iterator[str]:
    """What gives a preset the proposed values."""
    for name, proposal in proposals.items():
        if proposal.limit is not None:
            yield f"--set losses.{name}.max_timestep={proposal.limit}"
        if proposal.weight is not None:
            yield f"--set losses.{name}.weight={proposal.weight:.2g}"


def write(
    out: Path, tellings: Mapping[str, Telling], proposals: Mapping[str, Proposal], timesteps: Sequence[int]
) -> list[Path]:
    """calibration.json, and where matplotlib is there the figure as PNG and SVG. Returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    found = {name: _as_numbers(tellings[name], proposals[name]) for name in tellings}
    write_text(out / JSON, json.dumps({"timesteps": list(timesteps), "losses": found}, indent=1) + "\n")
    return [out / JSON, *_draw(out, tellings, proposals, timesteps)]


def _as_numbers(telling: Telling, proposal: Proposal) -> dict[str, Any]:
    numbers: dict[str, Any] = {"photographs": telling.photographs, "floor": as_json(telling.mean_floor())}
    if telling.photographs:
        own, other = telling.means()
        each = {"own": own, "other": other, "signal": telling.signal(), "right": telling.right()}
        numbers |= {name: as_json(values) for name, values in each.items()}
    return numbers | {"T": proposal.limit, "SNR": proposal.snr, "own_timestep": proposal.own, "weight": proposal.weight}


def _draw(
    out: Path, tellings: Mapping[str, Telling], proposals: Mapping[str, Proposal], timesteps: Sequence[int]
) -> list[Path]:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        log.info(f"no figure is drawn, it needs matplotlib: {pip_install('matplotlib')}")
        return []
    there = {name: telling for name, telling in tellings.items() if telling.photographs}
    if not there:
        return []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 2.1 * len(there) + 0.4), layout="constrained")
        grid: Any = figure.subplots(len(there), 2, squeeze=False)
        for axes, (name, telling) in zip(grid, there.items(), strict=True):
            _draw_loss(axes, name, telling, proposals[name].limit, timesteps)
        files = []
        for suffix, metadata in SUFFIXES.items():
            stream = io.BytesIO()
            figure.savefig(stream, format=suffix, dpi=DPI, metadata=metadata)
            files.append(out / f"{FIGURE}.{suffix}")
            write_changed(files[-1], stream.getvalue())
    return files


def _draw_loss(axes: Any, name: str, telling: Telling, limit: int | None, timesteps: Sequence[int]) -> None:
    """Left the distances, right the signal to noise, both over t."""
    own, other = telling.means()
    left, right = axes
    left.plot(timesteps, other, color=COLOURS[2], marker="s", markersize=3, label="another photograph")
    left.plot(timesteps, own, color=COLOURS[1], marker="o", markersize=3, label="its own")
    left.axhline(telling.mean_floor(), color=COLOURS[0], linestyle=":", label="the VAE's floor")
    left.set(title=f"{name}: distance of the clean estimate to", xlabel="t")
    left.set_ylim(0, 1.1 * max(own.max(), other.max()))
    left.legend(frameon=False, fontsize=6)
    signal = telling.signal()
    shown = np.where(signal > 0, signal, np.nan)
    right.plot(timesteps, shown, color=COLOURS[1], marker="o", markersize=3)
    right.axhline(LEAST, color=COLOURS[0], linestyle=":")
    right.set(title="signal to noise", xlabel="t")
    right.set_xlim(left.get_xlim())
    if np.isfinite(shown).any():
        right.set_yscale("log")
        right.yaxis.set_major_formatter("{x:g}")
        right.yaxis.set_minor_formatter("")
    if limit is not None:
        right.axvline(limit, color=COLOURS[3], linewidth=0.8)
        label = {"xytext": (-3, -3), "textcoords": "offset points", "ha": "right", "va": "top", "fontsize": 7}
        right.annotate(f"T = {limit}", (limit, 1), xycoords=("data", "axes fraction"), color=COLOURS[3], **label)
