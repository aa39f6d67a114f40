"""LossStack: gate, decode once, evaluate, weigh, mix."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from make_step import (
    FaceLoss,
    LatentLoss,
    PictureLoss,
    ddpm,
    flow,
    make_stack,
    make_step,
    people_mask,
    tiny_vae,
    two_terms,
)

from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.engine.schedule import NoiseSchedule
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.engine.term import Term
from mldm_plugin.errors import CheckError, DataError, LossError


def expected_by_eq_3(stack, step, combine="convex"):
    """Eq. 3 written out image by image, with plain loops."""
    total = 0
    for i in range(len(step)):
        one = replace(step.select([i]), base_loss=None)
        b = F.mse_loss(one.model_pred, one.target)
        value, kept = 0, 1.0
        for term in stack.terms:
            has = (one.person_mask > 0).any() if "person_mask" in term.needs else True
            has = has and (len(one.face_boxes[0]) > 0 if "face_boxes" in term.needs else True)
            if one.timesteps.item() <= term.max_timestep and has:
                seen = stack.pictures.of(replace(one, pred_latents=stack.schedule.pred_latents(one)))
                value = value + term.weight * term.loss(seen).squeeze()
                kept -= term.weight
        total = total + value + (kept if combine == "convex" else 1.0) * b
    return total / len(step)


@pytest.mark.parametrize("combine", ["convex", "additive"])
def test_mix_is_eq_3_image_by_image(combine):
    step = make_step((50, 100, 101, 900))
    boxes = list(step.face_boxes)
    boxes[1] = torch.empty(0, 4)
    step = replace(step, face_boxes=boxes)
    stack = two_terms(combine=combine)
    report = stack(step)
    expected = expected_by_eq_3(stack, step, combine)
    torch.testing.assert_close(report.loss, expected, rtol=1e-5, atol=0)
    (mine,) = torch.autograd.grad(report.loss, step.model_pred, retain_graph=True)
    (his,) = torch.autograd.grad(expected, step.model_pred)
    torch.testing.assert_close(mine, his, rtol=1e-4, atol=1e-8)
    assert report.terms["picture"].gate.tolist() == [True, True, False, False]
    assert report.terms["face"].gate.tolist() == [True, False, False, False]
    torch.testing.assert_close(report.terms["face"].weight, torch.tensor([0.5, 0, 0, 0]))


def test_a_batch_equals_its_images_one_by_one():
    step = make_step((50, 20, 700))
    together = two_terms()(step).loss
    alone = [two_terms()(replace(step.select([i]), base_loss=None)).loss for i in range(3)]
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-5, atol=0)


def test_an_image_without_a_face_gives_its_weight_back():
    """Defect 7 of the released code: (.2, .5) became .25 + .60 where there was no face."""
    step = make_step((50,), with_faces=False)
    report = two_terms()(step)
    b, picture = report.ldm, report.terms["picture"].raw[0]
    torch.testing.assert_close(report.loss.detach(), 0.2 * picture + 0.8 * b)


def test_padded_boxes_count_as_no_face():
    """Defect 8 of the released code: [0, 0, 0, 0] beside real boxes gave crops of size zero."""
    step = make_step((50, 50))
    padded = replace(step, face_boxes=[torch.zeros(3, 4), torch.cat([step.face_boxes[1], torch.zeros(2, 4)])])
    report = two_terms()(padded)
    assert report.terms["face"].gate.tolist() == [False, True]
    torch.testing.assert_close(report.terms["face"].raw[1], two_terms()(step).terms["face"].raw[1])


def test_without_people_the_loss_is_the_plain_one_to_the_bit():
    step = replace(make_step((50, 50), with_faces=False), person_mask=torch.zeros(2, 1, 32, 32, dtype=torch.uint8))
    assert two_terms()(step).loss is step.base_loss


def test_above_the_gate_nothing_is_decoded():
    """Defect 12 of the released code: one t for the batch, all or nothing."""
    stack = two_terms()
    stack(make_step((50, 50)))  # the start-up proof decodes
    decoded = []
    original = stack.decoder.vae.decode
    stack.decoder.vae.decode = lambda z, **options: decoded.append(len(z)) or original(z, **options)
    step = make_step((101, 500, 999))
    assert stack(step).loss is step.base_loss
    assert decoded == []
    stack(make_step((101, 60, 999, 3)))
    assert decoded == [2]  # once, and only the two gated images


def test_the_union_is_decoded_once_for_terms_with_different_gates():
    stack = make_stack(Term("picture", PictureLoss(), 0.2, 100), Term("face", FaceLoss(), 0.3, 600))
    stack(make_step((50, 50)))
    decoded = []
    original = stack.decoder.vae.decode
    stack.decoder.vae.decode = lambda z, **options: decoded.append(len(z)) or original(z, **options)
    step = make_step((500, 50, 900, 300))
    report = stack(step)
    assert decoded == [3]
    assert report.terms["picture"].gate.tolist() == [False, True, False, False]
    assert report.terms["face"].gate.tolist() == [True, True, False, True]
    torch.testing.assert_close(report.loss, expected_by_eq_3(stack, step), rtol=1e-5, atol=0)


def test_a_loss_on_latents_needs_no_decoder():
    stack = LossStack(
        [Term("latent", LatentLoss(), 0.4)], schedule=NoiseSchedule.from_scheduler(ddpm()), announce=lambda text: None
    )
    report = stack(make_step((50, 500)))
    assert report.terms["latent"].gate.tolist() == [True, False]


def test_weights_of_zero_are_the_plain_loss_to_the_bit_and_draw_no_random_numbers():
    stack = make_stack(Term("picture", PictureLoss(), 0.0), Term("face", FaceLoss(), 0.0))
    step = make_step((50, 50))
    state = torch.get_rng_state()
    assert stack(step).loss is step.base_loss
    two_terms()(step)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_order_of_terms_does_not_matter():
    step = make_step((50, 20))
    one = two_terms()(step)
    two = make_stack(Term("face", FaceLoss(), 0.5), Term("picture", PictureLoss(), 0.2))(step)
    torch.testing.assert_close(one.loss, two.loss)
    assert list(two.terms) == ["face", "picture"]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_every_parametrisation_gets_the_same_terms(kind):
    """Defect 13 of the released code: x̂0 assumed epsilon. The same wrong z0 gives the same losses."""
    reference = make_step((50,), scheduler=ddpm())
    schedule = NoiseSchedule.from_scheduler(ddpm(kind))
    alpha, sigma = (c.view(-1, 1, 1, 1) for c in schedule.coefficients(reference.timesteps))
    wrong = NoiseSchedule.from_scheduler(ddpm()).pred_latents(reference).detach()
    wrong_noise = (reference.noisy_latents - alpha * wrong) / sigma
    step = replace(
        reference,
        model_pred=schedule.target(wrong, wrong_noise, alpha, sigma).requires_grad_(),
        target=schedule.target(reference.latents, reference.noise, alpha, sigma),
        base_loss=None,
    )
    report = two_terms(scheduler=ddpm(kind))(step)
    expected = two_terms()(reference).terms["picture"].raw
    torch.testing.assert_close(report.terms["picture"].raw, expected, rtol=1e-4, atol=0)


def test_flow_matching():
    step = make_step((50, 950), scheduler=flow())
    report = two_terms(scheduler=flow())(step)
    assert report.terms["picture"].gate.tolist() == [True, False]
    report.loss.backward()
    assert torch.isfinite(step.model_pred.grad).all()


def test_target_decoded_compares_with_the_vaes_own_reconstruction():
    """Defect 14 of the released code: the VAE's reconstruction error is a floor of the loss."""
    step = make_step((50,), error=0.0)
    image, decoded = two_terms()(step), two_terms(target="decoded", picture_check="warn")(step)
    assert image.terms["picture"].raw.item() > 0.01
    assert decoded.terms["picture"].raw.item() < 1e-10
    cached = replace(step, pixel_values=None)
    assert two_terms()(cached).terms["picture"].raw.item() < 1e-10


