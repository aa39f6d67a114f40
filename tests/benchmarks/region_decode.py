"""Decoding only windows against decoding whole pictures: how true, how much work, how fast.

    python tests/benchmarks/region_decode.py --part quality   # the demo's fitted VAE, its photographs and their faces
    python tests/benchmarks/region_decode.py --part work      # counted, Stable Diffusion 1.5's VAE, nothing computed
    python tests/benchmarks/region_decode.py --part time      # the same VAE with random weights, on this machine
    python tests/benchmarks/region_decode.py --part grid      # what rounding windows up costs and saves

quality: a one-step estimate ẑ₀ = z₀ − (σ_t/α_t)·e·n, as the noise prediction ε + e·n would give, n normal of variance
1 and e `--epsilon-error`. Every way to decode is compared with the whole decode of the same ẑ₀: the error of the
picture inside the faces' boxes, for losses on faces, and the gradient of the loss at all of ẑ₀.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mldm_plugin import DiffusionStep, load_plugins
from mldm_plugin.decode.region import RegionDecode
from mldm_plugin.decode.region import windows as module
from mldm_plugin.demo.fit import encode, load_pictures
from mldm_plugin.demo.photos import RESOLUTION, WINDOWS, labels, load_annotations, stored_side
from mldm_plugin.demo.pipeline import FITTED, Size, build_vae, load_fitted
from mldm_plugin.engine.schedule import stable_diffusion_snr
from mldm_plugin.perceptual.face_crops import square_boxes
from mldm_plugin.perceptual.frozen import build_seeded
from mldm_plugin.planning.tensor_memory import TensorMemory

# block_out_channels and layers_per_block of Stable Diffusion 1.5's vae/config.json; groups of AutoencoderKL's default.
SD15 = Size(vae_channels=(128, 256, 512, 512), vae_layers=2, groups=32, sample_size=64)
SIDE = 512
HALOS = (2, 13)  # latent pixels around a naive crop: a little, and Stable Diffusion's whole receptive field


def main() -> None:
    """Print one table, and write its rows as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=sorted(PARTS), default="quality")
    parser.add_argument("--epsilon-error", type=float, default=0.3)
    parser.add_argument("--timesteps", type=int, nargs="+", default=[10, 50, 100, 200, 400])
    parser.add_argument("--every", type=int, default=3, help="every so manieth of the demo's pictures, for quality")
    parser.add_argument("--resolution", type=int, default=RESOLUTION, help="of the demo's pictures, for quality")
    parser.add_argument("--rounds", type=int, default=2, help="for time")
    parser.add_argument("--face", type=float, default=64.0, help="side of the face's box in pixels, for time")
    parser.add_argument("--device", default="cpu", help="for time")
    parser.add_argument("--bf16", action="store_true", help="autocast, for time")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    args = parser.parse_args()
    rows = PARTS[args.part](args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    cells = [list(rows[0])] + [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))))  # noqa: B905, T201


# How true


def quality(args: argparse.Namespace) -> list[dict]:
    """One row for each loss, timestep and way to decode; means over pictures, and the worst."""
    vae = build_seeded(lambda: build_vae(FITTED), 0).eval()
    load_fitted("vae", vae)
    vae.requires_grad_(False)
    factor = vae.config.scaling_factor
    pictures = load_pictures(args.resolution)
    boxes, masks = annotations(args.resolution)
    clean = encode(vae, pictures) * factor
    generator = torch.Generator().manual_seed(0)
    error = torch.randn(clean.shape, generator=generator) * args.epsilon_error
    ways, networks = Ways(vae), {n: load_plugins().losses[n](weights="random") for n in ("face", "masked_lpips")}
    found: dict[tuple, list[dict]] = {}
    for i in range(0, len(pictures), args.every):
        if not len(boxes[i]):
            continue
        known = ways.region.statistics(clean[i : i + 1] / factor)[0]
        for name, (loss, regions) in losses(networks, pictures[i : i + 1], boxes[i], masks[i : i + 1]).items():
            for t in args.timesteps:
                z = (clean[i : i + 1] - stable_diffusion_snr()[t] ** -0.5 * error[i : i + 1]).float() / factor
                for way, row in compare(ways, z, regions, known, pictures[i : i + 1], loss, boxes[i]).items():
                    found.setdefault((name, t, way), []).append(row)
    return [{"loss": name, "decoded": way, "t": t, **summary(rows)} for (name, t, way), rows in found.items()]


