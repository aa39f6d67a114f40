"""What attaching costs when no loss applies: a step of diffusers' script by itself against one with our calls in it.

    MLDM_DIFFUSERS_EXAMPLES=…/examples python tests/benchmarks/attach_overhead.py

Candidates run in turn, several times over. A step's time is the difference of a long and a short run, divided by the
difference of their lengths, so that imports, loading, start-up checks and saving drop out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from diffusers_scripts import SCRIPTS, masks_folder, run

PRESET = """
checks: {picture: warn}
losses:
  masked_lpips: {weight: 0.2, max_timestep: 0, form: spatial, network: vgg, weights: random}
  face: {weight: 0.5, max_timestep: 0, form: spatial, network: vggface2_resnet50, weights: random}
"""
ZERO = ["--set", "losses.masked_lpips.weight=0", "--set", "losses.face.weight=0"]


def main() -> None:
    """Print a table of seconds a step and of ratios to the unmodified script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--script", default="train_text_to_image_lora", choices=sorted(SCRIPTS))
    parser.add_argument("--variant", default="flip")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--short", type=int, default=4)
    parser.add_argument("--long", type=int, default=44)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        times = measure(args, Path(folder))
    plain = statistics.median(times["unmodified"])
    print(f"{'':<22} {'ms a step':>10} {'spread':>16} {'ratio':>7}")  # noqa: T201
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        spread = f"{min(seconds) * 1e3:.1f} to {max(seconds) * 1e3:.1f}"
        print(f"{name:<22} {middle * 1e3:>10.1f} {spread:>16} {middle / plain:>7.3f}")  # noqa: T201


def measure(args: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Seconds a step of each candidate, once a round."""
    preset = folder / "preset.yaml"
    preset.write_text(PRESET, encoding="utf-8")
    script = SCRIPTS[args.script]
    ours = ["--loss-plugin", "mldm", "--preset", preset]
    if (script.variants[args.variant].data or script.data) == "dreambooth":
        ours += ["--mldm-mask-dir", masks_folder(folder / "out")]
    candidates = {
        "unmodified": (None, []),
        "attached, weights zero": ("mldm_plugin", [*ours, *ZERO]),
        "attached, gate closed": ("mldm_plugin", ours),
    }
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(args.rounds):
        for name, (launcher, flags) in candidates.items():
            seconds = []
            for steps in (args.short, args.long):
                size = ["--resolution", args.resolution, "--max_train_steps", steps]
                began = time.perf_counter()
                done, _ = run(script, args.variant, folder / f"out-{steps}", launcher, [*size, *flags], timeout=900)
                seconds.append(time.perf_counter() - began)
                if done.returncode:
                    sys.exit(done.stderr[-2000:])
            times[name].append((seconds[1] - seconds[0]) / (args.long - args.short))
    return times


if __name__ == "__main__":
    main()
