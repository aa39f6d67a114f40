"""The start-up checks stop a run whose losses would train nothing, or train the wrong thing."""

from dataclasses import replace

import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from make_step import FaceLoss, LatentLoss, PictureLoss, ddpm, flow, make_stack, make_step, tiny_vae, two_terms

from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.decode.own import OwnDecode
from mldm_plugin.engine.schedule import NoiseSchedule
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.engine.start_up import CHECKED_STEPS
from mldm_plugin.engine.term import Term
from mldm_plugin.errors import CheckError, DataError


def loss(function):
    return type("Custom", (PictureLoss,), {"__call__": lambda self, step: function(step)})()


DEAD = {
    "detached": lambda s: s.pred_images.detach().flatten(1).mean(1),
    "cast to integers": lambda s: (s.pred_images * 255).to(torch.uint8).float().flatten(1).mean(1),
    "out of the graph by numpy": lambda s: torch.from_numpy(s.pred_images.detach().numpy()).flatten(1).mean(1),
    "of the target alone": lambda s: s.target_images.flatten(1).mean(1),
}


@pytest.mark.parametrize("name", DEAD)
def test_a_loss_cut_off_from_the_network_stops_the_run_in_the_first_step(name):
    """Defect 1 of the released code: its pixel losses never had a gradient, and nothing said so."""
    stack = make_stack(Term("face", FaceLoss(), 0.2), Term("mine", loss(DEAD[name]), 0.2))
    with pytest.raises(CheckError, match="loss 'mine' would train nothing.*cut off from the network output"):
        stack(make_step((900, 900)))  # even where no image is gated


def test_a_decoder_under_no_grad_stops_the_run():
    """Defect 1, literally: decode_first_stage under torch.no_grad()."""
    stack = two_terms()
    stack.decoder.vae.decode = torch.no_grad()(stack.decoder.vae.decode)
    with pytest.raises(CheckError, match="loss 'picture' would train nothing"):
        stack(make_step((50, 50)))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda s: s.pred_images.clamp(5, 6).flatten(1).mean(1), "does not change with the network output"),
        (lambda s: s.pred_images.round().flatten(1).mean(1), "does not change with the network output"),
        (lambda s: (s.pred_images * 0).square().sum((1, 2, 3)).sqrt(), "is NaN or infinite; look for a root"),
    ],
)
def test_zero_and_infinite_gradients_stop_the_run(function, message):
    with pytest.raises(CheckError, match=message):
        make_stack(Term("mine", loss(function), 0.2))(make_step((50, 50)))


def test_a_value_that_is_not_finite_stops_the_run():
    with pytest.raises(CheckError, match="'mine' is .*nan.* expected a finite value"):
        make_stack(Term("mine", loss(lambda s: s.pred_images.flatten(1).mean(1) * float("nan")), 0.2))(make_step())


def test_a_host_that_hands_over_a_detached_output_is_stopped():
    step = make_step((900,))
    with pytest.raises(CheckError, match="model_pred has no gradient"):
        two_terms()(replace(step, model_pred=step.model_pred.detach()))
    with torch.no_grad():  # a validation loss
        assert two_terms()(replace(step, model_pred=step.model_pred.detach())).loss > 0


@pytest.mark.parametrize("need", ["person_mask", "face_boxes"])
def test_a_host_that_never_hands_over_masks_or_boxes_is_stopped(need):
    with pytest.raises(CheckError, match=f"needs {need}, but the step has none: pass {need}"):
        two_terms()(replace(make_step((900,)), **{need: None}))


def test_hosts_whose_pictures_masks_or_timesteps_are_in_another_range_are_stopped():
    step = make_step((900, 5))
    for wrong, message in (
        ({"pixel_values": (step.pixel_values + 1) * 127.5}, r"pixel_values reach 25\d.*expected \[-1, 1\]"),
        ({"person_mask": step.person_mask * 0.3}, "person_mask has fractional labels"),
        ({"timesteps": torch.tensor([-1, 5])}, r"timesteps are \[-1, 5\], which the noise schedule does not have"),
        ({"timesteps": torch.tensor([10.5, 5])}, r"timesteps are \[10.5"),
        ({"timesteps": torch.tensor([1000, 5])}, r"timesteps are \[1000, 5\]"),
    ):
        with pytest.raises(CheckError, match=message):
            two_terms()(replace(step, **wrong))


def test_a_convention_that_is_wrong_only_at_some_timesteps_is_found_within_the_first_steps():
    """A zero-terminal-SNR host is close to Stable Diffusion's schedule where there is little noise."""
    host = ddpm(rescale_betas_zero_snr=True)
    stack = two_terms()

    def some_steps():
        for t in range(5, 1000, 50):
            stack(make_step((t,), scheduler=host))

    with pytest.raises(CheckError, match="noise schedule is not the one given"):
        some_steps()


