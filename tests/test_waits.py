"""How often a step waits for its device: counted as what would have to wait there, whatever the device is here."""

import functools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from make_step import make_stack, make_step
from torch.utils._python_dispatch import TorchDispatchMode
from waits import Waits

from mldm_plugin.engine.numbers import StepMeter
from mldm_plugin.engine.term import Term
from mldm_plugin.plugins import load_plugins


@pytest.fixture(scope="module")
def published_stack():
    """Makes stacks of the two losses of the preset mldm, with random networks, each of which is built once."""
    losses = load_plugins().losses
    masked_lpips = losses["masked_lpips"](weights="random")
    face = functools.cache(lambda **options: losses["face"](weights="random", **options))

    def published_stack(network=None, **options):
        own = face(network=network) if network else face()
        return make_stack(Term("masked_lpips", masked_lpips, 0.2), Term("face", own, 0.5), **options)

    return published_stack


def counted(stack, step):
    with Waits() as waits:
        report = stack(step)
        report.numbers()
    return waits.seen, report


@pytest.mark.parametrize("network", ["vggface2_resnet50", "vggface2_inception", "dlib_resnet"])
@pytest.mark.parametrize(
    ("timesteps", "expected"),
    [((900, 800), ["tolist"]), ((50, 800), ["tolist", "tolist"]), ((50, 20), ["tolist", "tolist"])],
    ids=["no gate open", "one", "all"],
)
def test_one_wait_in_a_closed_step_and_two_in_an_open_one(published_stack, timesteps, expected, network):
    step = make_step(timesteps)
    stack = published_stack(network)
    stack.prove(step)
    stack(step)
    stack.start_up = None
    seen, report = counted(stack, replace(step, base_loss=F.mse_loss(step.model_pred, step.target)))
    assert seen == expected
    assert sum(term.gated for term in report.terms.values()) == 2 * sum(t <= 100 for t in timesteps)


def test_the_backward_pass_waits_for_nothing(published_stack):
    step = make_step((50, 20))
    stack = published_stack(combine="additive")
    stack.prove(step)
    stack.start_up = None
    loss = stack(step).loss
    with Waits() as waits:
        loss.backward()
    assert waits.seen == []


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_nothing_is_computed_whose_gradient_a_gpu_adds_up_in_any_order(published_stack):
    """RoIAlign and replicate padding did, and torch.use_deterministic_algorithms refuses them there."""
    step = make_step((50, 20))
    stack = published_stack()
    with Names() as names:
        stack(step).loss.backward()
    assert "convolution_backward" in names.seen  # operations of the backward pass are seen
    unordered = ("roi", "replication_pad", "grid_sampler", "bincount", "bilinear", "bicubic", "scatter_add", "histc")
    assert not {name for name in names.seen if any(word in name for word in unordered)}


def test_the_log_of_an_optimizer_step_waits_once(published_stack):
    stack = published_stack()
    meter = StepMeter([t.name for t in stack.terms])
    reports = [stack(make_step((50, 20))), stack(make_step((900, 800)))]
    with Waits() as waits:
        for report in reports:
            meter.add(report.numbers())
        assert waits.seen == []
        meter.mean()
    assert waits.seen == ["tolist"]


def test_the_counter_sees_what_waits():
    x = torch.arange(4)
    with Waits() as waits:
        x.sum().item()
        bool(x.any())
        x[x > 1]
        x.nonzero()
        x.tolist()
        x.new_tensor([1])
        x[[0, 1]]
    expected = ["_local_scalar_dense", "_local_scalar_dense", "index", "nonzero", "tolist", "new_tensor"]
    assert waits.seen == [*expected, "list as index"]
