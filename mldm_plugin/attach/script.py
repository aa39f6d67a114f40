"""A training script's text."""

from __future__ import annotations

import tokenize
from pathlib import Path

from mldm_plugin.errors import MldmError


def read_script(script: Path) -> str:
    """The text of a script, in the encoding that it declares.

    Raises:
        MldmError: it cannot be read.
    """
    try:
        with tokenize.open(script) as file:
            return file.read()
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise MldmError(f"the script {script} cannot be read ({error}): give the path of a training script.") from error
