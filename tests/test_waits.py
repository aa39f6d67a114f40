"""How often a step waits for its device: counted as what would have to wait there, whatever the device is here."""

import functools
import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from make_step import LatentLoss, arms, make_stack, make_step
from torch.utils._python_dispatch import TorchDispatchMode
from waits import Waits

from mldm_plugin.engine.numbers import StepMeter
from mldm_plugin.engine.term import Term
from mldm_plugin.plugins import load_plugins
from mldm_plugin.training.objective import Objective


@pytest.fixture(scope="module")
def published_stack():
    """Makes stacks of the two losses of the preset mldm, with random networks, each of which is built once."""
    losses = load_plugins().losses
    masked_lpips = functools.cache(lambda **options: losses["masked_lpips"](weights="random", **options))
    face = functools.cache(lambda **options: losses["face"](weights="random", **options))

    def published_stack(network=None, form="spatial", **options):
        own = face(network=network) if network else face()
        return make_stack(Term("masked_lpips", masked_lpips(form=form), 0.2), Term("face", own, 0.5), **options)

    return published_stack


def counted(stack, step):
    with Waits(on_host=step.face_boxes) as waits:
        report = stack(step)
        report.numbers()
    return waits.seen, report


def past_the_start(stack, step):
    stack.prove(step)
    stack(step)
    stack.start_up = None
    return replace(step, base_loss=F.mse_loss(step.model_pred, step.target))


@pytest.mark.parametrize("network", ["vggface2_resnet50", "vggface2_inception", "dlib_resnet"])
@pytest.mark.parametrize(
    ("timesteps", "expected"),
    [((900, 800), ["tolist"]), ((50, 800), ["tolist", "tolist"]), ((50, 20), ["tolist", "tolist"])],
    ids=["no gate open", "one", "all"],
)
def test_one_wait_in_a_closed_step_and_two_in_an_open_one(published_stack, timesteps, expected, network):
    step = make_step(timesteps)
    stack = published_stack(network)
    seen, report = counted(stack, past_the_start(stack, step))
    assert seen == expected
    assert sum(term.gated for term in report.terms.values()) == 2 * sum(t <= 100 for t in timesteps)


BY_LANDMARKS = "identity by landmarks"
OTHERS = sorted({*load_plugins().losses.entries, BY_LANDMARKS} - {"masked_lpips", "face"})


def stack_of_another(name):
    """Any other loss, its network random and small if it has one, and a step that has all that losses need."""
    loss = load_plugins().losses[name.removesuffix(" by landmarks")]
    options = {"weights": "random"} if "weights" in inspect.signature(loss).parameters else {}
    options |= {"align": "landmarks"} if name == BY_LANDMARKS else {}
    return make_stack(Term(name, loss(**options), 0.3)), replace(make_step((50, 20)), keypoints=arms(2))


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_loss_waits_no_more(name):
    stack, step = stack_of_another(name)
    step = past_the_start(stack, step)
    with Waits(on_host=[*step.face_boxes, *step.keypoints]) as waits:
        report = stack(step)
    assert waits.seen == ["tolist", "tolist"]
    assert report.terms[name].gated == 2


def test_asking_the_network_again_costs_no_wait():
    step = make_step((50, 20))
    stack = make_stack(Term("latent", LatentLoss(), 0.3), audit_steps=0)
    stack.schedule.answers = 2
    stack.start_up = None
    weight = torch.ones((), requires_grad=True)
    asked = []

    def predict(noisy, timesteps, rows):
        asked.append(rows)
        return weight * noisy

    step = replace(step, base_loss=F.mse_loss(step.model_pred, step.target), predict=predict)
    with Waits(on_host=step.face_boxes) as waits:
        stack(step).loss.backward()
    assert waits.seen == ["tolist", "tolist"]
    assert asked == [[0, 1], [0, 1]]


def test_people_one_by_one_cost_one_wait_more(published_stack):
    """How many there are shapes their masks."""
    step = make_step((50, 20))
    stack = published_stack(form="features")
    seen, _ = counted(stack, past_the_start(stack, step))
    assert seen == ["tolist", "_unique2", "tolist"]


def test_boxes_on_the_device_cost_a_wait_each(published_stack):
    step = make_step((50, 20))
    stack = published_stack()
    step = past_the_start(stack, step)
    with Waits() as waits:
        stack(step)
    assert waits.seen == ["to the host"] * 2 + ["tolist"] * 2


