"""The command `mldm`.

Importing this package needs click alone: each command imports what it works with when it runs, so that `--help`
answers at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from mldm_plugin import __version__
from mldm_plugin.cli import (
    attach,
    bench,
    calibrate,
    data,
    doctor,
    evaluate,
    faces,
    losses,
    new_loss,
    plan,
    plugins,
    presets,
    report,
    reproduce,
    sample,
    start,
    train,
    weights,
)
from mldm_plugin.errors import MldmError
from mldm_plugin.stopping import stopping_in_order
from mldm_plugin.threads import wait_asleep


class _Refusal(click.ClickException):
    """An error of ours, told in one line."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"mldm: {self.message}", file=file, err=file is None)


class _Misuse(_Refusal):
    """A command line that cannot be read, told in one line."""

    exit_code = 2


@contextmanager
def _told_in_a_line() -> Iterator[None]:
    try:
        yield
    except MldmError as error:
        raise _Refusal(str(error)) from error
    except click.UsageError as error:
        if type(error).show is not click.UsageError.show:  # a group without a command shows its help
            raise
        command = error.ctx.command_path if error.ctx else "mldm"
        raise _Misuse(f"{' '.join(error.format_message().split())} (see {command} --help)") from error


class _Commands(click.Group):
    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _told_in_a_line():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _told_in_a_line():
            return super().invoke(ctx)


@click.group(cls=_Commands, name="mldm", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="mldm-plugin", prog_name="mldm")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Losses on people and faces for diffusion trainers."""
    wait_asleep()
    if ctx.invoked_subcommand != "run":  # somebody else's script answers signals itself
        ctx.with_resource(stopping_in_order())


main.add_command(presets.presets)
main.add_command(losses.losses)
main.add_command(plugins.plugins)
main.add_command(weights.weights)
main.add_command(doctor.doctor)
main.add_command(report.report)
main.add_command(new_loss.new_loss)
main.add_command(data.data)
main.add_command(start.start)
main.add_command(train.train)
main.add_command(sample.sample)
main.add_command(evaluate.evaluate)
main.add_command(reproduce.reproduce)
main.add_command(faces.faces)
main.add_command(bench.bench)
main.add_command(plan.plan)
main.add_command(calibrate.calibrate)
main.add_command(attach.run)
main.add_command(attach.patch)