def test_pure_noise_is_no_fault():
    """At α = 0 nothing can be estimated from ε."""
    scheduler = ddpm(rescale_betas_zero_snr=True)
    two_terms(scheduler=scheduler)(make_step((999,), scheduler=scheduler))


MIXED = {
    "gated by the first image's timestep, as WithAnyone's losses are": lambda s: (
        s.pred_images.square().flatten(1).mean(1) * (s.timesteps[0] < 60).float()
    ),
    "the mean over the batch": lambda s: (s.pred_latents - s.latents).square().mean().expand(len(s)) * 1,
    "the other images' values": lambda s: s.pred_images.square().flatten(1).mean(1).cumsum(0),
}


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("max_timestep", [100, None])
def test_a_loss_that_mixes_images_stops_the_run(name, max_timestep):
    terms = Term("face", FaceLoss(), 0.2), Term("mine", loss(MIXED[name]), 0.2, max_timestep)
    with pytest.raises(CheckError, match=r"loss 'mine' (mixes images: two at different|would train nothing)"):
        make_stack(*terms)(make_step((50, 900)))


def test_a_loss_that_draws_random_numbers_is_let_pass_with_a_warning(caplog):
    stack = make_stack(Term("mine", loss(lambda s: s.pred_images.flatten(1).std(1) * torch.rand(len(s))), 0.2))
    stack(make_step((50, 50)))
    assert "loss 'mine' draws random numbers: whether it mixes images was not checked" in caplog.text


def test_random_networks_are_named_in_the_table():
    stack = make_stack(Term("picture", PictureLoss(), 0.2, remark="weights: random"))
    assert "reaches the network; weights: random" in stack.prove(make_step((900,)))


def test_the_table_shows_every_term():
    shown = []
    stack = make_stack(
        Term("picture", PictureLoss(), 0.2),
        Term("latent", LatentLoss(), 0.1, None),
        Term("face", FaceLoss(), 0.5, detach=True),
        announce=shown.append,
    )
    stack(make_step((900, 900)))
    stack(make_step((900, 900)))
    (table,) = shown
    lines = {line.split()[0]: line for line in table.splitlines()}
    assert "reaches the network" in lines["picture"]
    assert " all " in lines["latent"]
    assert "detached by the preset: logged, trains nothing" in lines["face"]
    assert float(lines["picture"].split()[4]) > 0


def test_a_term_is_proved_when_the_first_image_comes_that_has_what_it_needs():
    shown = []
    stack = two_terms(announce=shown.append)
    stack(make_step((900,), with_faces=False))
    assert stack.unproven == {"face"}
    stack(make_step((900,)))
    assert stack.unproven == set()
    assert ["face" in table for table in shown] == [False, True]


def test_the_proof_draws_no_random_numbers_and_leaves_no_gradient():
    state = torch.get_rng_state()
    step = make_step((900,))
    two_terms().prove(step)
    assert step.model_pred.grad is None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("scheduler", [ddpm(), ddpm("v_prediction"), ddpm("sample"), flow()])
def test_right_hosts_pass(scheduler):
    two_terms(scheduler=scheduler)(make_step((999, 1), scheduler=scheduler))


def test_a_wrong_prediction_type_stops_the_run():
    step = make_step((500, 700), scheduler=ddpm("v_prediction"))
    with pytest.raises(CheckError, match=r"x̂0 computed from the target is not the clean latents.*pass prediction_type"):
        two_terms(scheduler=ddpm("epsilon"))(step)


def test_a_wrong_noise_schedule_stops_the_run():
    from diffusers import DDPMScheduler

    step = make_step((500, 700), scheduler=DDPMScheduler(beta_schedule="linear"))
    with pytest.raises(CheckError, match="noise schedule is not the one given"):
        two_terms()(step)


