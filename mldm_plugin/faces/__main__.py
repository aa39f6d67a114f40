"""`python -m mldm_plugin.faces`: the networks that pictures of faces are made and judged with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mldm_plugin.errors import MldmError

FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group()
def main() -> None:
    """Faces from attributes and semantic masks: an autoencoder, two judges, and what these see in faces."""


@main.command()
@click.argument("data", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="Gets vae/, and the state that a stopped training resumes.")
@click.option("--steps", default=6000, show_default=True, type=click.IntRange(1))
@click.option("--side", default=128, show_default=True, type=click.IntRange(32), help="Of the pictures, in pixels.")
@click.option("--no-lpips", is_flag=True, help="Absolute difference alone, where VGG16 cannot be had.")
def autoencoder(data: Path, out: Path, steps: int, side: int, no_lpips: bool) -> None:
    """Train an autoencoder on the faces in DATA, for train_conditional_ldm.py --pretrained_model_name_or_path OUT."""
    from mldm_plugin.faces.autoencoder import train_autoencoder
    from mldm_plugin.faces.pictures import read_faces

    faces, held_out = (read_faces(data, split, side) for split in ("train", "validation"))
    found = train_autoencoder(faces, held_out, steps, out, lpips=not no_lpips)
    click.echo(f"{out / 'vae'}: {found:.2f} dB on held-out pictures")


@main.command()
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
    faces, held_out = (read_faces(data, split, side) for split in ("train", "validation"))
    told = []
    for kind, say in ((AttributeJudge, _attributes_in_words), (PartsJudge, _parts_in_words)):
        judge = train_judge(kind, faces, steps, out, RESNET_18 if large else SMALL)
        write_judge(judge, out, side)
        told.append(say(judge, held_out))
        click.echo(told[-1])
    write_text(out / "judges.txt", "\n".join(told) + "\n")


@main.command()
@click.argument("data", type=FOLDER)
@click.option("--judges", "trained", type=FOLDER, required=True, help="Folder of `judges`.")
@click.option(
    "--out", type=FOLDER, required=True, help="Gets validation/, to be compared on by `mldm evaluate --data`."
)
def masks(data: Path, trained: Path, out: Path) -> None:
    """Write the faces of DATA/validation with masks that the parser makes of them, in place of the true ones."""
    from mldm_plugin.faces.parsed import write_parsed

    click.echo(f"{out}: masks of mIoU {write_parsed(data, trained, out):.3f} with the true ones")


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


if __name__ == "__main__":
    try:
        main()
    except MldmError as error:
        sys.exit(f"mldm: {error}")
