"""`python -m mldm_plugin.demo`: a person the model has never seen, learnt with the plain loss and with Masked LDM.

It is `mldm reproduce likeness` with one seed, told step by step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mldm_plugin.errors import MldmError
from mldm_plugin.parser import Parser
from mldm_plugin.people_mini.unseen import HELD_OUT, LEARNT, NAMES
from mldm_plugin.reproduce.commands import processes_here, seconds_a_step
from mldm_plugin.reproduce.proofs import proof_in
from mldm_plugin.reproduce.recipes import RECIPES
from mldm_plugin.reproduce.run import Reproduction, claim
from mldm_plugin.reproduce.scales import Person, run_name
from mldm_plugin.stopping import stopping_in_order

STEPS = 120
SHOWN = "P009"  # the settings were chosen on P008; docs/demo.md says what P009 was shown with
WEIGHTS = ("alexnet", "dlib_resnet", "vgg16", "mtcnn")  # of the losses, of LPIPS as a judge, of the finder of faces
JUDGE = "faceres"  # of faces; no loss offers it
# What the table shows of the report: a name, and the column's title.
COLUMNS = {
    "identity": "likeness ↑",
    "one_step_face": "distance of faces ↓",
    "one_step_lpips_person": "LPIPS on people ↓",
    "one_step_error": "error of ε ↓",
}


def main() -> int:
    """The command: 0 when it came to its end, whichever loss did better."""
    parser = Parser(prog="python -m mldm_plugin.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder (default: runs/demo)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps, at least 2 (default: {STEPS})")
    parser.add_argument("--person", choices=sorted(NAMES), default=SHOWN, help=f"of openpeople (default: {SHOWN})")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps: at least 2, for the time between two steps is measured")
    try:
        with stopping_in_order():
            run(Person(arguments.out, arguments.steps, arguments.person, fetch_weights()))
    except MldmError as error:
        sys.stderr.write(f"mldm: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from there.\n")
        return 130
    return 0


def run(scale: Person) -> None:
    """Prepare, train, compare; the same again goes on where it was.

    Raises:
        MldmError: weights or photographs that cannot be had, a folder that holds something else, a command that fails.
    """
    recipe = RECIPES["likeness"]
    demo = Reproduction(
        recipe, scale, seeds=1, prompts=len(HELD_OUT), jobs=1
    )  # side by side, the longer one would have a core for itself in the end
    claim(scale, recipe.name)
    say(f"1. {len(LEARNT)} photographs of somebody the model has never seen, and who does not exist; masks, face boxes")
    demo.make_data()
    data = scale.out / "data"
    say(f"   {data / 'train'}; {len(HELD_OUT)} more are kept back to compare with, {data / 'validation'}")
    say("2. A LoRA with the plain loss, and one from the same seed, on the same batches, with Masked LDM")
    for training in demo.trainings(timed=False):
        say(f"   $ {training}")
    demo.train(demo.trainings(timed=False))
    for line in proof_in(demo.log(demo.trainings(timed=False)[0])):
        say(f"   {line}")
    [again] = demo.trainings(timed=True)
    say(f"3. The plain loss again, for as long as Masked LDM took: {again.steps} steps")
    demo.train([again])
    say("4. Each draws the person from the same noise, and estimates the photographs that were kept back")
    evaluation = demo.evaluation().over(processes_here())
    say(f"   $ {evaluation}")
    evaluation.call()
    print_table(demo, json.loads(evaluation.made.with_name("metrics.json").read_text(encoding="utf-8")))
    say("\nLook at:")
    for name in ("report/report.html", "report/figures/faces.png", "runs/masked_ldm-s0/panels"):
        if (scale.out / name).exists():
            say(f"   {scale.out / name}")


def fetch_weights() -> str:
    """Get the networks, and say which metric judges likeness: that of the judge, or without it that of the loss."""
    from mldm_plugin.perceptual.weights import fetch

    for name in WEIGHTS:
        fetch(name)
    try:
        fetch(JUDGE)
    except MldmError as error:
        say(f"   Faces will be judged by the network that Masked LDM trains on, for another cannot be had: {error}")
        return "identity_dlib"
    return "identity"


def print_table(demo: Reproduction, results: dict[str, Any]) -> None:
    """The trainings, then Masked LDM against each other one: the 95 % interval."""
    judge = demo.scale.judge if isinstance(demo.scale, Person) else ""
    columns = {judge if name == "identity" else name: title for name, title in COLUMNS.items()}
    metrics = {metric["name"]: metric for metric in results["metrics"]}
    say(f"\n   {'':<28}{'steps':>6}{'minutes':>9}" + "".join(f"{title:>22}" for title in columns.values()))
    for arm in demo.recipe.arms:
        folder = demo.out / "runs" / run_name(arm, 0)
        steps = demo.steps_of(arm) or 0
        values = "".join(f"{metrics[name]['models'][arm.name]['value']:>22.3f}" for name in columns)
        say(f"   {arm.name:<28}{steps:>6}{steps * seconds_a_step(folder) / 60:>9.1f}{values}")
    first = demo.recipe.arms[0].name
    for other in (arm.name for arm in demo.recipe.arms[1:]):
        said = "".join(f"{_interval(metrics[name]['differences'][other]):>22}" for name in columns)
        say(f"   {f'{first} − {other}':<43}{said}")
    say("   The same noise for all; 95 % intervals over the photographs; they know nothing of another seed.")


def _interval(gap: dict[str, Any]) -> str:
    """Of the first training against one, from that of the one against the first."""
    return "–" if gap["low"] is None else f"{-gap['high']:+.3f} to {-gap['low']:+.3f}"


def say(text: str) -> None:
    """A line for the reader, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