def annotations(side: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Face boxes and label maps of the demo's pictures at `side` pixels."""
    coco, boxes, masks = load_annotations(), [], []
    for window in WINDOWS:
        label, found = labels(window, coco)
        boxes.append(torch.tensor(found).reshape(-1, 4) * side / stored_side(window))
        masks.append(F.interpolate(torch.from_numpy(np.array(label))[None, None], side))
    return boxes, torch.cat(masks)


def losses(
    networks: dict[str, Callable], picture: torch.Tensor, boxes: torch.Tensor, mask: torch.Tensor
) -> dict[str, tuple[Callable, torch.Tensor]]:
    """The losses of a decoded picture, and the regions (K, 4) that each looks at."""
    face, lpips = networks["face"], networks["masked_lpips"]
    z = torch.zeros(1, 4, 1, 1)
    rest = {"latents": z, "noise": z, "noisy_latents": z, "timesteps": torch.tensor([10]), "model_pred": z, "target": z}
    rest |= {"target_images": picture, "face_boxes": [boxes], "person_mask": mask}
    y, x = (mask[0, 0] > 0).nonzero(as_tuple=True)
    people = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])[None].float()
    inside = inside_boxes(boxes, picture)
    return {
        "pixels in the boxes": (lambda p: (p - picture)[inside.expand_as(p)].square().mean(), boxes),
        "face": (lambda p: face(DiffusionStep(**rest, pred_images=p)).sum(), square_boxes(boxes)),
        "masked_lpips": (lambda p: lpips(DiffusionStep(**rest, pred_images=p)).sum(), people),
    }


