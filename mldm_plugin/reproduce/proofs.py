"""What a training said of its losses when it began: that each reaches the network, and what looks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

GRADIENT = 4  # the column of |gradient| in the table's rows


def proof_in(log: Path) -> list[str]:
    """The lines of the start-up table in what a training printed; none before it comes so far, or without losses."""
    if not log.is_file():
        return []
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("Start-up proof")]
    rest = lines[starts[0] + 1 :] if starts else []
    return [lines[starts[0]], *itertools.takewhile(lambda line: line.startswith("  "), rest)] if starts else []


def in_short(table: Sequence[str]) -> str:
    """Each loss with its gradient, in a line.

    >>> in_short(["Start-up proof", "  face 0.5 all 0.79 0.26  reaches the network"])
    'start-up proof: each loss reaches the network (|gradient| face 0.26)'
    """
    told = [f"{row[0]} {row[GRADIENT]}" for row in (line.split() for line in table if "reaches the network" in line)]
    dead = [line.split()[0] for line in table if "trains nothing" in line]
    said = [f"each loss reaches the network (|gradient| {', '.join(told)})"] if told else []
    said += [f"only logged: {', '.join(dead)}"] if dead else []
    return f"start-up proof: {'; '.join(said)}"
