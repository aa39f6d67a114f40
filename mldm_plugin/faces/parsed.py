"""Held-out faces with the masks that a parser makes of them, in place of the true ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from mldm_plugin.conditions.judges import PartsJudge, at_side, mean_iou, overlaps, parts_seen, read_judge
from mldm_plugin.errors import DataError
from mldm_plugin.evaluation.picture import read_image
from mldm_plugin.prepare.stored import listed_rows
from mldm_plugin.records.folders import replaced_folder

SPLIT = "validation"


def write_parsed(data: Path, judges: Path, out: Path) -> float:
    """Write `out`/validation: the pictures, captions and attributes of `data`, and parsed masks. Returns their mIoU.

    Source: "Conditioning Diffusion Models via Attributes and Semantic Masks for Face Generation", section 4.3, where
    pictures drawn from imperfect masks have FID 8.20.

    Raises:
        DataError: no such split, no judge, a row without parts, or a folder that holds something else.
    """
    judge, side, _ = read_judge(PartsJudge, judges)
    rows = listed_rows(data / SPLIT)
    if not rows:
        raise DataError(f"{data / SPLIT} has no pictures: give a folder that `mldm data celebamask-hq` wrote.")
    counts, lines = [], []
    with replaced_folder(out / SPLIT, "metadata.jsonl") as made:
        for number, (top, row) in enumerate(tqdm(rows, desc="parsing", unit="picture")):
            if not row.get("parts_file_name"):
                raise DataError(f"{row['file_name']} in {top} has no parts (mldm data celebamask-hq).")
            source = top / row["file_name"]
            with Image.open(top / row["parts_file_name"]) as true:
                wanted = np.array(true)
            [seen] = parts_seen(judge, at_side(read_image(source)[None], side)).numpy()
            labels = Image.fromarray(seen).resize(wanted.shape[::-1], Image.Resampling.NEAREST)
            counts.append(overlaps(torch.from_numpy(np.array(labels))[None], torch.from_numpy(wanted)[None]))
            picture, parts = f"{number:05d}{source.suffix}", f"{number:05d}_parts.png"
            shutil.copyfile(source, made / picture)
            labels.save(made / parts)
            told = {name: value for name, value in row.items() if not name.endswith("file_name")}  # of true parts
            lines.append(json.dumps({"file_name": picture, "parts_file_name": parts, **told}) + "\n")
        (made / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return mean_iou(torch.cat(counts))
