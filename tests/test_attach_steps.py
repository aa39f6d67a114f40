"""Steps of an attached script, after those in which everything is checked: what is still looked at, and how often."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from attached_steps import annotation_of, variables_of
from diffusers import AutoencoderKLQwenImage, Flux2Pipeline
from make_step import ddpm, flow, make_step, tiny_vae
from odd_vaes import film_vae, flux2_vae
from waits import Waits

from mldm_plugin.attach.annotation import KEY, one_frame
from mldm_plugin.attach.attachment import Attachment
from mldm_plugin.attach.flags import Settings
from mldm_plugin.attach.on_record import Fault
from mldm_plugin.data.batch import Keypoints
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.errors import CheckError, DataError
from mldm_plugin.records.machine import read_machine

LOSSES = "losses: {masked_lpips: {weight: 0.2, weights: random, network: alex}}\n"
BLIND = """
from mldm_plugin import hookimpl


class Blind:
    needs = frozenset()

    def __call__(self, step):
        return (step.pred_latents - step.latents).abs().flatten(1).mean(1)


@hookimpl
def register_losses(register):
    register("blind", Blind)
"""
OPEN, CLOSED = (50, 20), (900, 800)


class Accelerator:
    """What an attachment asks of a script's accelerator, in one process."""

    sync_gradients, is_main_process, num_processes, device = True, True, 1, torch.device("cpu")

    def log(self, values, step):
        pass


class Script:
    """A loop that calls backward on a loss of its own form."""

    def __init__(self, folder, preset, plugins=("mldm",), **options):
        (folder / "preset.yaml").write_text("checks: {picture: warn}\n" + preset, encoding="utf-8")
        self.out = folder / "out"
        settings = Settings(plugins, str(folder / "preset.yaml"), panel_steps=0, output_dir=str(self.out), **options)
        self.attachment = Attachment(settings)
        self.more = {"vae": tiny_vae(), "noise_scheduler": ddpm(), "accelerator": Accelerator(), "global_step": 0}

    def variables(self, timesteps, form=F.mse_loss):
        """Those of its loop, in which it has just computed its `loss`."""
        step = make_step(timesteps)
        batch = {KEY: annotation_of(step), "pixel_values": step.pixel_values}
        loss = form(step.model_pred, step.target)
        return variables_of(step, batch=batch, args=SimpleNamespace(), loss=loss, **self.more)

    def step(self, timesteps, form=F.mse_loss):
        variables = self.variables(timesteps, form)
        loss = variables["loss"]
        return loss, self.attachment.loss(loss, variables)

    def past_the_start(self):
        for i in range(41):
            self.step(OPEN if i % 2 else CLOSED)
        return self


HANDS = "losses: {masked_mse: {weight: 0.2, of: hands}}\n"


def test_a_loss_on_keypoints_sees_those_of_the_batch(tmp_path):
    script = Script(tmp_path, HANDS)
    variables = script.variables(OPEN)
    people = torch.zeros(1, 17, 3)
    people[0, [7, 9]] = torch.tensor([[4.0, 16.0, 2.0], [16.0, 16.0, 2.0]])  # a left forearm and its wrist
    step = replace(make_step(OPEN), keypoints=[people, people[:0]])
    variables["batch"][KEY] = replace(annotation_of(step), keypoints=Keypoints(step.keypoints))
    stack = LossStack.from_preset(tmp_path / "preset.yaml", vae=tiny_vae(), noise_scheduler=ddpm())
    expected = stack(replace(step, base_loss=F.mse_loss(step.model_pred, step.target))).loss
    plain = variables["loss"]
    found = script.attachment.loss(plain, variables)
    assert torch.equal(found, expected)
    assert not torch.equal(found, plain)


