"""One loss in the mix: values and gradients that cannot be used, and a loss that says too little."""

import logging
import math
from dataclasses import replace

import pytest
import torch
from make_step import FaceLoss, PictureLoss, make_stack, make_step, two_terms

from mldm_plugin.engine.term import Term
from mldm_plugin.errors import LossError, NonFiniteLossError


class Poisoned(PictureLoss):
    bad = True

    def __call__(self, step):
        return super().__call__(step) * (math.nan if self.bad else 1)


def test_a_term_that_is_not_finite_is_left_out_counted_and_after_ten_steps_stops_the_run(caplog):
    loss = Poisoned()
    stack = make_stack(Term("bad", loss, 0.2), Term("face", FaceLoss(), 0.5))
    loss.bad = False
    stack(make_step((50,)))
    loss.bad = True
    step = make_step((50,))
    with caplog.at_level(logging.WARNING):
        report = stack(step)
    assert "the value of loss 'bad' was not finite" in caplog.text
    assert report.logs()["bad/nonfinite"] == 1
    assert report.logs()["bad"] is None
    torch.testing.assert_close(
        report.loss.detach(), 0.5 * report.terms["face"].raw[0] + 0.5 * report.ldm
    )  # its weight went back to the plain loss
    report.loss.backward()
    assert torch.isfinite(step.model_pred.grad).all()
    for _ in range(8):
        stack(step)
    stack(make_step((500,)))  # a step without a gated image neither counts nor resets
    with pytest.raises(NonFiniteLossError, match="'bad' was NaN or infinite in 10 steps in a row") as error:
        stack(step)
    assert torch.isfinite(error.value.report.loss)
    loss.bad = False
    stack.terms[0].nonfinite_in_a_row = 9
    stack(make_step((50,))).loss.backward()
    stack(make_step((900,)))
    assert stack.terms[0].nonfinite_in_a_row == 0


class RootAtZero(PictureLoss):
    """A finite value whose gradient is NaN when `bad`."""

    bad = False

    def __call__(self, step):
        return super().__call__(step) + ((step.pred_images * 0).square().sum((1, 2, 3)).sqrt() if self.bad else 0)


def test_a_gradient_that_is_not_finite_is_stopped_counted_and_after_ten_steps_stops_the_run(caplog):
    loss = RootAtZero()
    stack = make_stack(Term("bad", loss, 0.2), Term("face", FaceLoss(), 0.5))
    stack(make_step((50,)))
    loss.bad = True
    alone = make_stack(Term("face", FaceLoss(), 0.5))
    for _ in range(9):
        step, other = make_step((50,)), make_step((50,))
        report = stack(step)
        assert torch.isfinite(report.loss)
        report.loss.backward()
    assert caplog.text.count("the gradient of loss 'bad' was not finite") == 9
    assert report.logs()["bad/nonfinite_gradient"] == 1
    expected = alone(other).loss
    expected.backward()
    torch.testing.assert_close(report.loss, expected)  # the face loss goes on, the weight went to the plain loss
    torch.testing.assert_close(step.model_pred.grad, other.model_pred.grad)
    with pytest.raises(NonFiniteLossError, match="'bad' was NaN or infinite in 10 steps in a row"):
        stack(make_step((50,)))


@pytest.mark.parametrize("kind", ["value", "gradient"])
def test_one_image_that_is_not_finite_leaves_the_others_of_its_batch_alone(kind):
    class BadOnTheDark(PictureLoss):
        def __call__(self, step):
            values = super().__call__(step)
            bad = step.target_images.flatten(1).mean(1) < -0.5
            if kind == "value":
                return values + torch.where(bad, math.nan, 0)
            away_from_0 = torch.where(bad, 0, 1)[:, None]
            return values + ((step.pred_images.flatten(1) * 0).square() + away_from_0).sum(1).sqrt() * 1e-9

    step = make_step((50, 50, 50))
    dark = step.pixel_values.clone()
    dark[1] -= 1
    step = replace(step, pixel_values=dark)
    loss = BadOnTheDark()
    stack = make_stack(Term("picture", loss, 0.2))
    stack.start_up = None  # it would refuse such a loss
    report = stack(step)
    assert report.terms["picture"].weight.tolist() == pytest.approx([0.2, 0, 0.2])
    (gradient,) = torch.autograd.grad(report.loss, step.model_pred, retain_graph=True)
    usual = make_stack(Term("picture", PictureLoss(), 0.2))(
        replace(step, person_mask=step.person_mask.index_fill(0, torch.tensor([1]), 0))
    )
    torch.testing.assert_close(report.loss, usual.loss)
    torch.testing.assert_close(gradient, torch.autograd.grad(usual.loss, step.model_pred)[0])


def test_a_loss_on_the_networks_output_is_guarded_too():
    class OnOutput:
        needs = frozenset()
        bad = False

        def __call__(self, step):
            size = (step.model_pred - step.target).square().flatten(1).sum(1)
            return size + ((step.model_pred * 0).square().flatten(1).sum(1).sqrt() if self.bad else 0)

    loss = OnOutput()
    stack = make_stack(Term("bad", loss, 0.2))
    stack(make_step((50,))).loss.backward()
    loss.bad = True
    step = make_step((50,))
    stack(step).loss.backward()
    assert torch.isfinite(step.model_pred.grad).all()
    assert stack.terms[0].nonfinite_in_a_row == 1
    with torch.no_grad():  # a validation step in between neither counts nor resets
        stack(make_step((50,)))
    stack(make_step((900,)))
    assert stack.terms[0].nonfinite_in_a_row == 1


def test_a_loss_that_fails_is_named_with_its_place():
    stack = make_stack(Term("mine", PictureLoss(), 0.2))
    stack.terms[0].loss = type("Broken", (PictureLoss,), {"__call__": lambda self, step: 1 / 0})()
    with pytest.raises(
        LossError, match=r"loss 'mine' failed: ZeroDivisionError: division by zero \(.*test_term.py, line"
    ):
        stack(make_step((50,)))


def test_a_loss_whose_has_fails_is_named_with_its_place():
    stack = make_stack(Term("mine", PictureLoss(), 0.2))
    stack.terms[0].loss = type("Broken", (PictureLoss,), {"has": lambda self, step: [1 / 0]})()
    with pytest.raises(
        LossError, match=r"loss 'mine' has a `has` that failed: ZeroDivisionError: .*\(.*test_term.py, line"
    ):
        stack(make_step((50,)))


def test_a_loss_must_say_what_it_needs():
    class Silent:
        def __call__(self, step):
            return step.pred_images.flatten(1).mean(1)

    with pytest.raises(LossError, match="'mine' has needs = None, expected a set of face_boxes"):
        Term("mine", Silent(), 0.1)
    Silent.needs = {"pred_image"}
    with pytest.raises(LossError, match="'mine' needs 'pred_image', which no step has: did you mean 'pred_images'"):
        Term("mine", Silent(), 0.1)


def test_a_term_without_effect_is_warned_about_once(caplog, monkeypatch):
    monkeypatch.setattr("mldm_plugin.engine.term.STEPS_WITHOUT_EFFECT", 3)
    stack = two_terms()
    with caplog.at_level(logging.WARNING):
        for _ in range(7):
            stack(make_step((900,), with_faces=False))
    assert [r.getMessage() for r in caplog.records if "'face' had no effect in 3 steps" in r.getMessage()] != []
    assert len(caplog.records) == 2  # one for each term
