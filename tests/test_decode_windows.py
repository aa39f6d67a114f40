"""`decode: region` from the preset to the loss: the windows that losses look at, their statistics, what is refused."""

from dataclasses import replace

import pytest
import torch
from make_step import FaceLoss, PictureLoss, ddpm, loss_and_gradient, make_stack, make_step, tiny_vae

from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.decode.region import RegionDecoder, regions_of
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.engine.term import Term
from mldm_plugin.errors import PresetError


def large_step():
    """Pictures of 128² with one small face and one small person each."""
    step = make_step((50, 20), size=128, latent_size=32, people=0)
    mask = torch.zeros(2, 1, 128, 128, dtype=torch.uint8)
    mask[:, :, 60:71, 20:31] = 3
    return replace(step, face_boxes=[torch.tensor([[40.0, 40, 52, 54]])] * 2, person_mask=mask)


def stack_of(*terms, region=True, **options):
    decoder = LatentDecoder(tiny_vae())
    if region:
        decoder = RegionDecoder(decoder, {t.name: t.needs for t in terms})
    return make_stack(*terms, decoder=decoder, **options)


def test_regions_hold_what_is_looked_at():
    step = large_step()
    people = regions_of(step, {"person_mask"})
    assert people[0].tolist() == [[20, 60, 31, 71]]
    both = regions_of(step, {"person_mask", "face_boxes"})
    square = both[0][1]
    assert len(both) == 2
    torch.testing.assert_close(square, torch.tensor([46 - 10.1, 47 - 10.1, 46 + 10.1, 47 + 10.1]))  # 14·1.3/2 + 1
    empty = replace(step, person_mask=torch.zeros_like(step.person_mask), face_boxes=[torch.empty(0, 4)] * 2)
    assert [len(r) for r in regions_of(empty, {"person_mask", "face_boxes"})] == [0, 0]


def test_losses_inside_the_windows_are_those_of_the_whole_decode_but_for_the_statistics():
    step, lines = large_step(), []
    terms = lambda: (Term("picture", PictureLoss(), 0.2), Term("face", FaceLoss(), 0.4))  # noqa: E731
    windows, whole = stack_of(*terms(), announce=lines.append), stack_of(*terms(), region=False)
    value, gradient = loss_and_gradient(windows, step)
    exact, exact_gradient = loss_and_gradient(whole, step)
    assert value == pytest.approx(exact.item(), rel=0.02)
    assert torch.cosine_similarity(gradient.flatten(), exact_gradient.flatten(), dim=0) > 0.95
    assert "decoding by windows: cosine of the gradient with that of the VAE in float32: picture 0.9" in lines[0]
    report, full = windows(replace(step, base_loss=None)), whole(replace(step, base_loss=None))
    for name in ("picture", "face"):
        torch.testing.assert_close(report.terms[name].raw, full.terms[name].raw, rtol=0.05, atol=0)


def test_without_pictures_the_target_is_the_decode_that_statistics_come_from():
    step = replace(large_step(), pixel_values=None)
    windows, whole = stack_of(Term("face", FaceLoss(), 0.4)), stack_of(Term("face", FaceLoss(), 0.4), region=False)
    raw, exact = (s(replace(step, base_loss=None)).terms["face"].raw for s in (windows, whole))
    torch.testing.assert_close(raw, exact, rtol=0.05, atol=0)


def test_what_cannot_be_decoded_in_windows_is_refused():
    class Everywhere(PictureLoss):
        needs = frozenset({"pred_images"})

    with pytest.raises(PresetError, match="'all' looks at whole pictures, so decode: region would hide most of them"):
        stack_of(Term("all", Everywhere(), 0.1))
    with pytest.raises(PresetError, match="decode: region is for the model's own VAE"):
        LossStack.from_preset(
            "mldm", vae=tiny_vae(), noise_scheduler=ddpm(), plugins=["mldm"], overrides=["decode=region", "vae=taesd"]
        )


def test_a_preset_asks_for_it():
    stack = LossStack.from_preset(
        "mldm",
        vae=tiny_vae(),
        noise_scheduler=ddpm(),
        plugins=["mldm"],
        overrides=[
            "decode=region",
            "losses.masked_lpips.weight=0",
            "losses.face.weights=random",
            "checks.picture=warn",
        ],
        announce=lambda text: None,
    )
    assert isinstance(stack.decoder, RegionDecoder)
    step = large_step()
    stack(step).loss.backward()
    assert step.model_pred.grad.abs().sum() > 0
