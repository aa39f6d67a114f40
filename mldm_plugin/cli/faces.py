"""`mldm faces`: faces from attributes and masks: what is trained beside a model, and what is made with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mldm_plugin.errors import MldmError

FOLDER = click.Path(file_okay=False, path_type=Path)
THERE = click.Path(file_okay=False, exists=True, path_type=Path)


@click.group()
def faces() -> None:
    """Faces from attributes and masks: train an autoencoder and judges, draw figures, edit a face."""


@faces.command()
@click.argument("data", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="Gets vae/, and the state that a stopped training resumes.")
@click.option("--steps", default=6000, show_default=True, type=click.IntRange(1), help="Of the training.")
@click.option("--side", default=128, show_default=True, type=click.IntRange(32), help="Of the pictures, in pixels.")
@click.option("--no-lpips", is_flag=True, help="Absolute difference alone, where VGG16 cannot be had.")
def autoencoder(data: Path, out: Path, steps: int, side: int, no_lpips: bool) -> None:
    """Train an autoencoder on the faces in DATA, for train_conditional_ldm.py --pretrained_model_name_or_path OUT."""
    from mldm_plugin.faces.autoencoder import train_autoencoder
    from mldm_plugin.faces.pictures import read_faces
    from mldm_plugin.people_mini.perceptual import read_three_stages

    known, held_out = (read_faces(data, split, side) for split in ("train", "validation"))
    found = train_autoencoder(known, held_out, steps, out, None if no_lpips else read_three_stages(None))
    click.echo(f"{out / 'vae'}: {found:.2f} dB on held-out pictures")


@faces.command()
@click.argument("data", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="Gets attributes.safetensors and parts.safetensors.")
@click.option("--steps", default=3000, show_default=True, type=click.IntRange(1), help="Of each.")
@click.option("--side", default=128, show_default=True, type=click.IntRange(32), help="Of the pictures, in pixels.")
@click.option("--large", is_flag=True, help="As wide as a ResNet-18, for photographs.")
def judges(data: Path, out: Path, steps: int, side: int, large: bool) -> None:
    """Train the judges on the faces in DATA/train, and say how often they are right on DATA/validation."""
    from mldm_plugin.conditions.judges import RESNET_18, SMALL, AttributeJudge, PartsJudge, write_judge
    from mldm_plugin.faces.judges import train_judge
    from mldm_plugin.faces.pictures import read_faces
    from mldm_plugin.records.files import write_text

    if side % 8:
        raise click.BadParameter(f"{side} is no multiple of 8.", param_hint="--side")
    known, held_out = (read_faces(data, split, side) for split in ("train", "validation"))
    told = []
    for kind, say in ((AttributeJudge, _attributes_in_words), (PartsJudge, _parts_in_words)):
        judge = train_judge(kind, known, steps, out, RESNET_18 if large else SMALL)
        write_judge(judge, out, side)
        told.append(say(judge, held_out))
        click.echo(told[-1])
    write_text(out / "judges.txt", "\n".join(told) + "\n")


@faces.command()
@click.argument("data", type=FOLDER)
@click.option("--judges", "trained", type=FOLDER, required=True, help="Folder of `judges`.")
@click.option(
    "--out", type=FOLDER, required=True, help="Gets validation/, to be compared on by `mldm evaluate --data`."
)
def masks(data: Path, trained: Path, out: Path) -> None:
    """Write the faces of DATA/validation with masks that the parser makes of them, in place of the true ones."""
    from mldm_plugin.faces.parsed import write_parsed

    click.echo(f"{out}: masks of mIoU {write_parsed(data, trained, out):.3f} with the true ones")


@faces.command()
@click.argument("number", type=click.IntRange(3, 6), metavar="3|4|5|6")
@click.argument("runs", type=THERE, nargs=-1, required=True, metavar="RUN...")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The picture, F.png.")
@click.option("--data", type=THERE, help="Held-out faces (default: of what RUN was trained on).")
@click.option(
    "--row", "rows", type=click.IntRange(0), multiple=True, help="Number of a held-out face. May be repeated."
)
@click.option("--attribute", "attributes", multiple=True, metavar="NAME", help="That is changed. May be repeated.")
@click.option("--samples", default=6, show_default=True, type=click.IntRange(1), help="Figure 6: of each condition.")
@click.option("--steps", default=50, show_default=True, type=click.IntRange(1), help="Of DDIM.")
@click.option("--guidance", default=1.0, show_default=True, type=float, help="Away from absent conditions.")
@click.option("--seed", default=0, show_default=True, help="Of all noise.")
def figure(
    number: int,
    runs: tuple[Path, ...],
    out: Path,
    data: Path | None,
    rows: tuple[int, ...],
    attributes: tuple[str, ...],
    **drawing: Any,
) -> None:
    """Draw a figure of the paper with trained models.

    \b
    3: attributes changed one by one, from the same noise
    4: masks edited: mirrored, more hair, parts of another face
    5: both
    6: several faces of each condition; RUNs beside each other, or what one draws without some of its conditions

    RUN is an output folder of train_conditional_ldm.py, or checkpoint-N/model in it.
    """
    if out.suffix.lower() != ".png":
        raise MldmError(f"--out {out}: expected a name that ends with .png.")
    click.echo(f"opening {' '.join(map(str, runs))} …")  # torch takes a while
    from mldm_plugin.faces.figures import Drawing, Figure
    from mldm_plugin.faces.model import held_out_of, open_model
    from mldm_plugin.faces.sheet import write_sheet

    models = [open_model(run) for run in runs]
    photographs = held_out_of(runs[0], models, data)
    made = Figure(number, models, photographs, Drawing(**drawing), rows, attributes)
    write_sheet(made.lines(), out)
    if made.blind:
        who = " and ".join(sorted(made.blind))
        click.echo(
            f"{who} was trained with all its conditions (--condition_dropout 0): what it draws without says little"
        )
    click.echo(f"Look at {out}")


@faces.command()
@click.argument("run", type=THERE, metavar="RUN")
@click.option("--data", type=THERE, help="Held-out faces to begin from (default: of what RUN was trained on).")
@click.option("--steps", default=25, show_default=True, type=click.IntRange(1), help="Of DDIM, until the page says so.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of the page; any free one by default.")
@click.option("--no-browser", is_flag=True, help="Only print the page's address.")
def edit(run: Path, data: Path | None, steps: int, port: int, no_browser: bool) -> None:
    """Edit a face: paint the mask of its parts, turn attributes over, and see what the model draws of them.

    Opens a page of this machine. RUN is an output folder of train_conditional_ldm.py, or checkpoint-N/model in it.
    """
    click.echo(f"opening {run} …")  # torch takes a while
    from mldm_plugin.faces.editing import EditServer
    from mldm_plugin.faces.model import held_out_of, open_model
    from mldm_plugin.page.server import serve

    model = open_model(run)
    try:
        photographs = held_out_of(run, [model], data)
    except MldmError as error:
        if data is not None:
            raise
        photographs = None
        click.echo(f"no held-out faces to begin from: {error}")
    lines = (f"{model.name} draws from {' and '.join(model.encoders) or 'no condition'}", "Ctrl-C ends.")
    serve(lambda: EditServer(model, photographs, steps, port), port, lines, opens_browser=not no_browser)


def _attributes_in_words(judge: Any, faces: Any) -> str:
    """How often it is right on faces."""
    import torch

    from mldm_plugin.conditions.judges import attribute_accuracy, attributes_seen

    seen = attributes_seen(judge, faces.floats(torch.arange(len(faces))))
    right = attribute_accuracy(seen, faces.attributes, faces.varied)
    return f"attributes: {right:.2%} of the {len(faces.varied)} that vary are right on {len(faces)} held-out pictures"


def _parts_in_words(judge: Any, faces: Any) -> str:
    """How often it is right on faces."""
    import torch

    from mldm_plugin.conditions.judges import mask_accuracy, mean_iou, overlaps, parts_seen

    counts = overlaps(parts_seen(judge, faces.floats(torch.arange(len(faces)))), faces.parts)
    return f"parts: mIoU {mean_iou(counts):.3f}, {mask_accuracy(counts):.2%} of the pixels"
