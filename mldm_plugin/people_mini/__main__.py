"""`python -m mldm_plugin.people_mini`: draw people, read openpeople, train, measure."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from mldm_plugin.errors import MldmError

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group()
def main() -> None:
    """people-mini: a small Stable Diffusion of people, from its data to its measurement."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)


@main.command()
@click.option("--out", type=FOLDER, required=True, help="Folder for the shards; those that are there are kept.")
@click.option("--start", default=0, show_default=True, help="First drawing.")
@click.option("--stop", default=16000, show_default=True, help="Drawing after the last; about half are wanted.")
@click.option("--held-out", is_flag=True, help="Draw the tenth that is never trained on.")
@click.option("--quality", type=click.IntRange(1, 100), help="Of WebP; without it every pixel is kept.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1))
@click.option("--join", "joined", type=FILE, help="Also write all shards into this archive.")
def draw(
    out: Path, start: int, stop: int, held_out: bool, quality: int | None, workers: int, joined: Path | None
) -> None:
    """Draw people, shard by shard."""
    from mldm_plugin.people_mini.archive import join_archives
    from mldm_plugin.people_mini.draw_many import draw_many

    shards = draw_many(out, start, stop, held_out=held_out, quality=quality, workers=workers)
    if joined:
        click.echo(f"{join_archives(joined, shards)} pictures in {joined}")


@main.command()
@click.option("--out", type=FOLDER, required=True, help="The image folder; appears when it is complete.")
@click.option("--count", required=True, type=click.IntRange(1), help="Of pictures.")
@click.option("--start", default=0, show_default=True, help="First drawing that is looked at; about half are wanted.")
@click.option("--held-out", is_flag=True, help="Of the tenth that is never trained on.")
@click.option("--keypoints", is_flag=True, help="Write the keypoints of the people, too.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1))
def folder(out: Path, count: int, start: int, held_out: bool, keypoints: bool, workers: int) -> None:
    """Draw people into an image folder, with masks, face boxes and captions, for the trainers and `mldm evaluate`."""
    from mldm_plugin.people_mini.image_folder import write_drawings

    write_drawings(out, count, start, held_out=held_out, keypoints=keypoints, workers=workers)


@main.command()
@click.argument("who", type=click.Choice(("P008", "P009", "P010")))
@click.option("--out", type=FOLDER, required=True, help="Gets train/ and validation/.")
def person(who: str, out: Path) -> None:
    """Write the photographs of somebody who is never trained on: ten to learn, eight to compare with."""
    from mldm_plugin.people_mini.unseen import write_person

    write_person(out, who)


@main.command()
@click.option("--out", type=FILE, required=True, help="The archive.")
@click.option("--people", type=FOLDER, help="openpeople's data/curated; without it that of the installed package.")
@click.option("--quality", default=90, show_default=True, type=click.IntRange(1, 100), help="Of WebP.")
def photos(out: Path, people: Path | None, quality: int) -> None:
    """Read the pictures of the seven people that are trained on."""
    from mldm_plugin.people_mini.archive import write_archive
    from mldm_plugin.people_mini.photos import openpeople_folder, photo_samples

    click.echo(f"{write_archive(out, photo_samples(people or openpeople_folder()), quality)} pictures in {out}")


@main.command()
@click.option("--out", type=FILE, required=True, help="The file of weights.")
def lpips(out: Path) -> None:
    """Write the part of VGG16 that the autoencoder's loss needs, for a machine without a weights cache."""
    from mldm_plugin.people_mini.perceptual import write_three_stages

    out.parent.mkdir(parents=True, exist_ok=True)
    write_three_stages(out)


@main.command()
@click.argument("archives", type=FILE, nargs=-1, required=True)
@click.option("--out", type=FOLDER, required=True, help="Folder of the run; the same command goes on there.")
@click.option("--more", type=FOLDER, help="Folder of shards that may still be drawn while the autoencoder trains.")
@click.option("--lpips", "lpips_file", type=FILE, help="Weights of `lpips --out`; without it the weights cache.")
@click.option("--no-lpips", is_flag=True, help="Absolute difference alone.")
@click.option("--size", type=click.Choice(["full", "thin"]), default="full", show_default=True)
@click.option("--vae-minutes", type=float, help="Budget of the autoencoder.")
@click.option("--minutes", type=float, help="Budget of U-Net and text encoder.")
@click.option("--vae-steps", type=click.IntRange(1), help="Budget in steps; the first to be used up counts.")
@click.option("--steps", type=click.IntRange(1))
@click.option("--vae-batch", default=48, show_default=True, type=click.IntRange(1))
@click.option("--batch", default=256, show_default=True, type=click.IntRange(1))
@click.option("--vae-rate", default=6e-4, show_default=True)
@click.option("--rate", default=6e-4, show_default=True)
@click.option("--sheet-every", default=2000, show_default=True, type=click.IntRange(0), help="Steps between sheets.")
@click.option("--scale", default=1.0, show_default=True, help="Of the number of squares out of photographs.")
@click.option("--seed", default=0, show_default=True)
@click.option("--graph/--no-graph", default=True, show_default=True, help="CUDA graphs.")
def train(archives: tuple[Path, ...], out: Path, more: Path | None, lpips_file: Path | None, **options: object) -> None:
    """Train autoencoder, text encoder and U-Net, and write the pipeline."""
    from mldm_plugin.people_mini.perceptual import read_three_stages
    from mldm_plugin.people_mini.settings import settings_of
    from mldm_plugin.people_mini.train import Run

    network = None if options["no_lpips"] else read_three_stages(lpips_file)
    written = Run(out, settings_of(options), list(archives), more, network).all()
    click.echo(f"the pipeline is in {written}")


@main.command()
@click.argument("pipeline", type=FOLDER)
@click.option(
    "--train", "seen", type=FILE, multiple=True, help="Drawings for a classifier that --out does not hold yet."
)
@click.option("--held-out", type=FILE, multiple=True, required=True, help="Drawings that nothing was trained on.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the results.")
@click.option("--count", default=500, show_default=True, type=click.IntRange(1), help="Of drawings and samples.")
@click.option("--classifier-steps", default=3000, show_default=True, type=click.IntRange(1))
@click.option("--steps", default=25, show_default=True, type=click.IntRange(1), help="Of the sampler.")
@click.option("--guidance", default=3.0, show_default=True)
@click.option("--batch", default=50, show_default=True, type=click.IntRange(1), help="Samples drawn at once.")
def measure(
    pipeline: Path, seen: tuple[Path, ...], held_out: tuple[Path, ...], out: Path, **options: int | float
) -> None:
    """Ask a classifier whether samples show what their captions say."""
    from mldm_plugin.people_mini.measure import measure as measured

    found = measured(pipeline, list(seen), list(held_out), out, **options)  # type: ignore[arg-type]
    for name in ("drawings", "samples", "drawings through the autoencoder"):
        click.echo(f"{name}: " + ", ".join(f"{q} {share:.1%}" for q, share in found[name].items()))


@main.command()
@click.argument("captions", nargs=-1, required=True)
@click.option("--out", type=FILE, required=True, help="The picture, a row for each caption.")
@click.option("--pipeline", type=FOLDER, help="Without it the one that ships with the package.")
@click.option("--count", default=4, show_default=True, type=click.IntRange(1), help="Samples of each caption.")
@click.option("--steps", default=25, show_default=True, type=click.IntRange(1), help="Of the sampler.")
@click.option("--guidance", default=3.0, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the noise, the same in each row.")
def sample(captions: tuple[str, ...], out: Path, pipeline: Path | None, **options: int | float) -> None:
    """Draw pictures of captions, such as "photo of cerwen, smiling, bust, in a studio"."""
    from mldm_plugin.people_mini import PIPELINE
    from mldm_plugin.people_mini.showing import sample_rows

    out.parent.mkdir(parents=True, exist_ok=True)
    sample_rows(pipeline or PIPELINE, captions, **options).save(out)  # type: ignore[arg-type]


if __name__ == "__main__":
    try:
        main()
    except MldmError as error:
        sys.exit(f"people-mini: {error}")
