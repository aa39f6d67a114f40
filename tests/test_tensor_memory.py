"""TensorMemory: bytes counted as they come and go."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from mldm_plugin.planning.tensor_memory import TensorMemory


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()).requires_grad_(False)


def test_counts_what_is_made_and_forgets_what_is_freed():
    before = torch.zeros(1000)
    with TensorMemory() as memory:
        one = torch.zeros(1000)
        two = one + before
        assert memory.live == 8000
        view = two.view(10, 100).t()[2:]
        view += 1
        assert memory.live == 8000
        del one
        assert memory.live == 4000
        del two
        assert memory.live == 4000  # the view holds it
        del view
    assert (memory.live, memory.peak) == (0, 8000)


def test_what_a_network_keeps_for_its_backward_pass():
    x, net = torch.zeros(8, 64, requires_grad=True), network()
    with TensorMemory() as memory:
        y = net(x)
        kept = memory.live
        y.sum().backward()
        del y
    size = 8 * 64 * 4
    assert kept == 2 * size  # both ReLUs' results; a frozen linear layer keeps nothing
    assert memory.live == size  # the gradient
    assert memory.peak > kept
    with TensorMemory() as less:
        y = checkpoint(net, x, use_reentrant=False)
        assert less.live == size
        assert y.requires_grad


def test_counts_the_same_without_taking_the_memory():
    with TensorMemory() as real:
        network()(torch.zeros(8, 64, requires_grad=True)).sum().backward()
    with FakeTensorMode(allow_non_fake_inputs=True), TensorMemory() as fake:
        network()(torch.zeros(8, 64, requires_grad=True)).sum().backward()
    assert abs(fake.peak - real.peak) <= 0.02 * real.peak