def test_detached_terms_scale_the_plain_loss_and_train_nothing():
    """What the released code really optimised, defect 1, on purpose."""
    stack = make_stack(Term("picture", PictureLoss(), 0.1, detach=True), Term("face", FaceLoss(), 0.5, detach=True))
    step = make_step((50,))
    report = stack(step)
    (gradient,) = torch.autograd.grad(report.loss, step.model_pred)
    (plain,) = torch.autograd.grad(F.mse_loss(step.model_pred, step.target), step.model_pred)
    torch.testing.assert_close(gradient, (1 - 0.1 - 0.5) * plain)
    assert report.terms["picture"].raw.item() > 0


def test_host_weighting_is_kept_in_the_mix():
    step = make_step((50, 500))
    weights = torch.tensor([0.25, 2.0])
    errors = (step.model_pred - step.target).square().flatten(1).mean(1)
    step = replace(step, base_loss=(errors * weights).mean(), base_weights=weights)
    report = two_terms()(step)
    picture, face = report.terms["picture"].raw[0], report.terms["face"].raw[0]
    first = 0.2 * picture + 0.5 * face + 0.3 * 0.25 * errors[0]
    torch.testing.assert_close(report.loss, (first + 2.0 * errors[1]) / 2)


@pytest.mark.parametrize(
    "own_loss",
    [
        lambda p, t: torch.nn.functional.huber_loss(p, t, delta=0.1),
        lambda p, t: ((p - t).square() * (torch.arange(8) > 3)).mean(),  # a mask
        lambda p, t: (p - t).square().mean() * 0.25 + 0.01 * p.abs().mean(),  # divided, and a part of another kind
    ],
    ids=["huber", "masked", "divided"],
)
def test_additive_adds_to_any_base_loss(own_loss):
    """loss = the host's own + Σ w_ij L_ij / N, in value and gradient."""
    step = replace(make_step((50, 20)), base_loss=None)
    own = own_loss(step.model_pred, step.target)
    plain, added = (two_terms(combine="additive")(replace(step, base_loss=b)) for b in (None, own))
    expected = own + plain.loss - (step.model_pred - step.target).square().mean()
    torch.testing.assert_close(added.loss, expected, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(added.loss, step.model_pred, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, step.model_pred)[0], rtol=1e-4, atol=1e-8)
    with pytest.raises(CheckError, match="combine: additive without a base weighting takes any base_loss"):
        two_terms()(replace(step, base_loss=own))
    with pytest.raises(CheckError, match="base_loss"):
        two_terms(combine="additive", base_weighting=lambda snr: snr)(replace(step, base_loss=own))


