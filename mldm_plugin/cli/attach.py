"""`mldm run` and `mldm patch`: other people's training scripts."""

from __future__ import annotations

from pathlib import Path

import click

from mldm_plugin.errors import MldmError


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Run a training script, unedited, with our losses.",
)
@click.argument("script", type=click.Path(path_type=Path))
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(ctx: click.Context, script: Path, flags: tuple[str, ...]) -> None:
    """Run SCRIPT with its own FLAGS and the plugin's (--loss-plugin, --preset, …) in this process.

    The same as `python -m mldm_plugin SCRIPT …`; with several processes, or as `accelerate config` says:
    `accelerate launch -m mldm_plugin SCRIPT …`.
    """
    from mldm_plugin.attach.launcher import main

    ctx.exit(main([str(script), *flags]))


@click.command()
@click.argument("script", type=click.Path(path_type=Path))
@click.option("--write", is_flag=True, help="Write it beside SCRIPT, as SCRIPT_mldm.py, which runs by itself.")
def patch(script: Path, write: bool) -> None:
    """Show what is changed in SCRIPT to train it with our losses, as a unified diff."""
    from mldm_plugin.attach.edits import diff
    from mldm_plugin.attach.launcher import splice_all
    from mldm_plugin.attach.script import read_script
    from mldm_plugin.cli.new_file import write_new

    text = read_script(script)
    texts = splice_all(text, script)
    if not write:
        for path, spliced in texts.items():
            click.echo(diff(read_script(path), spliced, str(path)), nl=False)
        return
    if list(texts) != [script]:
        others = ", ".join(str(path) for path in texts if path != script)
        raise MldmError(
            f"the loop of {script} lies in {others} as well, so no copy of it can run by itself: use mldm run."
        )
    copy = script.with_name(f"{script.stem}_mldm.py")
    write_new(copy, texts[script])
    click.echo(f"wrote {copy}; start it as the script, with --loss-plugin mldm beside its own flags")