def test_what_losses_need_is_counted_not_what_there_is(tmp_path, capfd):
    """Masks for all pictures, keypoints for one in a hundred: losses on hands train next to nothing."""
    script = Script(tmp_path, HANDS)
    people = torch.ones(1, 17, 3) * 8
    for start in range(0, 250, 2):
        variables = script.variables(OPEN)
        names = tuple(f"{number % 100}.png" for number in (start, start + 1))
        has = tuple(name == "0.png" for name in names)
        keypoints = Keypoints([people if known else people[:0] for known in has])
        on_record = {"person_mask": (True, True), "keypoints": has}
        annotation = replace(annotation_of(make_step(OPEN)), names=names, keypoints=keypoints, on_record=on_record)
        variables["batch"][KEY] = annotation
        script.attachment.loss(variables["loss"], variables)
    said = capfd.readouterr().err
    assert (
        said.count("warning: 99 of 100 pictures have no keypoints, so losses that need it do nothing there: 1.png") == 1
    )
    assert "no mask" not in said


def test_boxes_that_cannot_be_read_stop_a_loss_that_needs_them(tmp_path):
    script = Script(tmp_path, "losses: {face: {weight: 0.2, network: dlib_resnet, weights: random}}\n")
    variables = script.variables(OPEN)
    variables["batch"][KEY] = replace(annotation_of(make_step(OPEN)), face_boxes=Fault("a.json cannot be read"))
    with pytest.raises(DataError, match=r"a\.json cannot be read"):
        script.attachment.loss(variables["loss"], variables)


def test_a_loss_on_keypoints_is_refused_where_there_are_none(tmp_path):
    script = Script(tmp_path, HANDS)
    with pytest.raises(DataError, match="'masked_mse' needs keypoints, but the data have no column 'keypoints'"):
        script.step(OPEN)


def test_a_loss_of_another_form_is_found_where_it_matters_long_after_the_start(tmp_path):
    script = Script(tmp_path, LOSSES).past_the_start()
    own, given = script.step(CLOSED, F.l1_loss)
    assert torch.equal(own, given)  # nothing is mixed with it
    with pytest.raises(CheckError, match="is not the squared error of each image times a factor"):
        script.step(OPEN, F.l1_loss)


def test_additive_takes_a_loss_of_any_form_from_the_first_step_on(tmp_path, capfd):
    script = Script(tmp_path, "combine: additive\n" + LOSSES, curve_steps=1)
    for timesteps, form in ((OPEN, F.l1_loss), (CLOSED, F.huber_loss), (OPEN, F.mse_loss)):
        own, given = script.step(timesteps, form)
        assert torch.equal(own, given) == (timesteps == CLOSED)
    assert capfd.readouterr().err.count("combine: additive adds to it as it is") == 1
    records = [json.loads(line) for line in (script.out / "metrics.jsonl").read_text().splitlines()]
    assert records[0]["ldm"] == pytest.approx(script.step(OPEN, F.l1_loss)[0].item())
    assert records[0]["ldm/t0-99"] == pytest.approx(script.step(OPEN)[0].item())  # that it is, was said


def test_additive_says_where_the_output_is_not_what_the_target_is_of(tmp_path, capfd):
    """An output of ε whose x₀ is compared with the clean latents; v without a target, by a scheduler that says ε."""
    for name in ("x0", "v", "right"):
        (tmp_path / name).mkdir()
        script = Script(tmp_path / name, "combine: additive\n" + LOSSES)
        for timesteps in (OPEN, (400, 100), CLOSED):
            step, variables = make_step(timesteps), script.variables(timesteps, F.huber_loss)
            alpha = ddpm().alphas_cumprod[step.timesteps].view(-1, 1, 1, 1)
            if name == "x0":
                x0 = (step.noisy_latents - (1 - alpha).sqrt() * step.model_pred) / alpha.sqrt()
                variables |= variables_of(step, target=step.latents) | {"loss": F.huber_loss(x0, step.latents)}
            if name == "v":
                v = ddpm().get_velocity(step.latents, step.noise, step.timesteps)
                pred = (v + step.model_pred.detach() - step.target).requires_grad_()
                variables |= {"model_pred": pred, "target": None, "loss": F.huber_loss(pred, v)}
            script.attachment.loss(variables["loss"], variables)
        told = capfd.readouterr().err
        assert told.count("of the gradient of the script's loss pushes the output away") == (name != "right"), told
        assert told.count("adds to it as it is") == 1