def test_a_base_loss_that_is_not_the_mean_squared_error_stops_the_run():
    step = make_step((50, 50))
    with pytest.raises(CheckError, match="pass the trainer's own factor on each image"):
        two_terms()(replace(step, base_loss=step.base_loss * 3))
    with pytest.raises(CheckError, match="pass the trainer's own factor on each image"):  # which would be dropped
        make_stack(base_weighting=lambda snr: snr)(replace(step, base_loss=step.base_loss * 3))


def test_a_hosts_weighting_that_is_1_in_the_first_step_is_found_in_a_later_one():
    """Min-SNR is 1 wherever SNR <= 5, so a first step at high noise does not show it."""
    stack = two_terms()
    for _ in range(50):
        stack(make_step((700,)))
    step = make_step((20,))
    with pytest.raises(CheckError, match="pass the trainer's own factor on each image"):
        stack(replace(step, base_loss=step.base_loss * 0.02))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda s: s.pred_images.mean(), r"returned torch.float32 \(\), expected a float tensor of shape \(2,\)"),
        (lambda s: 0.5, "returned float, expected"),
        (lambda s: torch.ones(2, dtype=torch.long), "returned torch.int64"),
    ],
)
def test_a_loss_of_the_wrong_shape_is_named(value, message):
    stack = make_stack(Term("mine", PictureLoss(), 0.2))
    stack(make_step((50, 50)))
    stack.terms[0].loss = type("Wrong", (PictureLoss,), {"__call__": lambda self, s: value(s)})()
    with pytest.raises(LossError, match=f"'mine' {message}"):
        stack(make_step((50, 50)))


