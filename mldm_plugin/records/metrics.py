"""The file that each optimizer step is logged in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from mldm_plugin.records.files import write_text

FILE_NAME = "metrics.jsonl"


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line and optimizer step."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME

    def write(self, record: Mapping[str, float | None]) -> None:
        """Append one line. What is not finite is written as null, for JSON has no word for it."""
        line = json.dumps({k: v if v is None or math.isfinite(v) else None for k, v in record.items()})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def truncate(self, step: int) -> None:
        """Keep the lines up to `step`, for a run that goes on from there."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError, TypeError):
                continue  # the last line of a run that was killed while it wrote
        write_text(self.path, "".join(kept))
