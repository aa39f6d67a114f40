"""Each loss's gradient beside the plain loss's: what is measured, what it costs, and that it changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from make_step import FaceLoss, LatentLoss, PictureLoss, Push, ddpm, make_stack, make_step, step_of, tiny_vae
from waits import Waits

from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.engine.audit import EVERY_STEPS, is_reading
from mldm_plugin.engine.heard import QUANTITIES, Tally, complaints
from mldm_plugin.engine.ranges import RANGES, range_of
from mldm_plugin.engine.term import Term
from mldm_plugin.planning.tensor_memory import TensorMemory
from mldm_plugin.plugins import load_plugins


def three_terms(t=100, **options):
    terms = [Term("picture", PictureLoss(), 0.2, t), Term("face", FaceLoss(), 0.4, t)]
    return make_stack(*terms, Term("latent", LatentLoss(), 0.1, t), **options)


def started(stack, step):
    """Past the proofs and checks of the first steps, with nothing measured yet."""
    stack.prove(step)
    stack.start_up = None
    return stack


@pytest.mark.parametrize(("combine", "kept"), [("convex", 0.5), ("additive", 1.0)])
def test_by_hand(combine, kept):
    """An error of (3, 4) in 256 numbers: h = 2 (3, 4) / 256; the loss pushes the second by 0.5 · 2."""
    stack = make_stack(Term("push", Push(), 0.5), scheduler=ddpm("sample"), combine=combine, decoder=None)
    stack(step_of([3.0, 4.0]))
    logs = stack.audit.read(1)
    assert logs.pop("push/measured/t0-99") == 1
    assert logs == {
        "push/pictures": 1,
        "push/faces": 2,
        "push/hands": 0,
        "push/gradient/t0-99": pytest.approx(1.0),
        "push/plain/t0-99": pytest.approx(10 / 256),
        "push/cosine/t0-99": pytest.approx(4 / 5),
        "push/share/t0-99": pytest.approx(1 / (1 + kept * 10 / 256)),
    }


def alone(term, step, **options):
    """The gradient that a term adds for each image, by a stack that has no other: (N, …)."""
    found = []
    for terms in ((replace(term),), ()):
        stack = make_stack(*terms, combine="additive", audit_steps=0, **options)
        stack.start_up = None
        (gradient,) = torch.autograd.grad(stack(step).loss, step.model_pred)
        found.append(gradient * len(step))
    return found[0] - found[1], found[1]


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 99),
    timesteps=st.lists(st.sampled_from((5, 50, 150, 250, 650)), min_size=1, max_size=4),
    faceless=st.sets(st.integers(0, 3)),
    batch=st.sampled_from((1, None)),
)
def test_what_is_measured_is_what_each_loss_alone_would_give(seed, timesteps, faceless, batch):
    step = make_step(tuple(timesteps), seed=seed, base_loss=False)
    boxes = [torch.empty(0, 4) if i in faceless else b for i, b in enumerate(step.face_boxes)]
    step = replace(step, face_boxes=boxes)
    stack = three_terms(t=200, combine="additive", decode_batch=batch)
    stack.start_up = None
    stack(step)
    logs = stack.audit.read(1)
    place = [RANGES[sum(t >= start for start in (100, 200, 400, 700))] for t in timesteps]
    for term in stack.terms:
        gradient, plain = alone(term, step)
        rows = [i for i, t in enumerate(timesteps) if t <= 200 and not (term.name == "face" and i in faceless)]
        assert logs[f"{term.name}/pictures"] == len(rows)
        for range_ in {place[i] for i in rows}:
            own = [i for i in rows if place[i] == range_]
            assert logs[f"{term.name}/measured/{range_}"] == len(own)
            norms = [gradient[i].norm().item() for i in own]
            cosines = [F.cosine_similarity(gradient[i].flatten(), plain[i].flatten(), 0).item() for i in own]
            assert logs[f"{term.name}/gradient/{range_}"] == pytest.approx(sum(norms) / len(own), rel=1e-3)
            assert logs[f"{term.name}/cosine/{range_}"] == pytest.approx(sum(cosines) / len(own), abs=1e-3)
            length = sum(plain[i].norm().item() for i in own) / len(own)
            assert logs[f"{term.name}/plain/{range_}"] == pytest.approx(length, rel=1e-4)


def published(**options):
    losses = load_plugins().losses
    terms = [Term("masked_lpips", losses["masked_lpips"](weights="random", network="alex"), 0.2)]
    terms += [Term("face", losses["face"](weights="random", network="dlib_resnet"), 0.5)]
    return make_stack(*terms, **options)


def in_bfloat16(step):
    names = ("latents", "noise", "noisy_latents", "target")
    halves = {name: getattr(step, name).bfloat16() for name in names}
    return replace(step, **halves, model_pred=step.model_pred.detach().bfloat16().requires_grad_(), base_loss=None)


@pytest.mark.parametrize("make", [three_terms, published], ids=["plain", "published"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_a_measured_step_trains_to_the_bit_what_one_that_is_not_does(make, half):
    step = make_step((50, 20, 900, 99))
    step = in_bfloat16(step) if half else replace(step, base_loss=None)
    found, generator = [], torch.get_rng_state()
    for every in (1, 0):
        stack = started(make(audit_steps=every, decode_batch=2), step)
        report = stack(step)
        (gradient,) = torch.autograd.grad(report.loss, step.model_pred)
        found.append((report, gradient))
        assert bool(stack.audit.read(1)) == (every == 1)
    (one, gradient), (other, expected) = found
    assert torch.equal(gradient, expected)
    assert torch.equal(one.loss, other.loss)
    for name, term in one.terms.items():
        assert torch.equal(term.values, other.terms[name].values)
        assert term.gradient_finite == other.terms[name].gradient_finite
    assert torch.equal(torch.get_rng_state(), generator)


def test_activations_that_are_computed_again_are_so_for_each_pass():
    step = make_step((50, 20), base_loss=False)
    found = []
    for every in (1, 0):
        decoder = LatentDecoder(tiny_vae(), checkpointing=True)
        stack = started(three_terms(decoder=decoder, audit_steps=every), step)
        found.append(torch.autograd.grad(stack(step).loss, step.model_pred)[0])
    assert torch.equal(*found)


def test_an_image_whose_gradient_is_not_finite_is_left_out_of_both_alike():
    class Root(PictureLoss):
        def __call__(self, step):
            bad = (step.pred_images[:1] * 0).square().sum().sqrt()
            return super().__call__(step) + F.pad(bad[None], (0, len(step) - 1))

    step = make_step((50, 20), base_loss=False)
    found = []
    for every in (1, 0):
        stack = make_stack(Term("root", Root(), 0.2), Term("face", FaceLoss(), 0.3), audit_steps=every)
        stack.start_up = None
        report = stack(step)
        assert report.terms["root"].gradient_finite == [False, True]
        found.append(torch.autograd.grad(report.loss, step.model_pred)[0])
        logs = stack.audit.read(1)
    assert torch.equal(*found)
    stack = make_stack(Term("root", Root(), 0.2), Term("face", FaceLoss(), 0.3), audit_steps=1)
    stack.start_up = None
    stack(step)
    logs = stack.audit.read(1)
    assert logs["root/measured/t0-99"] == 1
    assert logs["face/measured/t0-99"] == 2


def test_half_precision_is_measured_in_float32():
    """Of a step whose output is rounded: the plain loss's slope is 1e-5 a number, far below float16's."""
    step = make_step((50,), base_loss=False)
    logs = []
    for given_step in (step, replace(step, model_pred=step.model_pred.detach().half().requires_grad_())):
        stack = three_terms(precision="float32")
        stack.start_up = None
        stack(given_step)
        logs.append(stack.audit.read(1))
    for name in ("gradient", "plain", "share", "cosine"):
        assert logs[1][f"face/{name}/t0-99"] == pytest.approx(logs[0][f"face/{name}/t0-99"], rel=0.02)


def test_additive_measures_the_hosts_own_loss_whatever_its_form():
    step = make_step((50, 20), base_loss=False)
    own = F.huber_loss(step.model_pred, step.target, delta=0.1)
    (expected,) = torch.autograd.grad(own, step.model_pred, retain_graph=True)
    stack = three_terms(combine="additive")
    stack.start_up = None
    stack(replace(step, base_loss=own))
    length = (2 * expected).flatten(1).norm(dim=1).mean().item()
    assert stack.audit.read(1)["face/plain/t0-99"] == pytest.approx(length, rel=1e-5)


def test_the_hosts_weights_and_the_presets_weighting_count():
    step = replace(make_step((50,), base_loss=False), base_weights=torch.tensor([4.0]))
    lengths = []
    for options in ({}, {"base_weighting": lambda snr: 0.5 * torch.ones_like(snr)}):
        stack = three_terms(**options)
        stack.start_up = None
        stack(step)
        lengths.append(stack.audit.read(1)["face/plain/t0-99"])
    error = (step.model_pred - step.target).norm().item() * 2 / 256
    assert lengths == pytest.approx([4 * error, 2 * error])


def test_a_loss_is_measured_where_it_first_reaches_an_image_after_a_reading():
    nobody = [torch.empty(0, 4)] * 2
    stack = three_terms(audit_steps=1)
    stack.start_up = None
    measured = []
    for step in (make_step((900, 800)), make_step((50, 20)), make_step((50, 20))):
        stack(replace(step, face_boxes=nobody))
    logs = stack.audit.read(1)
    measured.append([logs.get(f"{name}/measured/t0-99") for name in ("picture", "face", "latent")])
    assert (logs["picture/pictures"], logs["face/pictures"], logs["picture/faces"]) == (4, 0, 0)
    stack(replace(make_step((50, 20)), face_boxes=nobody))
    stack(make_step((50, 20)))
    logs = stack.audit.read(2)
    measured.append([logs.get(f"{name}/measured/t0-99") for name in ("picture", "face", "latent")])
    assert measured == [[2, None, 2], [2, 2, 2]]  # where the face is measured, of the others its share alone is made
    assert (logs["picture/pictures"], logs["face/pictures"], logs["face/faces"]) == (4, 2, 4)


def test_a_wide_loss_is_not_measured_where_a_narrow_one_looks():
    """One image a step, a third of them below the narrow gate: so is a third of what is measured of the wide one."""
    narrow, wide = (
        Term("narrow", PictureLoss(), 0.2, max_timestep=99),
        Term("wide", LatentLoss(), 0.2, max_timestep=None),
    )
    stack = make_stack(narrow, wide, audit_steps=3)
    stack.start_up = None
    ranges = []
    for number in range(1, 31):
        stack(make_step(((800, 850, 50)[number % 3],), seed=number))
        logs = stack.audit.read(number)
        ranges += [name for name in logs if name.startswith("wide/measured/")]
    assert len(ranges) > 5
    assert sum("t0-99" in name for name in ranges) <= len(ranges) / 2


def test_nothing_at_all_is_quiet_too():
    (text,) = complaints(tally(gradient=0.0, alone=0.0, whole=1.0), 0.5, 1.0).values()
    assert "has no gradient on the pictures it reaches: it trains nothing" in text


def test_hands_are_wrists_that_are_labelled():
    person = torch.zeros(1, 17, 3)
    person[0, [5, 7, 9, 10], 2] = torch.tensor([2.0, 2.0, 2.0, 1.0])
    step = replace(make_step((50, 20)), keypoints=[person, torch.zeros(0, 17, 3)])
    stack = three_terms()
    stack(step)
    assert stack.audit.read(1)["picture/hands"] == 2


def test_where_nothing_trains_nothing_is_counted():
    stack = three_terms(audit_steps=1)
    with torch.no_grad():
        stack(make_step((50, 20)))
    assert stack.audit.read(1) == {"picture/pictures": 0, "picture/faces": 0, "picture/hands": 0} | {
        f"{name}/{what}": 0 for name in ("face", "latent") for what in ("pictures", "faces", "hands")
    }
    assert stack.audit.table() == ""


def test_a_detached_loss_is_counted_and_not_measured():
    stack = make_stack(Term("picture", PictureLoss(), 0.2, detach=True), Term("face", FaceLoss(), 0.5))
    stack(make_step((50, 20), base_loss=False))
    logs = stack.audit.read(1)
    assert logs["picture/pictures"] == 2
    assert "picture/gradient/t0-99" not in logs
    plain, face = 0.3 * logs["face/plain/t0-99"], logs["face/gradient/t0-99"]  # what both leave of the plain loss
    assert logs["face/share/t0-99"] == pytest.approx(face / (plain + face))


def test_a_measured_step_waits_no_more_and_a_reading_once():
    step = make_step((50, 20))
    stack = started(published(audit_steps=2), step)
    step = replace(step, base_loss=F.mse_loss(step.model_pred, step.target))
    range_of(step, stack.schedule)  # numbers of the host, looked up once in a process
    seen = []
    for _ in range(2):  # measured, and not
        with Waits(on_host=step.face_boxes) as waits:
            stack(step)
        seen.append(waits.seen)
    assert seen == [["tolist", "tolist"]] * 2
    with Waits() as waits:
        assert stack.audit.read(3) == {}
        assert waits.seen == []
        assert stack.audit.read(2)
    assert waits.seen == ["tolist"]


def test_readings_are_early_and_then_rare():
    stack = three_terms()
    assert stack.audit.every == 3 * EVERY_STEPS
    assert [s for s in range(1000) if is_reading(s, stack.audit.every)] == [0, 1, 4, 16, 64, 256, 300, 600, 900]
    assert not any(is_reading(s, 0) for s in range(1000))


def test_a_state_goes_on_to_the_bit():
    steps = [make_step((50, 20), seed=seed) for seed in range(6)]

    def run(cut):
        stack = three_terms(audit_steps=2)
        stack.start_up = None
        logs = []
        for i, step in enumerate(steps):
            stack(step)
            logs.append(stack.audit.read(i + 1))
            if i + 1 == cut:
                state = stack.audit.state()
                stack = three_terms(audit_steps=2)
                stack.start_up = None
                stack.audit.resume(state)
        return logs, stack.audit.table()

    whole = run(None)
    assert all(run(cut) == whole for cut in (1, 2, 3, 5))
    assert whole[1].count("reached 12 pictures with 24 faces") == 3


def tally(*, measured=8, gradient=1.0, whole=10.0, cosine=0.1, alone=2.0, place=0):
    """One loss whose images all lie in one range; numbers of each image."""
    sums = [[0.0] * len(RANGES) for _ in QUANTITIES]
    for row, value in zip(sums, (1.0, gradient, whole, 9.0, cosine, alone), strict=True):
        row[place] = measured * value
    return Tally("face", sums)


def test_a_quiet_loss_is_told_how_much_louder_to_be():
    (text,) = complaints(tally(gradient=0.003, whole=1.0), 0.5, float("inf")).values()
    assert text == (
        "face is 0.3 % of the gradient of the pictures it reaches: raise its weight about 37 times or use "
        "`balance: gradient`."
    )
    louder = 37 * 0.003
    assert louder / (louder + 0.997) == pytest.approx(0.1, abs=0.001)
    (text,) = complaints(tally(gradient=0.003, whole=1.0), 0.5, 0.8).values()
    assert "use `balance: gradient`, for the convex mix has no room" in text
    assert complaints(tally(gradient=0.003, whole=1.0, measured=3), 0.5, 1.0) == {}
    assert complaints(tally(gradient=0.02, whole=1.0), 0.5, 1.0) == {}


def test_losses_that_pull_apart_are_told_where():
    found = complaints(tally(cosine=-0.4, place=1), 0.5, 1.0)
    assert "face and the plain loss pull apart at t 100-199 (cosine -0.40)" in found["face t100-199"]
    assert complaints(tally(cosine=-0.19), 0.5, 1.0) == {}


def test_each_complaint_is_made_once():
    said = []
    terms = [Term("push", Push(), 1e-6)]
    stack = make_stack(*terms, scheduler=ddpm("sample"), decoder=None, audit_steps=1, announce=said.append)
    stack.start_up = None
    for number in range(1, 9):
        stack(step_of([3.0, -4.0]))
        stack.audit.read(number)
        if number == 3:
            assert said == []
    assert [text.split(":")[1].strip()[:22] for text in said] == ["push is 0.0051 % of th", "push and the plain los"]
    assert "reached 8 pictures with 16 faces" in stack.audit.table()


def test_a_measured_step_takes_hardly_more_memory():
    """What is kept for a second backward pass is mostly what the first one needs at its peak."""
    step = make_step((50, 20), size=64, latent_size=16, base_loss=False)
    stack = started(published(audit_steps=1), step)
    peaks = []
    for _ in range(2):  # measured, and not
        with TensorMemory() as memory:
            stack(step)
        peaks.append(memory.peak)
    assert peaks[0] < 1.15 * peaks[1]
