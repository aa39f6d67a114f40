"""`mldm weights`: the pretrained networks, their licences, and where they lie."""

from __future__ import annotations

import click


@click.group()
def weights() -> None:
    """The weights of the frozen networks."""


@weights.command("list")
def list_weights() -> None:
    """List the weights: size, checksum, licence, and whether they are on this machine."""
    from mldm_plugin.perceptual.weights import WEIGHT_FILES, locate

    for name, file in WEIGHT_FILES.items():
        path = locate(name)
        click.echo(name)
        click.echo(f"    file     {file.file_name}, {_size(file.size)}")
        click.echo(f"    sha256   {file.sha256 or 'not published: the file is checked by its contents alone'}")
        click.echo(f"    address  {file.page or file.url}")
        click.echo(click.wrap_text(f"licence  {file.licence}", 100, "    ", " " * 13))
        click.echo(f"    present  {path or f'no; mldm weights fetch {name}'}")


@weights.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME|all...")
def fetch(names: tuple[str, ...]) -> None:
    """Fetch and check the weights NAME, or all of them."""
    from mldm_plugin.errors import WeightsError
    from mldm_plugin.perceptual.weights import WEIGHT_FILES, weight_file
    from mldm_plugin.perceptual.weights import fetch as fetch_file

    wanted = dict.fromkeys(WEIGHT_FILES if "all" in names else names)
    for name in wanted:
        weight_file(name)  # an unknown name is told before anything is fetched
    faults = []
    for name in wanted:
        try:
            click.echo(f"{name}: {fetch_file(name)}")
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
    return "size not published" if size is None else f"{size / 2**20:.0f} MiB"
