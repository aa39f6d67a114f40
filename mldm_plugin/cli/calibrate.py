"""`mldm calibrate`: where each loss still tells photographs apart, and the T and weights that follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mldm_plugin.cli import options


@click.command()
@click.option(
    "--model",
    required=True,
    metavar="WHAT",
    help="What is trained from: a pipeline (folder or Hub name), or a LoRA or ControlNet (run folder, .safetensors).",
)
@click.option("--base", help="The pipeline that an adapter goes with (default: the one that its run was started from).")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Image folder with captions and masks, face_boxes or keypoints; its validation split, where it has one.",
)
@click.option(
    "--others",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Photographs to be told from (default: the others of --data, which should show other people).",
)
@click.option("--preset", "name", default="mldm", show_default=True, help="Whose losses: a name or a .yaml file.")
@options.overrides
@options.loss_plugin
@click.option("--photographs", default=16, show_default=True, type=click.IntRange(1), help="At most.")
@click.option("--draws", default=4, show_default=True, type=click.IntRange(2), help="Of noise, at each t.")
@click.option(
    "--share",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Of the gradient, that the proposed weights give each loss.",
)
@click.option("--resolution", type=click.IntRange(8), help="Side of the pictures (default: the pipeline's own).")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for calibration.json, figure and notes."
)
def calibrate(model: str, data: Path, others: Path | None, out: Path | None, share: float, **given: Any) -> None:
    """Before training: where does each loss still tell a photograph from another one?

    The model estimates photographs from noise, the same noise each time. Each loss compares the estimate with its own
    photograph and with another one, moved so that the faces lie in the same place. Prints both distances by noise level
    beside what the VAE alone leaves, and proposes T and a weight for each loss. With --out, the same command goes on
    where it was stopped.
    """
    from mldm_plugin.calibration import report
    from mldm_plugin.calibration.run import calibration

    found = calibration(model, data, others, out=out, **given)
    additive = found.preset.combine == "additive"
    proposals = {
        name: report.propose(telling, found.timesteps, found.schedule, additive=additive, share=share)
        for name, telling in found.tellings.items()
    }
    click.echo("\n".join(report.lines(found.tellings, proposals, found.timesteps, share)))
    for line in () if additive else report.crowded(proposals, found.preset.losses):
        click.echo(line)
    if out is not None:
        for file in report.write(out, found.tellings, proposals, found.timesteps):
            click.echo(f"wrote {file}")
