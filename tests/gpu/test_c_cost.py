"""Memory and time at the shapes of Stable Diffusion 1.5, 512², and the goals of docs/performance_details.md."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from gpu_steps import share_of_time

from mldm_plugin.bench.goals import GOALS
from mldm_plugin.bench.sizes import SUBJECTS
from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.perceptual.frozen import Frozen, computing_in
from mldm_plugin.perceptual.lpips_network import LPIPSNetwork
from mldm_plugin.planning.families import FAMILIES


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return AutoencoderKL(**FAMILIES["sd15"].vae).requires_grad_(False)


def peak_gb(decoder, dtype, n=1):
    """The most that decoding n pictures of 512² and their gradient takes, in GB of 10⁹ bytes."""
    latents = torch.randn(n, 4, 64, 64, device="cuda", requires_grad=True)
    with computing_in(dtype):
        decoder(latents.detach())
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        decoder(latents).square().mean().backward()
    return (torch.cuda.max_memory_allocated() - before) / 1e9


def milliseconds(run, rounds=10):
    """Median of one call."""
    for _ in range(3):
        run()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def test_memory_of_a_decode(vae, note):
    plain = peak_gb(LatentDecoder(vae), torch.float32)
    half = peak_gb(LatentDecoder(vae), torch.bfloat16)
    note("decode of one picture of 512², float32: memory", plain, "GB")
    note("the same with bfloat16 weights", half, "GB", at_most=0.6 * plain)
    note("the same, checkpointed", peak_gb(LatentDecoder(vae, checkpointing=True), torch.bfloat16), "GB", at_most=half)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def test_memory_order_of_the_decoder_and_of_vgg(dtype, vae, note, monkeypatch):
    """channels_last only where it pays: the order that `Frozen` chooses against the other one."""
    networks = {
        "decoder": (lambda: LatentDecoder(vae), torch.randn(1, 4, 64, 64, device="cuda")),
        "VGG16": (lambda: LPIPSNetwork("vgg", "random"), torch.rand(1, 3, 512, 512, device="cuda") * 2 - 1),
    }
    for name, (build, given) in networks.items():
        times = {}
        for layout in (torch.contiguous_format, torch.channels_last):
            monkeypatch.setattr(Frozen, "layout_on", lambda self, device, layout=layout: layout)
            network = build()
            leaf = given.clone().requires_grad_()

            def run(network=network, leaf=leaf):
                with computing_in(dtype):
                    out = network(leaf)
                    total = sum(o.square().mean() for o in out) if isinstance(out, list) else out.square().mean()
                    torch.autograd.grad(total, leaf)

            times[layout] = milliseconds(run)
        what = f"{name}, {str(dtype).removeprefix('torch.')}: "
        note(what + "contiguous", times[torch.contiguous_format], "ms")
        note(what + "channels_last", times[torch.channels_last], "ms")


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_goals_of_docs_performance(subject, note, tmp_path):
    """`mldm bench --size sd15` at batch 1 and 8, in bfloat16: steps, the path of the pixels, losses alone.

    A goal that is missed, or not measured in the six minutes that all of this may take, is told, and fails nothing.
    """
    report = Path(os.environ.get("MLDM_GPU_REPORT", tmp_path / "report.json")).parent
    path = report / f"bench-{subject}.json"
    command = [sys.executable, "-m", "mldm_plugin.cli", "bench", "--size", "sd15", "--json", str(path)]
    command += ["--rounds", "5", "--batch", "1,8", "--dtype", "bfloat16", "--subject", subject]
    patience = share_of_time(len(SUBJECTS) - SUBJECTS.index(subject))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience)
    except subprocess.TimeoutExpired:
        found = {"goals": [], "sections": []}
    else:
        (report / f"bench-{subject}.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
        assert done.returncode == 0, done.stderr[-2000:]
        found = json.loads(path.read_text(encoding="utf-8"))
    for goal in found["goals"]:
        judge(note, f"batch {goal['batch']}: {goal['name']}", goal["figure"], goal["relation"], goal["limit"])
    for goal in () if found["goals"] else [g for g in GOALS if g.subject == subject]:
        judge(note, goal.name, None, goal.relation, goal.limit)
    for section in found["sections"]:
        for candidate in section["candidates"]:
            for limit, seconds in candidate.get("mean", {}).items():
                time = None if seconds is None else seconds * 1e3
                note(f"batch {section['batch']}: {subject}, {candidate['name']}, T = {limit}"[:66], time, "ms")


def judge(note, what, figure, relation, limit):
    note(what[:66], figure, "ratio", **{"at_most" if relation == "<=" else "at_least": limit}, must=False)
