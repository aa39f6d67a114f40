"""What the pictures and masks of a run are like."""

from __future__ import annotations

from collections.abc import Iterator

from mldm_plugin.doctor.run import Run
from mldm_plugin.errors import DataError
from mldm_plugin.prepare.check import Report, look_over
from mldm_plugin.prepare.engines import usable_cores
from mldm_plugin.prepare.remarks import RESOLUTION, Remark
from mldm_plugin.prepare.stored import parts


def look_at_data(run: Run) -> tuple[Report | None, list[Remark]]:
    """The training set looked over, and all there is to say of it; no report where it is not here."""
    folder = run.data
    if folder is None:
        named = run.arguments.get("dataset_name")
        what = f"the data set {named} is no folder of this machine" if named else "nothing says where they are"
        return None, [Remark("worth a look", f"Pictures and masks were not looked at: {what}. Say it with --data.")]
    if (folder / "train" / "metadata.jsonl").is_file():  # our trainers leave the other splits alone
        folder = folder / "train"
    try:
        workers = usable_cores() if len(parts(folder)) > 1 else 0
        found = look_over(folder, workers, run.arguments.get("resolution") or RESOLUTION)
    except DataError as error:
        return None, [Remark("worth a look", f"Pictures and masks were not looked at: {error}")]
    return found, [*found.said(), *_sizes(found)]


def _sizes(found: Report) -> Iterator[Remark]:
    if not found.sizes:
        return
    widths, heights = zip(*found.sizes, strict=True)
    if len(found.sizes) == 1:
        text = f"Every picture has {widths[0]}x{heights[0]} pixels"
    else:
        text = f"Pictures have {min(widths)} to {max(widths)} by {min(heights)} to {max(heights)} pixels"
    masks = found.counts["rows with a mask"]
    yield Remark("fine", f"{text}; {masks} of {found.counts['rows']} have a mask of their size.")
