"""`mldm doctor` as a person calls it."""

from click.testing import CliRunner

from mldm_plugin.cli import main


def doctor(*words):
    """Its exit status, and what it says."""
    result = CliRunner().invoke(main, ["doctor", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout or result.output  # without the bar of a data set that is looked over
