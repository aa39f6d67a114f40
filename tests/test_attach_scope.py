"""Steps read out of loop variables, as diffusers' scripts call them."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from attached_steps import FLUX, SD, SDXL, annotation_of, assert_same, edm_step, read_back, variables_of
from diffusers import FluxPipeline
from make_step import ddpm, flow, make_step

from mldm_plugin.attach.annotation import KEY
from mldm_plugin.attach.on_record import Fault
from mldm_plugin.attach.scope import (
    Scope,
    annotation_in,
    is_turned,
    pictures_of,
    prediction_type_of,
    runs_backwards,
    turned,
    unpack,
    with_time_turned,
)
from mldm_plugin.engine.host_checks import estimate_errors
from mldm_plugin.engine.schedule import NoiseSchedule
from mldm_plugin.errors import CheckError, DataError


@pytest.mark.parametrize("names", [SD, SDXL])
def test_the_names_of_each_family(names):
    step = make_step((3, 900))
    own = read_back(step, variables_of(step, names), ddpm())
    assert_same(own, step, fields=("latents", "noisy_latents", "model_pred", "target", "person_mask", "pixel_values"))
    assert own.base_weights is own.other_loss is own.sigmas is None


def test_variables_may_be_attributes_of_self():
    step = make_step((3, 900))
    variables = variables_of(step)
    variables["self"] = SimpleNamespace(timesteps=variables.pop("timesteps"))
    assert_same(read_back(step, variables, ddpm()), step)


@pytest.mark.parametrize("missing", [*SD.values(), "timesteps"])
def test_a_missing_variable_is_named(missing):
    step = make_step((3, 900))
    variables = variables_of(step)
    del variables[missing]
    with pytest.raises(CheckError, match=f"known to hold the {missing}"):
        read_back(step, variables, ddpm())


def test_flux_packs_its_latents_and_has_no_target():
    step = make_step((300, 700), scheduler=flow(), channels=16)
    n, c, h, w = step.latents.shape

    def pack(latents):
        return FluxPipeline._pack_latents(latents, n, c, h, w)

    assert torch.equal(unpack(pack(step.latents), h, w), step.latents)
    variables = {name: pack(getattr(step, field)) for field, name in FLUX.items()}
    variables |= {"timesteps": step.timesteps, "sigmas": (step.timesteps / 1000)[:, None, None], "args": None}
    own = read_back(step, variables, flow())
    assert_same(own, step, fields=("latents", "noise", "noisy_latents", "model_pred"))
    assert torch.allclose(own.target, step.target)
    assert own.sigmas.tolist() == (step.timesteps / 1000).tolist()


@pytest.mark.parametrize("stale", ["model_input", "pixel_latents"])
def test_of_several_latents_those_that_the_noisy_ones_were_made_of(stale):
    step = make_step((3, 900))
    names = {**variables_of(step), stale: torch.randn_like(step.latents)}
    assert_same(read_back(step, names, ddpm()), step)
    cached = {**variables_of(step, SDXL), "latents": torch.randn_like(step.latents)}  # of the picture cached last
    assert_same(read_back(step, cached, ddpm()), step)
    cached["latents"] = torch.randn(1, 7)
    assert_same(read_back(step, cached, ddpm()), step)


def test_packed_latents_of_a_wide_picture():
    latents = torch.randn(2, 16, 6, 10)
    packed = FluxPipeline._pack_latents(latents, 2, 16, 6, 10)
    assert torch.equal(unpack(packed, 6, 10), latents)


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 4, 3, 8, 8), (2, 4)])
def test_latents_of_another_shape_are_refused(shape):
    step = make_step((300, 700))
    variables = variables_of(step)
    variables["model_pred"] = torch.zeros(shape)
    with pytest.raises(CheckError, match="expected \\(N, C, h, w\\)"):
        read_back(step, variables, ddpm())


def test_a_film_of_one_picture_is_a_picture():
    step = make_step((300, 700))
    variables = variables_of(step)
    for name in ("latents", "noise", "noisy_latents", "model_pred", "target"):
        variables[name] = variables[name].unsqueeze(2)
    assert_same(read_back(step, variables, ddpm()), step)


def test_prior_preservation_leaves_the_instance_images():
    both = make_step((3, 900, 40, 50))
    step = both.select([0, 1])
    prior = (both.model_pred[2:] - both.target[2:]).square().mean()
    variables = variables_of(both) | {"model_pred": step.model_pred, "target": step.target}
    loss = torch.nn.functional.mse_loss(step.model_pred, step.target) + 0.5 * prior
    own = read_back(step, variables, ddpm(), pictures=both.pixel_values, loss=loss)
    assert len(own) == 2
    assert_same(own, step)
    assert own.base_weights.tolist() == pytest.approx([1.0, 1.0])
    assert own.other_loss.item() == pytest.approx(0.5 * prior.item(), rel=1e-5)
    assert own.other_loss.requires_grad  # a base weighting of the preset rebuilds the loss from its parts


def test_an_annotation_of_another_batch_is_refused():
    step = make_step((3, 900))
    with pytest.raises(CheckError, match="is of 2 images, the annotation of 1"):
        read_back(step, variables_of(step), ddpm(), annotation=annotation_of(step.select([0])))


def test_weights_are_those_of_the_scripts_loss_whatever_it_calls_them():
    step = make_step((3, 900))
    error = (step.model_pred - step.target).square().flatten(1).mean(1)
    own = read_back(step, variables_of(step), ddpm(), loss=(error * torch.tensor([0.5, 2.0])).mean())
    assert own.base_weights.tolist() == pytest.approx([0.5, 2.0])
    one = step.select([0])  # an error of one image times the weights of two, as DreamBooth's SDXL script computes it
    variables = variables_of(one, model_pred=step.model_pred[:1])
    loss = ((variables["model_pred"] - one.target).square().mean() * torch.tensor([0.5, 2.0])).mean()
    assert read_back(one, variables, ddpm(), loss=loss).base_weights.tolist() == pytest.approx([1.25])


def test_weights_of_packed_latents():
    step = make_step((300, 700), scheduler=flow(), channels=16)
    n, c, h, w = step.latents.shape
    variables = {name: FluxPipeline._pack_latents(getattr(step, field), n, c, h, w) for field, name in FLUX.items()} | {
        "timesteps": step.timesteps,
        "args": None,
    }
    error = variables["noise_pred"] - (variables["noise"] - variables["pixel_latents"])
    loss = (error.square().flatten(1).mean(1) * torch.tensor([0.5, 2.0])).mean()
    assert read_back(step, variables, flow(), loss=loss).base_weights.tolist() == pytest.approx([0.5, 2.0], rel=1e-4)


@pytest.mark.parametrize(
    ("loss_of", "args", "said"),
    [
        (lambda p, t: torch.nn.functional.smooth_l1_loss(p, t, beta=0.1), {"loss_type": "huber"}, "--loss_type huber"),
        (lambda p, t: (p - t).abs().mean(), {"loss_type": "l1"}, "--loss_type l1"),
        (lambda p, t: ((p - t) ** 2 * (torch.arange(8) > 3)).mean(), {"masked_loss": True}, "--masked_loss"),
        (lambda p, t: (p - t).abs().mean(), {}, "--set combine=additive takes any loss"),
    ],
    ids=["huber", "l1", "masked", "unknown"],
)
def test_a_loss_that_is_no_weighted_squared_error_is_refused_with_its_flag(loss_of, args, said):
    step = make_step((3, 900))
    loss = loss_of(step.model_pred, step.target)
    with pytest.raises(CheckError, match=said):
        read_back(step, variables_of(step, args=SimpleNamespace(**args)), ddpm(), loss=loss)


def test_a_flow_towards_the_picture_is_turned_and_nothing_else():
    plain = make_step((50, 200, 700), scheduler=flow())
    towards = replace(plain, model_pred=-plain.model_pred, target=plain.latents - plain.noise)
    assert is_turned(towards)
    assert not is_turned(plain)
    torch.testing.assert_close(turned(towards).target, plain.target)
    assert torch.equal(turned(towards).model_pred, plain.model_pred)


def backwards(step, *, sigmas=True, scale=1.0):
    """The step as Lumina 2's loop counts time: σ is the share of the picture, and the flow runs towards it."""
    share = 1 - step.timesteps / 1000
    return replace(
        step,
        timesteps=share * 1000 * scale,
        sigmas=share if sigmas else None,
        model_pred=-step.model_pred,
        target=step.latents - step.noise,
    )