def test_a_trainer_waits_no_more_from_its_forward_pass_to_its_backward(train, random_preset, tmp_path, monkeypatch):
    found, call, backward = [], Objective.__call__, Accelerator.backward

    def watched_call(self, step):
        if self.stack is not None:
            self.stack.start_up = None
        found.append(Waits(on_host=step.face_boxes or ()))
        found[-1].__enter__()
        return call(self, step)

    def watched_backward(self, loss):
        backward(self, loss)
        found[-1].__exit__(None, None, None)

    monkeypatch.setattr(Objective, "__call__", watched_call)
    monkeypatch.setattr(Accelerator, "backward", watched_backward)
    assert train(tmp_path / "plain") == 0
    assert [w.seen for w in found] == [[], []]
    found.clear()
    assert train(tmp_path / "mldm", "--loss-plugin", "mldm", "--preset", random_preset) == 0
    assert {tuple(w.seen) for w in found} <= {("tolist",), ("tolist", "tolist")}
    assert len(found) == 2


def test_the_backward_pass_waits_for_nothing(published_stack):
    step = make_step((50, 20))
    stack = published_stack(combine="additive")
    stack.prove(step)
    stack.start_up = None
    loss = stack(step).loss
    with Waits() as waits:
        loss.backward()
    assert waits.seen == []


FORWARD = ("bincount", "scatter_add", "histc")
BACKWARD = ("roi", "replication_pad", "grid_sampler", "bilinear", "bicubic", "adaptive_avg_pool")


def unordered(names):
    """Those that add up in any order on a GPU; most do so in the backward pass alone."""
    forward = {name for name in names if any(word in name for word in FORWARD)}
    return forward | {n for n in names if n.endswith("backward") and any(word in n for word in BACKWARD)}


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
    assert unordered(names.seen) == set()


@pytest.mark.parametrize("name", OTHERS)
def test_of_the_other_losses_only_that_on_turned_squares_is_not_the_same_each_run(name):
    """As the cards of keypoints and identity, and docs/training_loop.md say."""
    stack, step = stack_of_another(name)
    with Names() as names:
        stack(replace(step, base_loss=None)).loss.backward()
    assert unordered(names.seen) == ({"grid_sampler_2d_backward"} if name in ("keypoints", BY_LANDMARKS) else set())


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
    x, boxes = torch.arange(4), torch.rand(2, 4)
    with Waits(on_host=[boxes]) as waits:
        x.sum().item()
        bool(x.any())
        x[x > 1]
        x.nonzero()
        x.tolist()
        x.new_tensor([1])
        x[[0, 1]]
        x[x > 1] = torch.arange(2, device=x.device)
        x.bincount()
        x.repeat_interleave(x)
        x.cpu()
        x.to("cpu", torch.float32)
        x.numpy()
        np.asarray(x)
        boxes.to(x)
        boxes.to(x.device, torch.float64)
        torch.tensor([1, 2], device=x.device)
        torch.tensor([1, 2]).to(x.device)
        x[torch.tensor([1, 2])]
        x.copy_(torch.tensor([1, 2, 3, 4]))
    expected = ["_local_scalar_dense", "_local_scalar_dense", "index", "nonzero", "tolist", "new_tensor"]
    expected += ["list as index", "index_put_", "bincount", "repeat_interleave", "to the host", "to the host", "numpy"]
    expected += ["__array__", "to the device", "to the device", "made on the device", "to the device"]
    assert waits.seen == [*expected, "index from the host", "copy_"]


def test_the_counter_passes_over_what_does_not_wait():
    x, boxes = torch.arange(4), torch.rand(2, 4)
    with Waits(on_host=[boxes]) as waits:
        boxes.double().cpu().to("cpu").numpy()
        boxes[boxes > 0].tolist()
        float(boxes[0, 0])
        bool(torch.from_numpy(np.ones(3)).any())
        x.to(torch.float64)
        x.repeat_interleave(2)
        x[x > 1] = 0
        x[1:, None]
        x[boxes.to(x.device, non_blocking=True).long()[0]] + x
        torch.tensor([1, 2]).to(x, non_blocking=True)
        torch.arange(3, device=x.device)
    assert waits.seen == []
