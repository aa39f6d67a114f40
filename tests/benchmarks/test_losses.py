"""Each loss alone under pytest-benchmark, to compare one commit with another.

    pytest tests/benchmarks/test_losses.py --benchmark-enable --benchmark-autosave
    MLDM_BENCH_RESOLUTION=512 pytest tests/benchmarks/test_losses.py --benchmark-enable --benchmark-compare

`mldm bench --subject losses` measures the same candidates in turn, with memory, in one table.
"""

import os

import pytest
import torch

from mldm_plugin.bench import candidates
from mldm_plugin.bench.host import draw_people
from mldm_plugin.bench.sizes import SIZES
from mldm_plugin.plugins import load_plugins

pytest.importorskip("pytest_benchmark")

RESOLUTION = int(os.environ.get("MLDM_BENCH_RESOLUTION", "64"))  # seconds in all; 512 is what is trained
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def functions():
    return candidates.LossesAlone(load_plugins(()), SIZES["sd15"]).on(draw_people(1, RESOLUTION, DEVICE))


@pytest.mark.parametrize(
    "name",
    [
        candidates.SPATIAL,
        candidates.PACKAGE,
        candidates.FEATURES,
        candidates.LITERAL,
        candidates.DISTANCE,
        candidates.LITERAL_DISTANCE,
        candidates.FACE,
    ],
)
def test_forward_and_backward(benchmark, functions, name):
    def run():
        result = candidates.value_and_gradient(*functions[name])
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return result

    value, gradients = benchmark(run)
    assert value > 0
    assert all(torch.isfinite(g).all() for g in gradients)