@pytest.mark.parametrize("sigmas", [True, False])
def test_a_time_that_runs_backwards_is_seen_in_the_noisy_latents(sigmas):
    schedule = NoiseSchedule.from_scheduler(flow())
    plain = make_step((50, 200, 700), scheduler=flow())
    own = backwards(plain, sigmas=sigmas, scale=0.001 if sigmas else 1.0)
    assert runs_backwards(own, schedule) is True
    assert runs_backwards(plain, schedule) is False
    assert runs_backwards(make_step((500, 500), scheduler=flow()), schedule) is None  # there the two are the same
    again = turned(with_time_turned(own, schedule))
    torch.testing.assert_close(again.sigmas, plain.timesteps / 1000)
    torch.testing.assert_close(again.timesteps, plain.timesteps.float())
    torch.testing.assert_close(again.target, plain.target)
    assert max(estimate_errors(schedule, again)) < 1e-5
    torch.testing.assert_close(schedule.snr(again.timesteps, again.sigmas), schedule.snr(plain.timesteps))


def test_only_a_flow_has_a_time_to_turn():
    for scheduler in (ddpm(), ddpm("v_prediction")):
        schedule = NoiseSchedule.from_scheduler(scheduler)
        assert runs_backwards(make_step((500, 20), scheduler=scheduler), schedule) is False
    scheduler, step = edm_step()
    assert runs_backwards(step, NoiseSchedule.from_scheduler(scheduler)) is False
    wrong = replace(make_step((50, 200), scheduler=flow()), noisy_latents=torch.randn(2, 4, 8, 8))
    assert runs_backwards(wrong, NoiseSchedule.from_scheduler(flow())) is False  # the checks then refuse it


