"""`mldm data`: training sets with person masks and face boxes, made and looked over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mldm_plugin.prepare.plans import Plan
    from mldm_plugin.prepare.run import Output
    from mldm_plugin.prepare.workspace import Counts

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
THRESHOLDS = (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of --stats
MOST_REJECTED = 0.05


@click.group()
def data() -> None:
    """Make training sets with person masks, face boxes and keypoints, and look them over."""


def _output_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(
        (
            click.option("--out", type=FOLDER, metavar="DIR", help="The training set; appears whole, at the end."),
            click.option(
                "--faces",
                type=click.Choice(["auto", "annotated", "mtcnn", "insightface", "keypoints", "none"]),
                default="auto",
                show_default=True,
                help="Who finds the faces: the annotation itself, MTCNN, insightface's detector, or COCO's keypoints. "
                "auto takes annotated where there is an annotation, else mtcnn, and says which.",
            ),
            click.option(
                "--format",
                type=click.Choice(["imagefolder", "parquet", "webdataset"]),
                default="imagefolder",
                show_default=True,
                help="How it is stored: diffusers' scripts read an imagefolder, our trainers also parquet.",
            ),
            click.option(
                "--shard-size",
                type=click.IntRange(1),
                help="Pictures a file of --format parquet or webdataset, and between two marks to go on from.",
            ),
            click.option(
                "--engine",
                type=click.Choice(["processes", "ray"]),
                default="processes",
                show_default=True,
                help="ray: on the cluster that RAY_ADDRESS names, else on this machine.",
            ),
            click.option("--workers", type=click.IntRange(0), help="Processes; one a core by default."),
        )
    ):
        command = option(command)
    return command


@data.command()
@click.option("--images", type=FOLDER, metavar="DIR", help="The folder with the pictures.")
@click.option("--instances", type=FILE, required=True, metavar="F.json", help="COCO's instances, with masks.")
@click.option("--captions", type=FILE, metavar="F.json", help="COCO's captions; all of a picture's are kept.")
@click.option("--keypoints", type=FILE, metavar="F.json", help="COCO's person keypoints.")
@click.option(
    "--min-person-area",
    type=click.FloatRange(0, 1),
    metavar="FRACTION",
    help="Keep pictures of which at least this part is people.",
)
@click.option(
    "--target-count",
    type=click.IntRange(1),
    metavar="N",
    help="Find the --min-person-area that keeps N pictures; the paper has 37470.",
)
@click.option("--stats", is_flag=True, help="Only print how many pictures each threshold keeps.")
@_output_options
def coco(instances: Path, stats: bool, **options: Any) -> None:
    """Pictures of COCO that show people."""
    from mldm_plugin.prepare import plans

    if stats:
        print_stats(instances)
        return
    if options["images"] is None:
        raise click.UsageError("--images DIR is missing: the folder with the pictures.")
    if options["min_person_area"] is not None and options["target_count"] is not None:
        raise click.UsageError("--target-count finds --min-person-area: give one of the two.")
    output = output_of(options)
    finish(plans.coco(options.pop("images"), instances, **options), output)


@data.command()
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.option("--caption", metavar="TEXT", help="For pictures that have no caption of their own.")
@click.option(
    "--masks",
    default="auto",
    show_default=True,
    metavar="auto|maskrcnn|selfie|none|DIR",
    help="Who finds the people: torchvision's Mask R-CNN, MediaPipe's selfie segmentation (0.2 MB, for people who "
    "are near), nobody, or a folder with a label picture NAME.png each. auto takes Mask R-CNN where its weights can be "
    "had, else selfie, and says which.",
)
@click.option("--leave-out", multiple=True, metavar="NAME", help="Pass this picture over. May be repeated.")
@click.option(
    "--held-out",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Keep N photos, evenly over all, for judging: DIR/validation; the others are DIR/train.",
)
@_output_options
def folder(folder: Path, **options: Any) -> None:
    """Photos of your own; they are left as they are.

    Captions lie in metadata.jsonl, in NAME.txt beside the pictures, or are the folders' names (10_anna).
    """
    from mldm_plugin.prepare import plans

    output = output_of(options)
    finish(plans.folder(folder, **options), output)


@data.command("celebamask-hq")
@click.argument("folder", type=FOLDER, metavar="DIR")
@_output_options
def celebamask_hq(folder: Path, **options: Any) -> None:
    """CelebAMask-HQ: 30 000 faces with part masks and attributes, as the splits train and validation."""
    from mldm_plugin.prepare import plans

    output = output_of(options)
    finish(plans.celebamask_hq(folder, **options), output)


@data.command()
@click.option("--count", type=click.IntRange(1), required=True, metavar="N", help="Pictures to draw.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed, the same pictures.")
@click.option("--size", type=click.IntRange(64), default=256, show_default=True, help="Pixels of a side, about.")
@click.option("--out", type=FOLDER, required=True, metavar="DIR", help="The data set; appears whole, at the end.")
@click.option("--portraits", is_flag=True, help="One face a picture, with masks of its parts and 40 attributes.")
@click.option("--workers", type=click.IntRange(0), help="Processes; one a core by default.")
def synthetic(out: Path, workers: int | None, **options: Any) -> None:
    """Draw people: a COCO data set with masks, keypoints, face boxes, attributes and captions, all exact.

    With --portraits faces alone, in the files of CelebAMask-HQ.
    """
    from mldm_plugin.prepare.engines import usable_cores
    from mldm_plugin.prepare.synthetic.dataset import write_synthetic

    write_synthetic(out, workers=usable_cores() if workers is None else workers, **options)
    click.echo(f"{out}: {options['count']} pictures drawn")
    if options["portraits"]:
        click.echo(f"make a training set of them: mldm data celebamask-hq {out} --out {out}-faces")
        return
    click.echo(
        f"make a training set of them: mldm data coco --images {out}/images --instances {out}/instances.json "
        f"--captions {out}/captions.json --out {out}-people"
    )


@data.command()
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.option(
    "--report", type=FOLDER, metavar="DIR", help="Where the report goes; DIR-check beside the data by default."
)
@click.option(
    "--resolution",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    help="Of the training, in pixels: pictures that are smaller are worth a look, and faces that are small there.",
)
@click.option("--workers", type=click.IntRange(0), help="Processes; one a core by default.")
def check(folder: Path, report: Path | None, resolution: int, workers: int | None) -> None:
    """Look a training set over: counts, faults by column, and a page with masks, boxes and keypoints drawn in.

    Ends with 1 if something is wrong: a trainer would refuse a row, or masks look inverted.
    """
    from mldm_plugin.errors import DataError
    from mldm_plugin.prepare.check import check as look_over
    from mldm_plugin.prepare.check import lines
    from mldm_plugin.prepare.engines import usable_cores

    folder = folder.resolve()
    report = report or folder.with_name(f"{folder.name}-check")
    found = look_over(folder, report, usable_cores() if workers is None else workers, resolution)
    for line in lines(found):
        click.echo(line)
    click.echo(f"look at {report / 'index.html'} or {report / 'contact_sheet.png'}")
    if faulty := found.counts["rows with faults"]:
        raise DataError(f"{faulty} row(s) of {folder} have faults: mend or remove them.")
    if not found.sound:
        raise DataError(f"the training set {folder} is not what it should be: see above what is wrong.")


@data.command()
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of the page; any free one by default.")
@click.option("--no-browser", is_flag=True, help="Only print the page's address.")
@click.option("--finish", is_flag=True, help="Forget how masks and boxes were before; thrown-out pictures are kept.")
def review(folder: Path, port: int, no_browser: bool, finish: bool) -> None:
    """Go through a training set by eye: accept pictures, throw them out, paint masks, move face boxes.

    Opens a page of this machine, in which every decision is saved at once. The same command goes on where it was.
    """
    from mldm_plugin.prepare.review.session import finish_review, hold_review

    if finish:
        click.echo(finish_review(folder))
        return
    hold_review(folder, port, opens_browser=not no_browser)


@data.command()
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.option("--out", type=FILE, required=True, metavar="F.toml", help="For kohya's --dataset_config.")
@click.option("--resolution", type=click.IntRange(64), default=1024, show_default=True, help="Of kohya's buckets.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Pictures a step.")
@click.option("--repeats", type=click.IntRange(1), default=10, show_default=True, help="Of each picture an epoch.")
def kohya(folder: Path, out: Path, resolution: int, batch: int, repeats: int) -> None:
    """Describe a training set for kohya's trainers: F.toml, and its captions beside it.

    Masks and boxes come by --mldm-mask-dir DIR.
    """
    from mldm_plugin.prepare.kohya_dataset import write_dataset

    count = write_dataset(folder, out, resolution=resolution, batch=batch, repeats=repeats)
    click.echo(f"{out}: {count} pictures; give kohya's script --dataset_config {out} --mldm-mask-dir {folder}")


def output_of(options: dict[str, Any]) -> Output:
    """Takes the options of the output away from the others."""
    from mldm_plugin.prepare.run import Output

    if options["out"] is None:
        raise click.UsageError("--out DIR is missing: the folder to make.")
    return Output(**{name: options.pop(name) for name in ("out", "format", "shard_size", "engine", "workers")})


def print_stats(instances: Path) -> None:
    """How many pictures each person area keeps."""
    import tempfile

    from mldm_plugin.prepare.coco import Coco, CocoFiles

    with tempfile.TemporaryDirectory() as scratch:
        found = Coco(CocoFiles(instances), Path(scratch) / "coco.sqlite")
        areas, count = found.areas(), found.count()
    click.echo(f"{count} pictures, {len(areas)} with people")
    click.echo("--min-person-area  pictures")
    for threshold in THRESHOLDS:
        click.echo(f"{threshold:>17.2f}  {sum(area >= threshold for area in areas)}")


def finish(plan: Plan, output: Output) -> None:
    """Run the conversion and tell what came of it. Ends with 1 if too many pictures were rejected."""
    from mldm_plugin.errors import DataError
    from mldm_plugin.prepare.run import prepare

    try:
        counts = prepare(plan, output)
    except KeyboardInterrupt:
        raise DataError(f"interrupted: the same command goes on where it was ({output.out}.partial).") from None
    tell(output.out, counts)
    share = counts.rejected / max(counts.pictures + counts.rejected, 1)
    if share > MOST_REJECTED:
        raise DataError(
            f"{share:.1%} of the pictures were rejected, more than {MOST_REJECTED:.0%}: see the reasons in "
            f"{output.out}/rejected.jsonl. What could be converted is there."
        )


def tell(out: Path, counts: Counts) -> None:
    click.echo(f"{out}: {counts.pictures} pictures, {counts.people} people, {counts.faces} faces")
    if counts.rejected:
        click.echo(f"{counts.rejected} rejected (rejected.jsonl), for example")
        for reason in counts.left_out:
            click.echo(f"  {reason}")
    click.echo(f"look it over: mldm data check {out}")