def test_additive_still_reads_the_weights_of_images(tmp_path, capfd):
    script = Script(tmp_path, "combine: additive\n" + LOSSES, curve_steps=1)
    own, _ = script.step(OPEN, lambda p, t: 0.5 * F.mse_loss(p, t))
    told = capfd.readouterr().err
    assert "adds to it as it is" not in told
    assert "0.5 times the mean squared error" in told
    (record,) = [json.loads(line) for line in (script.out / "metrics.jsonl").read_text().splitlines()]
    assert record["ldm/t0-99"] == pytest.approx(own.item())


def test_additive_still_needs_the_output_that_the_loss_is_of(tmp_path):
    script = Script(tmp_path, "combine: additive\n" + LOSSES)
    with pytest.raises(CheckError, match="does not depend on the network's output"):
        script.step(OPEN, lambda p, t: (p.detach() * torch.ones((), requires_grad=True)).abs().mean())


def test_with_a_weighting_it_matters_in_every_step(tmp_path):
    script = Script(tmp_path, "base: {weighting: p2}\n").past_the_start()
    with pytest.raises(CheckError, match="is not the squared error of each image times a factor"):
        script.step(CLOSED, F.l1_loss)


@pytest.mark.parametrize(("timesteps", "waits"), [(CLOSED, 2), (OPEN, 4)], ids=["closed", "open"])
def test_how_often_a_step_waits(tmp_path, timesteps, waits):
    """For the gates and the log; in an open step also for what is finite, and for the form of the loss."""
    script = Script(tmp_path, LOSSES).past_the_start()
    variables = script.variables(timesteps)
    with Waits(on_host=variables["batch"][KEY].face_boxes) as seen:
        script.attachment.loss(variables["loss"], variables)
    assert len(seen.seen) == waits, seen.seen


ODD_PICTURES = {
    "pairs": torch.zeros(2, 6, 32, 32),
    "bytes": torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
    "of_255": torch.full((2, 3, 32, 32), 255.0),
    "too_few": torch.zeros(1, 3, 32, 32),
    "none": [],
}


@pytest.mark.parametrize("pictures", ODD_PICTURES.values(), ids=ODD_PICTURES)
def test_weights_of_zero_never_look_at_data(tmp_path, pictures):
    """Pictures, masks, boxes, the shape of a batch, or a folder of masks that is not there."""
    script = Script(tmp_path, LOSSES.replace("0.2", "0"), mask_dir=str(tmp_path / "nowhere"))
    assert script.attachment.collate(tuple) is tuple
    assert script.attachment.collate() is torch.utils.data.default_collate
    variables = script.variables(OPEN)
    variables["batch"] = {KEY: Fault("of data that nobody needs"), "pixel_values": pictures}
    assert script.attachment.cache(variables["latents"], {}) is variables["latents"]
    loss = variables["loss"]
    assert torch.equal(script.attachment.loss(loss, variables), loss)
    variables = script.variables(OPEN) | {"batch": pictures}
    script.attachment.loss(variables["loss"], variables)
    script.attachment.finish()


def test_a_loss_on_latents_alone_does_not_look_at_masks_or_pictures(tmp_path):
    own = tmp_path / "blind.py"
    own.write_text(BLIND, encoding="utf-8")
    script = Script(tmp_path, "losses: {blind: {weight: 0.2}}\n", plugins=("mldm", str(own)))
    variables = script.variables(OPEN)
    variables["batch"] = {KEY: Fault("of data that nobody needs"), "pixel_values": ODD_PICTURES["of_255"]}
    loss = variables["loss"]
    assert not torch.equal(script.attachment.loss(loss, variables), loss)
    script.attachment.finish()  # and does not count them


def film_variables(script, vae):
    """Those of diffusers' script for Qwen-Image: films of one frame, and 1 / std under the name of std."""
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    latents_std = 1.0 / torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    step = make_step(OPEN, scheduler=flow())
    pictures = step.pixel_values.unsqueeze(2)
    latents = (vae.encode(pictures).latent_dist.mode() - mean) * latents_std
    statistics = {"latents_mean": mean, "latents_std": latents_std}

    def decode(z):
        return vae.decode(z.unsqueeze(2) / latents_std + mean).sample.squeeze(2)

    return pictures, latents, lambda noisy: noisy.permute(0, 2, 1, 3, 4), statistics, decode