def test_masks_of_another_size_than_the_decoded_latents_are_refused():
    step = replace(make_step((50,)), pixel_values=None, person_mask=people_mask(1, 64))
    with pytest.raises(DataError, match=r"person_mask is \(64, 64\), the latents decode to \(32, 32\)"):
        two_terms()(step)


def test_after_loss_sees_the_estimate_and_the_report():
    seen = {}
    stack = two_terms(after_loss=lambda step, report: seen.update(step=step, report=report))
    report = stack(make_step((50, 900)))
    assert seen["report"] is report
    assert seen["step"].pred_latents.shape == (2, 4, 8, 8)


def test_logs_hold_every_terms_mean_and_count():
    logs = two_terms()(make_step((50, 20, 900))).logs()
    assert list(logs) == ["loss", "ldm", "picture", "picture/gated", "face", "face/gated"]
    assert logs["picture/gated"] == 2
    assert two_terms()(make_step((900,))).logs()["face"] is None


def test_half_precision_hosts_get_float32_terms_under_their_autocast():
    step = make_step((50, 50))
    half = replace(
        step,
        **{k: getattr(step, k).detach().bfloat16() for k in ("latents", "noise", "noisy_latents", "target")},
        model_pred=step.model_pred.detach().bfloat16().requires_grad_(),
        base_loss=None,
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = two_terms()(half)
    assert report.loss.dtype == torch.float32
    report.loss.backward()
    assert half.model_pred.grad.dtype == torch.bfloat16
    assert report.loss.item() == pytest.approx(two_terms()(step).loss.item(), rel=0.03)


def test_cut_off_faces_use_the_mask_when_pictures_are_cached():
    step = replace(make_step((50,)), pixel_values=None, face_boxes=[torch.tensor([[-4.0, 0, 400, 20]])])
    seen = {}
    stack = two_terms(after_loss=lambda step, report: seen.update(step=step))
    stack(step)
    assert seen["step"].face_boxes[0].tolist() == [[0, 0, 32, 20]]
    stack(replace(step, person_mask=None))
    assert seen["step"].face_boxes[0].tolist() == [[0, 0, 32, 20]]
    no_pictures = LossStack(
        [], schedule=stack.schedule, after_loss=lambda step, report: seen.update(step=step), announce=lambda text: None
    )
    no_pictures(step)
    assert seen["step"].face_boxes[0].tolist() == [[0, 0, 32, 20]]


def test_hosts_own_vae_is_untouched_and_survives_being_moved():
    vae = tiny_vae()
    decoder = LatentDecoder(vae)
    latents = torch.randn(1, 4, 8, 8)
    expected = vae.decode(latents / 0.5).sample
    vae.to(torch.bfloat16)
    assert vae.encoder.conv_in.weight.dtype == torch.bfloat16
    torch.testing.assert_close(decoder(latents), expected)
    assert decoder.image_size(latents) == (32, 32)


def test_people_of_several_labels_are_one_person_each():
    assert people_mask(1, 32, 3).unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("combine", ["convex", "additive"])
def test_what_else_the_host_minimises_stays_as_it_is(combine):
    step = make_step((50, 950))
    prior = torch.tensor(0.7)
    with_prior = replace(step, base_loss=step.base_loss + prior, other_loss=prior)
    one, other = two_terms(combine=combine)(step).loss, two_terms(combine=combine)(with_prior).loss
    assert other.item() == pytest.approx(one.item() + 0.7, rel=1e-6)
    weighted = make_stack(base_weighting=lambda snr: 0.5 * torch.ones_like(snr))
    assert weighted(with_prior).loss.item() == pytest.approx(0.5 * step.base_loss.item() + 0.7, rel=1e-5)
    with pytest.raises(CheckError, match="base_loss"):
        two_terms()(replace(with_prior, other_loss=None))


def test_a_trainer_that_perturbs_its_input_may_be_further_off():
    step = make_step((50, 950))
    perturbed = replace(step, target=step.target + 0.1 * torch.randn(step.target.shape), base_loss=None)
    with pytest.raises(CheckError, match="x̂0 computed from the target"):
        two_terms()(perturbed)
    two_terms(estimate_tolerance=0.2)(perturbed)
