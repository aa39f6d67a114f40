"""A command line whose faults are told in one line, as all errors here are."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse's, without its usage of a hundred lines above the fault."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end with status 2."""
        self.exit(2, f"mldm: {message} (see {self.prog} --help)\n")