def test_latents_scaled_otherwise_stop_the_run():
    step = make_step((500, 700))
    with pytest.raises(CheckError, match="scaled differently"):
        two_terms()(replace(step, latents=step.latents * 1.4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_latents_pass_and_wrong_ones_do_not(dtype):
    def half(step):
        tensors = {n: getattr(step, n).to(dtype) for n in ("latents", "noise", "noisy_latents", "target", "model_pred")}
        return replace(step, **tensors)

    for timesteps in ((999, 5), (0, 0), (1, 1)):
        two_terms()(half(make_step(timesteps, base_loss=False)))
    with pytest.raises(CheckError, match="x̂0"):
        two_terms()(half(make_step((999, 5), scheduler=ddpm("v_prediction"), base_loss=False)))


class Enlarger(torch.nn.Module):
    """A perfect autoencoder: latents are the picture, shrunk by 4."""

    def __init__(self):
        super().__init__()
        self.config = FrozenDict(scaling_factor=1.0, block_out_channels=(1, 1, 1))
        self.place = torch.nn.Parameter(torch.zeros(()))

    def encode(self, pictures, return_dict):
        shrunk = torch.nn.functional.avg_pool2d(pictures, 4)
        return (torch.cat([shrunk, shrunk[:, :1]], dim=1),)

    def decode(self, latents, return_dict):
        return (torch.nn.functional.interpolate(latents[:, :3], scale_factor=4),)


def picture_step(change=lambda pixels: pixels, scale=1.0):
    """A host whose pictures are made of blocks that the `Enlarger` gives back exactly."""
    step = make_step((50, 50))
    pixels = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(step.pixel_values, 4), scale_factor=4) * 2
    latents = Enlarger().encode(pixels, False)[0] * scale
    noisy = ddpm().add_noise(latents, step.noise, step.timesteps)
    return replace(step, latents=latents, noisy_latents=noisy, pixel_values=change(pixels))


def enlarging(scaling_factor=1.0, check="stop", autoencoder=None):
    return LossStack(
        [Term("picture", PictureLoss(), 0.2)],
        schedule=NoiseSchedule.from_scheduler(ddpm()),
        decoder=LatentDecoder(autoencoder or Enlarger(), scaling_factor),
        picture_check=check,
        announce=lambda text: None,
    )


def test_the_right_vae_passes_and_its_encoder_is_then_forgotten():
    stack = enlarging()
    assert "resembles the picture: mean absolute error 0.000" in stack.prove(picture_step())
    for _ in range(CHECKED_STEPS):
        assert stack.decoder.can_encode
        assert stack.start_up is not None
        stack(picture_step())
    assert not stack.decoder.can_encode
    assert stack.start_up is None


def test_pictures_that_are_turned_over_in_a_later_step_stop_the_run():
    stack = enlarging()
    stack(picture_step())
    with pytest.raises(CheckError, match="clean latents are not those of the step's pictures"):
        stack(replace(picture_step(), pixel_values=picture_step().pixel_values.flip(-1)))
    warned = enlarging(check="warn")
    warned(picture_step())
    warned(replace(picture_step(), pixel_values=picture_step().pixel_values.flip(-1)))


@pytest.mark.parametrize("scale", [0.5, 0.8, 0.9, 1.1, 1.4])
def test_a_wrong_vae_scale_stops_the_run(scale):
    with pytest.raises(CheckError, match=rf"they are {scale:g} times as large\): wrong VAE, wrong scaling_factor"):
        enlarging().prove(picture_step(scale=scale))
    assert "warning: decode" in enlarging(check="warn").prove(picture_step(scale=scale))


@pytest.mark.parametrize(
    "change",
    [lambda p: p.flip(1), lambda p: p.roll(4, dims=-1), lambda p: p / 2 + 0.5, lambda p: p.flip(-1)],
    ids=["BGR", "shifted by a latent cell", "in [0, 1]", "mirrored"],
)
def test_pictures_that_are_not_those_of_the_latents_stop_the_run(change):
    with pytest.raises(CheckError, match="the latents are not encode"):
        enlarging().prove(picture_step(change))


@pytest.mark.parametrize("gain", [0.02, 0.2, 1.0, 3.0])
def test_dark_flat_and_glaring_pictures_of_a_right_host_pass(gain):
    step = picture_step()
    latents = step.latents * gain
    noisy = ddpm().add_noise(latents, step.noise, step.timesteps)
    step = replace(step, latents=latents, noisy_latents=noisy, pixel_values=step.pixel_values * gain)
    assert "resembles the picture" in enlarging().prove(step)


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        (lambda p: 0.85 * p + 0.05, None),
        (lambda p: p / 5.5, "0.8"),
        (lambda p: p / 2 + 0.5, "1.9"),
        (lambda p: p + 0.5, "1.[0-9]"),
        (lambda p: -p, "2.0"),
    ],
    ids=["a little pale", "divided twice by 5.5", "in [0, 1]", "a shift left out", "a negative"],
)
def test_without_an_encoder_a_wrong_scale_or_shift_is_seen_in_the_pictures(change, missed):
    stack = enlarging(autoencoder=OwnDecode(lambda z: change(Enlarger().decode(z, False)[0])))
    if missed is None:
        assert "resembles the picture" in stack.prove(picture_step())
        return
    with pytest.raises(CheckError, match=rf"its error is {missed}\d? of the picture's standard deviation"):
        stack.prove(picture_step())


def test_a_random_vae_stops_the_run_unless_the_preset_says_so():
    with pytest.raises(CheckError, match="For a VAE with random weights, set checks.picture: warn"):
        two_terms(picture_check="stop")(make_step((50, 50)))


def test_a_vae_of_another_factor_stops_the_run():
    whole = Term("whole", loss(lambda s: s.pred_images.flatten(1).mean(1)), 0.1)
    stack = make_stack(Term("latent", LatentLoss(), 0.1), whole, decoder=LatentDecoder(tiny_vae(downscale=2)))
    with pytest.raises(DataError, match=r"pixel_values is \(32, 32\), the latents decode to \(16, 16\)"):
        stack(make_step((50, 50)))
