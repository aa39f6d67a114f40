"""What `mldm data coco` takes beside a plain loop of pycocotools and Pillow, and whether its memory grows.

    python tests/benchmarks/prepare_throughput.py --rounds 3
    python tests/benchmarks/prepare_throughput.py --memory 1000 10000

The pictures are drawn by `mldm data synthetic` once and then stand in the data set many times under other names, as
links. Candidates run in turn, each in a process of its own from its start to its end. The plain loop is what one
writes first: open, convert to RGB, save, annToMask, save. A second one copies the file of the picture as it is and
decodes nothing, so a broken picture goes unnoticed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

DRAWN = 60
SAMPLES_PER_SECOND = 20


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--size", type=int, default=512, help="pixels of the drawn pictures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="*", help="numbers of pictures to compare the peak memory of")
    parser.add_argument("--loop", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.loop:
        plain_loop(Path(args.loop[0]), Path(args.loop[1]), copy=args.loop[2] == "copy")
        return
    with tempfile.TemporaryDirectory() as folder:
        drawn = draw(Path(folder) / "drawn", args.size)
        if args.memory:
            measure_memory(drawn, Path(folder), args.memory)
        else:
            measure_time(drawn, Path(folder), args.pictures, args.rounds)


def draw(out: Path, size: int) -> Path:
    words = ["synthetic", "--count", str(DRAWN), "--seed", "0", "--size", str(size), "--out", str(out)]
    subprocess.run([*MLDM, *words], check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return out


MLDM = [sys.executable, "-m", "mldm_plugin.cli", "data"]


def repeat(drawn: Path, folder: Path, count: int) -> Path:
    """A COCO data set of `count` pictures: the drawn ones over and over, under other names and ids."""
    content = json.loads((drawn / "instances.json").read_text())
    captions = json.loads((drawn / "captions.json").read_text())
    (folder / "images").mkdir(parents=True)
    of_image: dict[int, list[dict]] = {}
    for annotation in content["annotations"]:
        of_image.setdefault(annotation["image_id"], []).append(annotation)
    images, annotations, texts = [], [], []
    for k in range(count):
        image = content["images"][k % len(content["images"])]
        name = f"{k:07d}.jpg"
        os.link(drawn / "images" / image["file_name"], folder / "images" / name)
        images.append(image | {"id": k + 1, "file_name": name})
        annotations += [a | {"image_id": k + 1} for a in of_image.get(image["id"], [])]
        texts += [c | {"image_id": k + 1} for c in captions["annotations"] if c["image_id"] == image["id"]]
    for items in (annotations, texts):
        items[:] = [item | {"id": number} for number, item in enumerate(items, 1)]
    whole = {"images": images, "annotations": annotations, "categories": content["categories"]}
    (folder / "instances.json").write_text(json.dumps(whole))
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": texts}))
    return folder


def ours(data: Path, out: Path) -> list[str]:
    words = ["--images", str(data / "images"), "--instances", str(data / "instances.json")]
    return [*MLDM, "coco", *words, "--captions", str(data / "captions.json"), "--out", str(out)]


def loop(data: Path, out: Path, kind: str) -> list[str]:
    return [sys.executable, __file__, "--loop", str(data), str(out), kind]


def plain_loop(data: Path, out: Path, *, copy: bool) -> None:
    """The candidate: what somebody writes who needs it once."""
    from pycocotools.coco import COCO

    warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
    coco, texts = COCO(data / "instances.json"), COCO(data / "captions.json")
    (out / "images").mkdir(parents=True)
    (out / "masks").mkdir()
    person = coco.getCatIds(catNms=["person"])
    rows = []
    for image_id in coco.getImgIds(catIds=person):
        image = coco.loadImgs(image_id)[0]
        path = data / "images" / image["file_name"]
        name = image["file_name"]
        if copy:
            shutil.copy(path, out / "images" / name)
        else:
            Image.open(path).convert("RGB").save(out / "images" / name, quality=95)
        labels = np.zeros((image["height"], image["width"]), np.uint8)
        for k, annotation in enumerate(coco.loadAnns(coco.getAnnIds(imgIds=image_id, catIds=person)), 1):
            labels[coco.annToMask(annotation) == 1] = k
        mask = f"masks/{Path(name).stem}.png"
        Image.fromarray(labels).save(out / mask)
        text = [c["caption"] for c in texts.loadAnns(texts.getAnnIds(imgIds=image_id))]
        rows.append(json.dumps({"file_name": f"images/{name}", "text": text, "mask_file_name": mask}))
    (out / "metadata.jsonl").write_text("\n".join(rows))


def measure_time(drawn: Path, folder: Path, count: int, rounds: int) -> None:
    data = repeat(drawn, folder / "data", count)
    out = folder / "out"
    candidates = {
        "plain loop": loop(data, out, "save"),
        "plain loop that copies": loop(data, out, "copy"),
        "mldm data coco": ours(data, out),
        "mldm data coco, one process": [*ours(data, out), "--workers", "1"],
        "mldm data coco, parquet": [*ours(data, out), "--format", "parquet"],
    }
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, command in candidates.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - started)
            shutil.rmtree(out)
    first = times["plain loop"]
    print(f"{count} pictures, {rounds} rounds, {os.cpu_count()} cores")  # noqa: T201
    print(f"{'':<28} {'s':>7} {'spread':>16} {'pictures/s':>11} {'times as fast':>14}")  # noqa: T201
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        ratio = statistics.median(a / b for a, b in zip(first, seconds, strict=True))
        spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
        print(f"{name:<28} {middle:>7.1f} {spread:>16} {count / middle:>11.0f} {ratio:>14.2f}")  # noqa: T201


def measure_memory(drawn: Path, folder: Path, counts: list[int]) -> None:
    print(f"{'pictures':>9} {'peak MB, all processes':>24} {'ratio':>7}")  # noqa: T201
    first = None
    for count in counts:
        data = repeat(drawn, folder / f"data-{count}", count)
        peak = peak_memory(ours(data, folder / f"out-{count}"))
        first = first or peak
        print(f"{count:>9} {peak / 1e6:>24.0f} {peak / first:>7.2f}")  # noqa: T201


def peak_memory(command: list[str]) -> int:
    """The largest sum of resident memory over the process and all below it."""
    peak = 0
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    root = psutil.Process(running.pid)
    while running.poll() is None:
        total = 0
        try:
            for process in (root, *root.children(recursive=True)):
                total += process.memory_info().rss
        except psutil.Error:
            continue
        peak = max(peak, total)
        time.sleep(1 / SAMPLES_PER_SECOND)
    if running.returncode:
        raise SystemExit(f"{command} ended with {running.returncode}")
    return peak


if __name__ == "__main__":
    main()
