"""`python -m mldm_plugin.faces`: the networks that pictures of faces are made and judged with."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mldm_plugin.errors import MldmError

FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group()
def main() -> None:
    """Faces from attributes and semantic masks: an autoencoder, and two judges, of a training set of faces."""


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
def judges(data: Path, out: Path, steps: int, side: int) -> None:
    """Train the judges on the faces in DATA/train, and say how often they are right on DATA/validation."""
    import torch

    from mldm_plugin.faces.judges import (
        AttributeJudge,
        PartsJudge,
        attribute_accuracy,
        attributes_seen,
        mask_accuracy,
        mean_iou,
        parts_seen,
        train_judge,
        write_judge,
    )
    from mldm_plugin.faces.pictures import read_faces

    faces, held_out = (read_faces(data, split, side) for split in ("train", "validation"))
    pixels = held_out.floats(torch.arange(len(held_out)))
    of_attributes = train_judge(AttributeJudge, faces, steps, out)
    write_judge(of_attributes, out / "attributes.safetensors")
    right = attribute_accuracy(attributes_seen(of_attributes, pixels), held_out.attributes, faces.varied)
    click.echo(f"attributes: {right:.2%} of {len(faces.varied)} are right on {len(held_out)} held-out pictures")
    of_parts = train_judge(PartsJudge, faces, steps, out)
    write_judge(of_parts, out / "parts.safetensors")
    seen = parts_seen(of_parts, pixels)
    found = f"mIoU {mean_iou(seen, held_out.parts):.3f}, {mask_accuracy(seen, held_out.parts):.2%} of the pixels"
    click.echo(f"parts: {found}")


if __name__ == "__main__":
    try:
        main()
    except MldmError as error:
        sys.exit(f"mldm: {error}")