def patched_variables(script, vae):
    """Those of diffusers' scripts for Flux.2: latents in patches of 2×2, normalised by the VAE's batch norm."""
    pictures = make_step(OPEN).pixel_values
    latents = Flux2Pipeline._patchify_latents(vae.encode(pictures).latent_dist.mode())
    mean, std = vae.bn.running_mean.view(1, -1, 1, 1), (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    std = std.view(1, -1, 1, 1)

    def decode(z):
        return vae.decode(Flux2Pipeline._unpatchify_latents(z * std + mean)).sample

    return pictures, (latents - mean) / std, lambda noisy: noisy, {}, decode


@pytest.mark.parametrize(
    ("vae", "form"),
    [(lambda: film_vae(AutoencoderKLQwenImage), film_variables), (flux2_vae, patched_variables)],
    ids=["qwen_image", "flux2"],
)
def test_autoencoders_that_have_statistics_alone(tmp_path, capfd, vae, form):
    script = Script(tmp_path, LOSSES)
    pictures, latents, as_kept, statistics, decode = form(script, vae())
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(latents.shape, generator=g)
    sigmas = (torch.tensor(OPEN) / 1000).view(-1, *[1] * (latents.ndim - 1))
    pred = (noise - latents + 0.3 * torch.randn(latents.shape, generator=g)).requires_grad_()
    step = make_step(OPEN, scheduler=flow())
    variables = script.variables(OPEN) | statistics | {"noise_scheduler": flow(), "vae": vae()}
    variables |= {"latents": latents, "noise": noise, "model_pred": pred, "target": noise - latents, "sigmas": sigmas}
    variables["noisy_latents"] = as_kept((1 - sigmas) * latents + sigmas * noise)
    variables["batch"] = {KEY: annotation_of(step), "pixel_values": pictures}
    loss = F.mse_loss(pred, noise - latents)
    given = script.attachment.loss(loss, variables)
    told = capfd.readouterr().err
    kept = {"latents": latents, "noise": noise, "model_pred": pred, "target": noise - latents}
    kept |= {"noisy_latents": (1 - sigmas) * latents + sigmas * noise}
    own = {name: one_frame(x) for name, x in kept.items()}
    own |= {"sigmas": sigmas.flatten(), "pixel_values": one_frame(pictures)}
    own |= {"base_loss": F.mse_loss(own["model_pred"], own["target"])}
    stack = LossStack.from_preset(tmp_path / "preset.yaml", decode=decode, noise_scheduler=flow())
    expected = stack(replace(step, **own)).loss
    torch.testing.assert_close(given, expected)
    assert abs(given - loss) > 1e-3 * loss
    gradients = [torch.autograd.grad(x, pred)[0] for x in (given, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-8)
    assert "reaches the network" in told
    assert "the latents are not encode(picture)" not in told
    assert "gives the clean latents back: relative error" in told


def test_a_time_that_runs_backwards_gives_the_same_loss_and_gradient(tmp_path):
    """Lumina 2's loop: σ is the share of the picture, timesteps are σ, the target is z₀ − ε. Gates go by the noise."""
    results = []
    for backwards in (False, True):
        (tmp_path / str(backwards)).mkdir()
        script = Script(tmp_path / str(backwards), LOSSES.replace("weight: 0.2", "weight: 0.2, max_timestep: 400"))
        for timesteps in ((500, 500), (300, 900)):  # the first shows nothing of the direction
            step = make_step(timesteps, scheduler=flow())
            sign, share = (-1, 1 - step.timesteps / 1000) if backwards else (1, step.timesteps / 1000)
            own = {"model_pred": sign * step.model_pred, "target": sign * step.target, "sigmas": share}
            variables = script.variables(timesteps) | variables_of(step, **own) | {"noise_scheduler": flow()}
            variables |= {"timesteps": share if backwards else step.timesteps}
            loss = script.attachment.loss(F.mse_loss(own["model_pred"], own["target"]), variables)
            results.append((loss.detach(), torch.autograd.grad(loss, step.model_pred)[0]))
    for plain, own in zip(results[:2], results[2:], strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("flags", "said"),
    [({"cache_latents": True}, "leave --cache_latents out"), ({"not_cache_latents": False}, "add --not_cache_latents")],
    ids=["cache", "not_cache"],
)
def test_latents_that_were_kept_unseen_are_told_with_the_scripts_flag(tmp_path, flags, said):
    """ShivamShrirao's script keeps latents unless it is told not to, and deletes its autoencoder."""
    script = Script(tmp_path, LOSSES)
    variables = script.variables(OPEN) | {"args": SimpleNamespace(**flags), "vae": None}
    with pytest.raises(DataError, match=f"is not known: {said}"):
        script.attachment.loss(variables["loss"], variables)


def test_a_fault_in_what_a_loss_needs_stops_the_run(tmp_path):
    script = Script(tmp_path, LOSSES)
    variables = script.variables(OPEN)
    variables["batch"] = {KEY: Fault("this mask is torn"), "pixel_values": ODD_PICTURES["none"]}
    with pytest.raises(DataError, match="this mask is torn"):
        script.attachment.loss(variables["loss"], variables)


def test_curves_by_range_of_t_come_every_so_many_steps_and_average_to_the_plain_loss(tmp_path):
    script = Script(tmp_path, LOSSES, curve_steps=2)
    for timesteps in (OPEN, CLOSED, OPEN, (50, 900)):
        script.step(timesteps)
    records = [json.loads(line) for line in (script.out / "metrics.jsonl").read_text().splitlines()]
    curves = [{k: v for k, v in r.items() if re.fullmatch(r"\w+/t[\d-]+", k)} for r in records]
    assert [sorted(c) for c in curves] == [[], ["ldm/t0-99", "ldm/t700-999", "masked_lpips/t0-99"]] * 2
    mean = (records[0]["ldm"] + records[1]["ldm"]) / 2
    assert (curves[1]["ldm/t0-99"] + curves[1]["ldm/t700-999"]) / 2 == pytest.approx(mean)
    assert curves[1]["masked_lpips/t0-99"] == pytest.approx(records[0]["masked_lpips"])


def test_gradients_are_measured_beside_the_scripts_own_loss(tmp_path, capfd):
    """In additive of any form: a loss that is divided by hand has a gradient that is."""
    found = []
    for name, form in (("whole", F.huber_loss), ("divided", lambda p, t: F.huber_loss(p, t) / 4)):
        (tmp_path / name).mkdir()
        script = Script(tmp_path / name, "combine: additive\n" + LOSSES)
        for timesteps in (OPEN, CLOSED, OPEN, OPEN):
            script.step(timesteps, form)
        script.attachment.finish()
        records = [json.loads(line) for line in (script.out / "metrics.jsonl").read_text().splitlines()]
        assert ["masked_lpips/plain/t0-99" in r for r in records] == [True, False, False, True]
        assert [r.get("masked_lpips/pictures") for r in records] == [2, None, None, 4]
        assert capfd.readouterr().err.count("Was each loss heard?") == 1
        found.append(records[0])
    key = "masked_lpips/plain/t0-99"
    assert found[1][key] == pytest.approx(found[0][key] / 4)


def test_what_balances_a_loss_is_measured_anew_when_a_script_is_resumed_and_that_is_said(tmp_path, capfd):
    script = Script(tmp_path, LOSSES.replace("weight: 0.2", "weight: 0.2, balance: gradient"))
    script.more["global_step"] = 70
    for _ in range(4):  # to the second reading, at which four pictures are measured
        own, given = script.step(OPEN)
        assert torch.equal(own, given)
    assert "what balances masked_lpips is not in the script's checkpoints" in capfd.readouterr().err
    own, given = script.step(OPEN)
    assert not torch.equal(own, given)
    records = [json.loads(line) for line in (script.out / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [71, 72, 73, 74, 75]
    assert [r.get("masked_lpips/balance", 0) > 0 for r in records] == [False, False, False, True, False]


@pytest.mark.parametrize("known", [True, False])
def test_a_loop_that_does_not_tell_its_step_keeps_what_earlier_starts_told(known, tmp_path):
    """Begun anew at step 0, another loop overwrites what the first has done."""
    for _ in range(2):
        script = Script(tmp_path, LOSSES)
        if not known:
            del script.more["global_step"]
        script.step(OPEN)
        script.attachment.finish()
    assert len(read_machine(script.out)) == (1 if known else 2)
    assert len((script.out / "metrics.jsonl").read_text().splitlines()) == (1 if known else 2)
