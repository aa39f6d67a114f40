"""SimpleTuner, unedited: masks lie where its metadata say, and its step gives the library form's loss.

What is called here is called as in bghira/SimpleTuner at bc8e6ab7: `helpers/training/trainer.py`
(`_compute_model_prediction_loss`), `helpers/models/common.py` (`prepare_batch`, `loss`, `auxiliary_loss`),
`helpers/training/collate.py` (the batch), `helpers/image_manipulation/training_sample.py` (scaling and cropping) and
`helpers/training/state_tracker.py`.
MLDM_SIMPLETUNER names the folder of a checkout, MLDM_SIMPLETUNER_PYTHON the interpreter of its environment.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from make_step import ddpm, flow, tiny_vae
from PIL import Image
from simpletuner_record import CENTER, CUT, PRESET, Model, Tracker, attach, metadata_of, prepared
from tiny_people import SCENES, person_pixels, write_dreambooth

from mldm_plugin import DiffusionStep, LossStack
from mldm_plugin.attach import simpletuner
from mldm_plugin.attach.annotation import annotate_frames
from mldm_plugin.attach.attachment import Attachment
from mldm_plugin.attach.flags import Settings
from mldm_plugin.attach.on_record import SideFolder
from mldm_plugin.errors import DataError, MldmError

CHECKOUT = Path(os.environ.get("MLDM_SIMPLETUNER", "checkout-of-simpletuner"))
PYTHON = os.environ.get("MLDM_SIMPLETUNER_PYTHON", sys.executable)


def step_of(model, batch, pred):
    output = {"model_prediction": pred}
    return model.auxiliary_loss(prepared_batch=batch, model_output=output, loss=model.loss(batch, output))


def test_masks_lie_where_the_metadata_say(tmp_path):
    folder = write_dreambooth(tmp_path / "photos", tmp_path / "photos" / "masks")
    masks, tracker = SideFolder(folder / "masks"), Tracker(folder)
    seen_ones = 0
    for scene in SCENES:
        path = str(folder / f"{scene.name}.png")
        for metadata in (tracker.known[path], metadata_of(scene, (3, 1))):
            frame, picture = simpletuner.read_sample(path, metadata, CENTER)
            shown = picture[None].float() / 127.5 - 1
            annotation = annotate_frames([frame], masks, shown)
            seen, mask = person_pixels(shown), annotation.person_mask > 0
            union = (seen | mask).sum()
            seen_ones += int(union > 0)
            assert not union or (seen & mask).sum() / union > 0.9, scene.name
            assert len(annotation.placements) == bool(scene.people)
    assert seen_ones == 2 * sum(bool(s.people) for s in SCENES)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, 'crop_style "random"'),
        ({"crop": True, "crop_style": "face"}, 'crop_style "face"'),
        ({**CENTER, "crop_aspect": "random"}, 'crop_aspect "random"'),
        ({**CENTER, "maximum_image_size": 2, "target_downsample_size": 1}, "target_downsample_size"),
    ],
)
def test_crops_that_it_draws_again_are_refused_where_they_can_move(config, told, tmp_path):
    folder = write_dreambooth(tmp_path / "photos", tmp_path / "photos" / "masks")
    path, metadata = str(folder / f"{SCENES[0].name}.png"), metadata_of(SCENES[0])
    frame, _ = simpletuner.read_sample(path, metadata, config)
    with pytest.raises(DataError, match=f"{told}.*cannot be followed"):
        annotate_frames([frame], SideFolder(folder / "masks"))
    exact = {**metadata, "intermediary_size": CUT, "crop_coordinates": [9, 9]}
    frame, picture = simpletuner.read_sample(path, exact, {})
    assert not frame.lost
    assert picture.shape[-2:] == CUT


def test_a_picture_without_record_or_with_another_size_is_told(tmp_path):
    folder = write_dreambooth(tmp_path / "photos", tmp_path / "photos" / "masks")
    path = str(folder / f"{SCENES[0].name}.png")
    with pytest.raises(DataError, match="no record of where it was cropped"):
        simpletuner.read_sample(path, None, CENTER)
    with pytest.raises(DataError, match="delete the data set's cache files"):
        simpletuner.read_sample(path, {**metadata_of(SCENES[0]), "original_size": (5, 5)}, CENTER)
    with pytest.raises(DataError, match="cannot be read"):
        simpletuner.read_sample(path + "x", metadata_of(SCENES[0]), CENTER)


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
@pytest.mark.parametrize("masks", ["folder", "own"])
def test_a_recorded_step_gives_the_loss_of_the_library_form(tmp_path, kind, masks):
    torch.manual_seed(5)
    folder, vae = write_dreambooth(tmp_path / "photos", tmp_path / "photos" / "masks"), tiny_vae()
    batch, pictures = prepared(folder, kind, vae)
    batch["weights"] = torch.tensor([1.0, 0.5])
    mask = person_pixels(pictures).to(torch.uint8)
    if masks == "folder":
        frames = [simpletuner.read_sample(p, Tracker(folder).known[p], CENTER)[0] for p in batch["filepaths"]]
        mask = annotate_frames(frames, SideFolder(folder / "masks")).person_mask
    else:
        batch["loss_mask_type"] = "segmentation"
        batch["conditioning_pixel_values"] = mask.float().expand(-1, 3, -1, -1) * 2 - 1
    scheduler = ddpm() if kind == "epsilon" else flow()
    model = Model(scheduler, tmp_path)
    preset, attachment = attach(tmp_path, model, Tracker(folder), folder if masks == "folder" else None)
    target = model.get_prediction_target(batch)
    pred = (target + 0.1 * torch.randn_like(target)).requires_grad_()
    state = torch.get_rng_state()
    loss, _ = step_of(model, batch, pred)
    assert torch.equal(torch.get_rng_state(), state)
    (gradient,) = torch.autograd.grad(loss, pred)

    own = pred.detach().clone().requires_grad_()
    step = DiffusionStep(
        **{name: batch[name] for name in ("latents", "noise", "noisy_latents", "timesteps")},
        model_pred=own,
        target=target,
        base_weights=batch["weights"],
        pixel_values=pictures,
        person_mask=mask,
    )
    expected = LossStack.from_preset(preset, vae=vae, noise_scheduler=scheduler)(step).loss
    (right,) = torch.autograd.grad(expected, own)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (gradient - right).norm() <= 1e-6 * right.norm()
    assert loss.item() != pytest.approx(model.loss(batch, {"model_prediction": pred}).item(), rel=1e-3)
    assert (model.loads, model.vae) == (1, None)  # unloaded, as it was
    step_of(model, batch, pred)
    assert model.loads == 1
    attachment.finish()


def test_weights_zero_regularisation_and_validation_are_its_own(tmp_path):
    torch.manual_seed(1)
    folder = write_dreambooth(tmp_path / "photos", tmp_path / "photos" / "masks")
    batch, _ = prepared(folder, "flow", tiny_vae())
    batch["extra"] = torch.tensor(0.25)
    pred = torch.randn_like(batch["latents"]).requires_grad_()
    plain = Model(flow(), tmp_path)
    zero = Model(flow(), tmp_path)
    attach(tmp_path, zero, Tracker(folder), text=PRESET.replace("weight: 0.2", "weight: 0"))
    losses = [step_of(model, batch, pred)[0] for model in (plain, zero)]
    assert torch.equal(*losses)
    assert torch.equal(*(torch.autograd.grad(x, pred)[0] for x in losses))
    assert zero.loads == 0

    ours = Model(flow(), tmp_path)
    attach(tmp_path, ours, Tracker(folder), folder)
    before = {**batch, "target": torch.zeros_like(pred)}
    assert torch.equal(step_of(ours, before, pred)[0], step_of(plain, before, pred)[0])
    with torch.no_grad():
        assert torch.equal(step_of(ours, batch, pred)[0], losses[0])
    assert ours.loads == 0


def test_additive_adds_to_what_else_is_in_its_loss(tmp_path):
    torch.manual_seed(1)
    folder = write_dreambooth(tmp_path / "photos", tmp_path / "photos" / "masks")
    batch, _ = prepared(folder, "flow", tiny_vae())
    target = batch["noise"] - batch["latents"]
    pred = (target + 0.1 * torch.randn_like(target)).requires_grad_()
    batch["extra"] = pred.abs().mean()  # as LayerSync's, of the same output
    plain, ours = Model(flow(), tmp_path), Model(flow(), tmp_path)
    attach(tmp_path, ours, Tracker(folder), folder, PRESET.replace("convex", "additive"))
    assert step_of(ours, batch, pred)[0] > step_of(plain, batch, pred)[0]


# What it is installed on


def test_the_model_that_is_about_to_train_is_followed(tmp_path, monkeypatch):
    folder = write_dreambooth(tmp_path / "photos", tmp_path / "photos" / "masks")

    class Trainer:
        def train(self):
            batch, _ = prepared(folder, "flow", tiny_vae())
            self.done = step_of(self.model, batch, torch.randn_like(batch["latents"]).requires_grad_())

    for name in ("simpletuner", "simpletuner.helpers", "simpletuner.helpers.training"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    tracker = SimpleNamespace(StateTracker=Tracker(folder))
    monkeypatch.setitem(sys.modules, "simpletuner.helpers.training.state_tracker", tracker)
    monkeypatch.setitem(sys.modules, "simpletuner.helpers.training.trainer", SimpleNamespace(Trainer=Trainer))
    told = []
    monkeypatch.setattr(simpletuner, "stop_unseen", lambda attachment, door, remedy: told.append(remedy))
    preset = tmp_path / "preset.yaml"
    preset.write_text(PRESET, encoding="utf-8")
    attachment = Attachment(Settings(("mldm",), str(preset), mask_dir=str(folder / "masks"), panel_steps=0))
    simpletuner.install(attachment, tmp_path / "train.py")
    trainer = Trainer()
    trainer.model = Model(flow(), tmp_path)
    trainer.train()
    assert (attachment.steps, len(told)) == (1, 1)
    attachment.finish()
    monkeypatch.setitem(sys.modules, "simpletuner.helpers.training.trainer", None)
    with pytest.raises(MldmError, match="install SimpleTuner"):
        simpletuner.install(attachment, tmp_path / "train.py")


def test_the_picture_that_is_shown_is_what_was_cut(tmp_path):
    scene = SCENES[0]
    Image.fromarray(scene.pixels()).save(tmp_path / "a.png")
    metadata = {**metadata_of(scene, (2, 3)), "intermediary_size": scene.size}
    _, picture = simpletuner.read_sample(str(tmp_path / "a.png"), metadata, CENTER)
    np.testing.assert_array_equal(picture.permute(1, 2, 0).numpy(), scene.pixels()[2 : 2 + CUT[1], 3 : 3 + CUT[0]])


@pytest.mark.timeout(1800)
@pytest.mark.skipif(not CHECKOUT.is_dir(), reason="MLDM_SIMPLETUNER names no folder")
def test_the_real_models_loss_is_mixed_and_with_weights_zero_as_it_was(tmp_path):
    script = Path(__file__).parent / "scripts" / "simpletuner" / "real_losses.py"
    here = os.pathsep.join([str(Path(__file__).parents[1]), str(CHECKOUT)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    command = [PYTHON, str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "masks follow the pictures" in done.stderr
