"""`mldm reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mldm_plugin.errors import MldmError

FACES = tuple(f"faces-table{number}" for number in range(1, 6))
NAMES = ("table1", "figure3", "figure5", "ablation-lambda", "p2", "evidence", "likeness", "losses", *FACES)
STEPS, STEPS_OF_LORA = 150, 120  # of the mini scale


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.option("--scale", type=click.Choice(["mini", "paper"]), default="mini", show_default=True, help="How large.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder (default: runs/NAME; runs/faces for all tables of faces).",
)
@click.option("--seeds", type=click.IntRange(1), help="Trainings of each arm (default: 1; evidence 5, losses 3).")
@click.option(
    "--steps", type=click.IntRange(2), help=f"Of each training (default: mini {STEPS}; paper and faces the presets')."
)
@click.option("--prompts", type=click.IntRange(0), help="Pictures that each training draws.")
@click.option("--jobs", type=click.IntRange(1), help="Trainings at a time (default: a core each; with a GPU 1).")
@click.option(
    "--side",
    type=click.Choice(["64", "128", "256"]),
    help="mini, faces: pixels of the drawings (default: 128; 64 is faster).",
)
@click.option("--tuning", is_flag=True, help="mini: judge on the drawings kept for choosing settings.")
@click.option("--person", default="P009", show_default=True, help="likeness: P008, P009 or P010.")
@click.option("--coco", type=click.Path(path_type=Path), default=Path("coco"), help="paper: folder of COCO 2017.")
@click.option(
    "--celeba",
    type=click.Path(path_type=Path),
    default=Path("CelebAMask-HQ"),
    help="paper, faces: folder CelebAMask-HQ as it is handed out.",
)
@click.option("--model", help="paper: Stable Diffusion 1.5, for faces LDM's autoencoder; a folder or Hub name.")
@click.option("--dry-run", is_flag=True, help="Print every command, run none.")
def reproduce(name: str, out: Path | None, dry_run: bool, **options: Any) -> None:
    """Reproduce a table or figure: make the data, train every arm, draw from the same noise, judge, write a report.

    mini: people-mini on drawn people, two CPU cores or a GPU. paper: Stable Diffusion 1.5 on COCO at 512 px, for a GPU.
    Stopped, the same command goes on where it was.
    """
    folder = out or Path("runs") / ("faces" if name in FACES else name)
    reproduction = (_of_faces if name in FACES else _reproduction)(name, folder, **options)
    if dry_run:
        click.echo(reproduction.plan())
        return
    try:
        made = reproduction.run()
        if made.suffix == ".png":  # an evaluation has said where its page is
            click.echo(f"Look at {made}")
    except KeyboardInterrupt:
        click.echo(err=True)  # the bar's line, or that of ^C, ends here
        raise MldmError("stopped; the same command goes on from there.") from None


def _reproduction(
    name: str,
    out: Path,
    scale: str,
    seeds: int | None,
    steps: int | None,
    prompts: int | None,
    jobs: int | None,
    tuning: bool,
    person: str,
    coco: Path,
    model: str | None,
    celeba: Path,
    side: str | None,
) -> Any:
    from mldm_plugin.reproduce.commands import processes_here
    from mldm_plugin.reproduce.figure3 import Figure3
    from mldm_plugin.reproduce.recipes import RECIPES
    from mldm_plugin.reproduce.run import Reproduction
    from mldm_plugin.reproduce.scales import SD15, Mini, MiniWithKeypoints, Paper, Person

    if side:
        raise MldmError(f"--side is of the tables of faces; {name}'s drawings have 128 pixels.")
    chosen: Mini | Paper | Person = Paper(out, coco, model or SD15, steps)
    if name == "likeness":
        if scale == "paper":
            raise MldmError("likeness is of this project, at the mini scale alone.")
        chosen = Person(out, steps or STEPS_OF_LORA, person)
    elif scale == "mini":
        kind = MiniWithKeypoints if name in RECIPES and RECIPES[name].keypoints else Mini
        chosen = kind(out, steps or STEPS, tuning=tuning)
    if name == "figure3" and not isinstance(chosen, Person):
        return Figure3(chosen)
    recipe = RECIPES[name]
    asked = chosen.prompts_of(recipe) if prompts is None else prompts
    return Reproduction(recipe, chosen, seeds or recipe.seeds, asked, jobs or processes_here())


def _of_faces(name: str, out: Path, scale: str, seeds: int | None, steps: int | None, **options: Any) -> Any:
    from mldm_plugin.reproduce.commands import processes_here
    from mldm_plugin.reproduce.faces import LDM_CELEBAHQ, FacesMini, FacesPaper
    from mldm_plugin.reproduce.recipes import RECIPES
    from mldm_plugin.reproduce.run import Reproduction

    recipe, side = RECIPES[name], options["side"]
    chosen: FacesMini | FacesPaper = FacesMini(out, steps, side=int(side or 128))
    if scale == "paper":
        if side:
            raise MldmError("--side is of the mini scale; the paper's pictures have 256 pixels.")
        chosen = FacesPaper(out, options["celeba"], options["model"] or LDM_CELEBAHQ, steps)
    prompts = chosen.prompts_of(recipe) if options["prompts"] is None else options["prompts"]
    return Reproduction(recipe, chosen, seeds or recipe.seeds, prompts, options["jobs"] or processes_here())