def inside_boxes(boxes: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    """(1, 1, H, W) bool: the pixels inside of any box."""
    inside = torch.zeros(1, 1, *picture.shape[-2:], dtype=torch.bool)
    for x0, y0, x1, y1 in boxes.round().int().tolist():
        inside[:, :, y0:y1, x0:x1] = True
    return inside


class Ways:
    """The ways to decode that are compared; each takes z, regions, statistics of the clean latents, background."""

    def __init__(self, vae: torch.nn.Module) -> None:
        self.vae = vae
        self.region = RegionDecode(copy.deepcopy(vae))
        self.ways: dict[str, Callable] = {
            "whole": lambda z, regions, known, background: vae.decode(z).sample,
            "windows, statistics of clean": lambda z, regions, known, background: self.region(
                z, [regions], known, background
            ),
            "windows, statistics of estimate": lambda z, regions, known, background: self.region(
                z, [regions], self.region.statistics(z)[0], background
            ),
        }
        for halo in HALOS:
            self.ways[f"crop of z, halo {halo}, its own"] = lambda z, regions, known, background, halo=halo: self.crop(
                z, regions, background, halo
            )

    def crop(self, z: torch.Tensor, regions: torch.Tensor, background: torch.Tensor, halo: int) -> torch.Tensor:
        """The naive way: cut z around each window, decode that as if it were a picture, cut the window out of it."""
        picture, side = background.clone(), self.region.downscale
        for window in self.region.windows(regions, *z.shape[-2:]):
            top, left = max(0, window.top - halo), max(0, window.left - halo)
            piece = z[:, :, top : window.top + window.height + halo, left : window.left + window.width + halo]
            y, x, (tall, wide) = (window.top - top) * side, (window.left - left) * side, (w * side for w in window[2:])
            pixels = self.vae.decode(piece).sample[:, :, y : y + tall, x : x + wide]
            down, right = window.top * side, window.left * side
            picture[:, :, down : down + tall, right : right + wide] = pixels
        return picture


def compare(
    ways: Ways,
    z: torch.Tensor,
    regions: torch.Tensor,
    known: torch.Tensor,
    background: torch.Tensor,
    loss: Callable,
    boxes: torch.Tensor,
) -> dict[str, dict]:
    """Of each way: error of the picture in the boxes and of the gradient at z, against the first."""
    inside, rows, true = inside_boxes(boxes, background).expand_as(background), {}, None
    for way, decode in ways.ways.items():
        z = z.detach().requires_grad_()
        picture = decode(z, regions, known, background)
        gradient = torch.autograd.grad(loss(picture), z)[0].flatten()
        picture = picture.detach()
        true = true or (picture, gradient)
        off = (picture - true[0])[inside].abs()
        rows[way] = {
            "mean": float(off.mean()),
            "max": float(off.max()),
            "cosine": float(F.cosine_similarity(gradient, true[1], dim=0)),
            "length": float(gradient.norm() / true[1].norm()),
            "work": 1.0 if way == "whole" else ways.region.share([regions], *z.shape[-2:]),
        }
    return rows


def summary(rows: list[dict]) -> dict:
    """Means over pictures, and the worst of those that say how wrong it gets."""
    mean = {key: statistics.mean(row[key] for row in rows) for key in rows[0]}
    return {
        "error, mean": mean["mean"],
        "max": max(row["max"] for row in rows),
        "cosine, mean": mean["cosine"],
        "worst": min(row["cosine"] for row in rows),
        "length": mean["length"],
        "work of chain": mean["work"],
        "pictures": len(rows),
    }


# How much work


def faces(side: float, count: int) -> torch.Tensor:
    """`count` square faces in a picture of SIDE, as the face loss extends them, each in its own place."""
    places = ((0.3, 0.3), (0.7, 0.3), (0.3, 0.7), (0.7, 0.7)) if count > 1 else ((0.45, 0.4),)
    x, y = (torch.tensor(places[:count]) * SIDE).unbind(1)
    return square_boxes(torch.stack([x - side / 2, y - side / 2, x + side / 2, y + side / 2], dim=1))


def work(args: argparse.Namespace) -> list[dict]:
    """Counted TFLOP and peak bytes of decode and backward, for faces of one picture; statistics are one forward."""
    rows = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        vae, region = build_vae(SD15).eval().requires_grad_(False), RegionDecode(build_vae(SD15))
        whole = counted(lambda z, picture, known: vae.decode(z).sample)
        known = counted(lambda z, picture, known: region.statistics(z)[1], backward=False)
    rows.append({"decoded": "whole", "faces": 1, **whole, "of whole": 1.0, "with statistics": 1.0})
    for count in (1, 2, 4):
        for side in (32, 64, 96, 128, 192, 256, 384):
            boxes = faces(side, count)
            with FakeTensorMode(allow_non_fake_inputs=True):
                row = counted(lambda z, picture, known, boxes=boxes: region(z, [boxes], known, picture))
            part = row["TFLOP"] / whole["TFLOP"]
            rows.append(
                {"decoded": f"faces of {side} px", "faces": count, **row, "of whole": part}
                | {"with statistics": part + known["TFLOP"] / whole["TFLOP"]}
            )
    return rows


def counted(decode: Callable, backward: bool = True) -> dict:
    """TFLOP and peak GB of one way to decode. The loss is the mean square, wherever it looks."""
    z, picture, known = (torch.randn(1, *shape) for shape in ((4, SIDE // 8, SIDE // 8), (3, SIDE, SIDE), (1600,)))
    with FlopCounterMode(display=False) as flops, TensorMemory() as memory:
        made = decode(z.requires_grad_(backward), picture, known)
        if backward:
            made.square().mean().backward()
    return {"TFLOP": flops.get_total_flops() / 1e12, "peak GB": memory.peak / 1e9}


def grid(args: argparse.Namespace) -> list[dict]:
    """Mean work, batches, and shapes in 200 steps, for 1, 4 and 16 pictures with one face of 32 to 256 pixels each."""
    region, rows = RegionDecode(build_vae(SD15)), []
    generator = torch.Generator().manual_seed(0)
    for n in (1, 4, 16):
        draws = [[random_face(generator) for _ in range(n)] for _ in range(200)]
        for module.GRID in (1, 2, 4, 8, 16):
            shares, batches, shapes = [], [], set()
            for boxes in draws:
                shares.append(region.share(boxes, SIDE // 8, SIDE // 8))
                windows = [w for b in boxes for w in region.windows(b, SIDE // 8, SIDE // 8)]
                batches.append(len({w[2:] for w in windows}))
                shapes |= {w[2:] for w in windows}
            row = {"pictures": n, "grid": module.GRID, "work of chain": statistics.mean(shares)}
            rows.append(row | {"batches": statistics.mean(batches), "shapes": len(shapes)})
    return rows


def random_face(generator: torch.Generator) -> torch.Tensor:
    """One face somewhere in a picture, its box a little taller than wide, sizes uniform in their logarithm."""
    u, x, y = torch.rand(3, generator=generator).tolist()
    tall = 32 * 8**u
    left, top = x * (SIDE - 0.8 * tall), y * (SIDE - tall)
    return square_boxes(torch.tensor([[left, top, left + 0.8 * tall, top + tall]]))


# How fast


def timed(args: argparse.Namespace) -> list[dict]:
    """Seconds of decode, squared error in one face's box and backward; candidates in turn, once a round."""
    vae = build_seeded(lambda: build_vae(SD15), 0).eval().requires_grad_(False).to(args.device)
    region = RegionDecode(copy.deepcopy(vae))
    box = torch.tensor([[200.0, 180.0, 200 + args.face, 180 + args.face]])
    [(x0, y0, x1, y1)] = box.int().tolist()
    generator = torch.Generator().manual_seed(0)
    z, picture = (
        torch.randn(1, *s, generator=generator).to(args.device) for s in ((4, SIDE // 8, SIDE // 8), (3, SIDE, SIDE))
    )
    known = region.statistics(z)[0]
    boxes = [square_boxes(box)]
    candidates = {
        "whole": lambda z: vae.decode(z).sample,
        "windows, statistics kept": lambda z: region(z, boxes, known, picture),
        "windows, statistics in the step": lambda z: region(z, boxes, region.statistics(z)[0], picture),
    }
    seconds, busy, peaks = {name: [] for name in candidates}, {name: [] for name in candidates}, {}
    for _ in range(args.rounds):
        for name, decode in candidates.items():
            leaf = z.clone().requires_grad_()
            began, spent = now(args.device), time.process_time()
            with TensorMemory() as memory:
                with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
                    made = decode(leaf)
                (made - picture)[:, :, y0:y1, x0:x1].square().mean().backward()
            seconds[name].append(now(args.device) - began)
            busy[name].append(time.process_time() - spent)
            peaks[name] = memory.peak / 1e9
    whole = statistics.median(seconds["whole"])
    return [
        {"decoded": name, "rounds": len(s), "seconds": statistics.median(s), "least": min(s), "most": max(s)}
        | {
            "times faster": whole / statistics.median(s),
            "CPU seconds": statistics.median(busy[name]),
            "peak GB": peaks[name],
        }
        for name, s in seconds.items()
    ]


def now(device: str) -> float:
    """The clock, once the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


PARTS = {"quality": quality, "work": work, "time": timed, "grid": grid}

if __name__ == "__main__":
    main()