def test_the_noise_that_was_added_is_read_where_the_script_perturbs_it():
    step = make_step((3, 900))
    variables = variables_of(step, new_noise=step.noise)
    variables["noise"] = step.noise + 1
    assert torch.equal(read_back(step, variables, ddpm()).noise, step.noise)
    variables = variables_of(step)
    variables |= {"noise": step.noise + 1, "args": SimpleNamespace(dream_training=True)}
    assert torch.equal(read_back(step, variables, ddpm()).noise, step.target)


def test_a_preconditioned_output_is_recognised_by_its_target():
    scheduler, step = edm_step()
    schedule = NoiseSchedule.from_scheduler(scheduler)
    assert schedule.prediction_type == "epsilon"
    assert prediction_type_of(step, schedule) == "sample"
    schedule.prediction_type = "sample"
    assert max(estimate_errors(schedule, step)) < 1e-5


@pytest.mark.parametrize("scheduler", [flow(), ddpm(), ddpm("v_prediction")])
@pytest.mark.parametrize("timesteps", [(100, 300), (300, 700), (900, 999)])
def test_what_the_scheduler_declares_stays_where_the_target_agrees(scheduler, timesteps):
    schedule = NoiseSchedule.from_scheduler(scheduler)
    step = make_step(timesteps, scheduler=scheduler)
    assert prediction_type_of(step, schedule) == schedule.prediction_type
    assert prediction_type_of(replace(step, target=step.latents), schedule) == "sample"
    perturbed = replace(step, target=step.target + 0.1 * torch.randn_like(step.target))
    assert prediction_type_of(perturbed, schedule) == schedule.prediction_type


def test_asking_for_the_prediction_type_leaves_the_schedule_as_it_was_whatever_comes_of_it():
    """It was changed for the question, and stayed so where the question failed."""
    schedule = NoiseSchedule.from_scheduler(ddpm("v_prediction"))
    step = make_step((300, 700), scheduler=ddpm("v_prediction"))
    assert prediction_type_of(replace(step, target=step.latents), schedule) == "sample"
    assert schedule.prediction_type == "v_prediction"
    asked = []

    def fails_the_second_time(*given):
        asked.append(schedule.prediction_type)
        if len(asked) == 2:
            raise RuntimeError
        return NoiseSchedule.coefficients(schedule, *given)

    schedule.coefficients = fails_the_second_time
    with pytest.raises(RuntimeError):
        prediction_type_of(step, schedule)
    assert asked == [schedule.prediction_type] * 2 == ["v_prediction"] * 2


def test_the_prediction_type_is_not_told_from_pure_noise():
    schedule = NoiseSchedule.from_scheduler(flow())
    assert prediction_type_of(make_step((1000,), scheduler=flow()), schedule) is None


def test_batches():
    placed = annotation_of(make_step((3,)))
    assert annotation_in({KEY: placed}) is placed
    with pytest.raises(DataError, match="reversed"):
        annotation_in({KEY: Fault("reversed")})
    with pytest.raises(DataError, match="did not come through"):
        annotation_in({})
    assert pictures_of({"images": torch.zeros(1, 3, 2, 2)}).shape == (1, 3, 2, 2)
    assert pictures_of({"pixel_values": [1]}) is None
    assert Scope({"data": {KEY: placed}, "x": 3}).batch[KEY] is placed
    assert Scope({"x": 3}).batch == {}
    with pytest.raises(CheckError, match="several variables of the training loop are batches"):
        _ = Scope({"one": {KEY: placed}, "other": {KEY: placed}}).batch


def test_variables_may_be_global_in_the_script(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "args", SimpleNamespace(output_dir="here"), raising=False)
    assert Scope({"x": 3}).option("output_dir") == "here"
    assert Scope({"args": SimpleNamespace(output_dir="there")}).option("output_dir") == "there"
