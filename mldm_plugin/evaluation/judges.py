"""Who judges: networks that no loss of the compared runs looked with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from mldm_plugin.evaluation.models import Model
from mldm_plugin.perceptual.lpips_network import TRUNKS
from mldm_plugin.perceptual.weights import locate
from mldm_plugin.records.run_files import PROOF

LOSS_NETWORKS = {
    "masked_lpips": "vgg",
    "face": "vggface2_resnet50",
    "identity": "dlib_resnet",
}  # where a preset leaves the network out
# Of losses that offer no other, or one of the same family; of keypoints all that its parts may look with.
ONLY_NETWORKS = {"dino": {"dinov2"}, "keypoints": {"mediapipe_hand", "mediapipe_pose"}}


@dataclass(frozen=True)
class Judges:
    """The networks that look at one-step estimates.

    Args:
        face: of `FACE_NETWORKS`.
        lpips: of `TRUNKS`.
    """

    face: str
    lpips: str

    @property
    def trunk(self) -> str:
        """The name of LPIPS' weights."""
        return TRUNKS[self.lpips]


def choose_judges(trained_on: Iterable[str]) -> Judges:
    """The first of each kind that is on this machine and that no loss used; the first one where all were used."""
    used = set(trained_on)
    face = _first(("faceres", "dlib_resnet"), used, "dlib_resnet")
    trunk = _first(("alexnet", "vgg16"), used, "alexnet")
    return Judges(face, next(name for name, of in TRUNKS.items() if of == trunk))


def _first(names: tuple[str, ...], used: set[str], otherwise: str) -> str:
    here = [name for name in names if locate(name) is not None]
    return next((name for name in here if name not in used), here[0] if here else otherwise)


def networks_of_losses(model: Model) -> set[str]:
    """The networks that the losses of a model's runs look with, by the preset in their folders."""
    presets = [preset_of(Path(run.what)) for run in model.runs]
    return {name for path in presets if path is not None for name in networks_in(path.read_text(encoding="utf-8"))}


def preset_of(folder: Path) -> Path | None:
    """The resolved preset of a run or a part of it; in mldm/ where the trainer was somebody else's script."""
    return _of_run(folder, "preset.yaml", "mldm/preset.yaml")


def proof_of(folder: Path) -> str | None:
    """The start-up table of a run's training, where it was kept."""
    file = _of_run(folder, PROOF, f"mldm/{PROOF}")
    return None if file is None else file.read_text(encoding="utf-8")


def _of_run(folder: Path, *names: str) -> Path | None:
    places = (folder, *folder.parents[:2])  # RUN/checkpoint-N/controlnet
    return next((file for place in places for name in names if (file := place / name).is_file()), None)


def networks_in(preset: str) -> set[str]:
    """The networks that the losses of a preset, as YAML, look with."""
    losses = (yaml.safe_load(preset) or {}).get("losses") or {}
    used = {name: options for name, options in losses.items() if (options or {}).get("weight", 0)}
    networks = {options.get("network", LOSS_NETWORKS.get(name)) for name, options in used.items()}
    only = {network for name in used for network in ONLY_NETWORKS.get(name, ())}
    return only | {TRUNKS.get(network, network) for network in networks if network}
