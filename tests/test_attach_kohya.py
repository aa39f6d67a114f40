"""kohya's trainers, unedited: masks follow its data sets to the pixel, steps spread over methods are put together.

The stand-ins are in tests/scripts/kohya/. Those tests that need sd-scripts itself say so (see kohya_scripts).
"""

import importlib
import json
import pickle
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
import torch
from kohya_scripts import AUGMENTED, SCRIPTS, SD_SCRIPTS, needs_sd_scripts
from kohya_scripts import run as run_kohya
from PIL import Image
from safetensors.torch import load_file
from tiny_people import (
    SCENES,
    check_eyes,
    face_pixels,
    person_pixels,
    second_person_pixels,
    write_class_pictures,
    write_dreambooth,
)

from mldm_plugin.attach import kohya, kohya_loop, kohya_masks
from mldm_plugin.attach.annotation import KEY
from mldm_plugin.attach.autoencoders import in_form_of_diffusers
from mldm_plugin.attach.edits import ScriptError
from mldm_plugin.attach.on_record import SideFolder
from mldm_plugin.decode.latent_decoder import LatentDecoder
from mldm_plugin.engine.schedule import stable_diffusion_snr
from mldm_plugin.errors import DataError

HELPERS = Path(__file__).parent / "scripts"
STAND_INS = HELPERS / "kohya"
PLUGINS = ["--loss-plugin", HELPERS / "recorder.py", "--loss-plugin", HELPERS / "pixel_loss.py"]
PRESET = "combine: convex\nlosses:\n  pixel_loss: {weight: 0.4, max_timestep: 999}\n"


def iou(one, other):
    return ((one & other).sum() / (one | other).sum()).item()


def test_what_a_validation_step_shows_is_not_kept():
    notes = kohya_loop.Notes()
    notes.add({"latents": "of training", "is_train": True})
    notes.add({"latents": "of validation", "is_train": False})
    assert notes.take({"latents": "of the loop", "step": 3}) == {"latents": "of training", "is_train": True, "step": 3}
    assert notes.take({"step": 4}) == {"step": 4}


# Autoencoders


@pytest.fixture
def library(monkeypatch):
    """The stand-in of kohya's library, imported afresh."""
    monkeypatch.syspath_prepend(str(STAND_INS))
    for name in [n for n in sys.modules if n.split(".")[0] == "library"]:
        monkeypatch.delitem(sys.modules, name)
    library = importlib.import_module("library.train_util")
    yield library
    for name in [n for n in sys.modules if n.split(".")[0] == "library"]:
        del sys.modules[name]


class SDVAE(torch.nn.Module):
    """Scaling in static methods, as kohya's autoencoder of SD3."""

    def __init__(self, models):
        super().__init__()
        self.encoder, self.decoder = models.Encoder(), models.Decoder()
        self.requires_grad_(False)

    @staticmethod
    def process_in(latent):
        return (latent - 0.0609) * 1.5305


def test_autoencoders_of_flux_and_sd3_give_what_the_scripts_train_on(library):
    models = importlib.import_module("library.models")
    images = torch.rand(2, 3, 32, 32).repeat_interleave(1, 0) * 2 - 1
    state = torch.get_rng_state()
    flux, sd3 = models.AutoEncoder(), SDVAE(models)
    means = flux.encoder(images).chunk(2, dim=1)[0]
    for vae, latents in (
        (flux, flux.scale_factor * (means - flux.shift_factor)),
        (sd3, sd3.process_in(means)),
    ):
        adapted, factor = in_form_of_diffusers(vae, None)
        assert factor is None
        decoder = LatentDecoder(adapted)
        torch.testing.assert_close(decoder.encode(images)[0], latents)
        torch.testing.assert_close(decoder(latents), flux.decoder(means))
        assert decoder.image_size(latents) == (32, 32)
    assert torch.equal(torch.get_rng_state(), state)


# Data sets


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ground")
    write_dreambooth(folder / "pictures", folder / "masks")
    write_class_pictures(folder / "class")
    (folder / "preset.yaml").write_text(PRESET, encoding="utf-8")
    return folder


def make_group(library, ground, **flags):
    models = importlib.import_module("library.models")
    given = {"resolution": 64, "train_batch_size": 2, "train_data_dir": ground / "pictures", "reg_data_dir": None}
    switches = dict.fromkeys(("flip_aug", "random_crop", "alpha_mask", "cache_latents"), False)
    args = SimpleNamespace(**{**given, **switches, **flags})
    return library.DatasetGroup([library.DreamBoothDataset(args, models.AutoencoderKL())])


def batches(library, group, folder):
    collate = kohya_masks.KohyaCollate(library.collator_class(group), folder)
    return [collate([group[i]]) for i in range(len(group))]


def check_places(pixel_values, annotation):
    """Masks, labels, boxes and keypoints lie where the pixels say."""
    assert iou(annotation.person_mask > 0, person_pixels(pixel_values)) > 0.95
    second = second_person_pixels(pixel_values)
    if second.sum() > 100:
        assert iou(annotation.person_mask == 2, second) > 0.93
    faces = face_pixels(pixel_values)
    for row, boxes in enumerate(annotation.face_boxes):
        drawn = torch.zeros(pixel_values.shape[-2:], dtype=torch.bool)
        for x0, y0, x1, y1 in boxes.round().int().tolist():
            drawn[y0:y1, x0:x1] = True
        if drawn.any():  # a face that is half cut off has lost its box
            assert iou(drawn & faces[row, 0], drawn) > 0.8
        for person in annotation.keypoints[row]:
            check_eyes(person, faces[row, 0])


@pytest.mark.parametrize(
    "flags", [{}, {"random_crop": True, "flip_aug": True}, {"cache_latents": True, "flip_aug": True}]
)
def test_masks_and_boxes_are_where_the_data_set_puts_its_pictures(library, ground, flags):
    group = make_group(library, ground, **flags)
    random.seed(1)
    torch.manual_seed(1)
    before = [group[i] for i in range(len(group))]
    random.seed(1)
    torch.manual_seed(1)
    for plain, batch in zip(before, batches(library, group, SideFolder(ground / "masks")), strict=True):
        annotation = batch[KEY]
        for name in ("images", "latents", "alpha_masks", "loss_weights"):
            assert plain[name] is None or torch.equal(plain[name], batch[name])
        if flags.get("cache_latents"):
            assert annotation.pictures.dtype == torch.uint8
            pixel_values = annotation.pictures.float() / 127.5 - 1
            encoded = torch.nn.functional.avg_pool2d(pixel_values, 8) * 4
            torch.testing.assert_close(encoded, batch["latents"][:, :3], atol=0.1, rtol=0)
        else:
            assert annotation.pictures is None
            pixel_values = batch["images"]
            assert annotation.placements
        check_places(pixel_values, annotation)


def test_a_users_alpha_masks_stay_as_they_are(library, ground):
    group = make_group(library, ground, alpha_mask=True)
    plain = group[0]["alpha_masks"]
    (first, *_) = batches(library, group, SideFolder(ground / "masks"))
    assert torch.equal(first["alpha_masks"], plain)
    assert first[KEY].person_mask.any()


def test_regularisation_pictures_take_no_mask_even_under_the_same_name(library, ground, tmp_path):
    (tmp_path / "class").mkdir()
    scene = SCENES[0]
    Image.fromarray(scene.pixels()).save(tmp_path / "class" / f"{scene.name}.png")
    group = make_group(library, ground, reg_data_dir=tmp_path / "class", train_batch_size=1)
    for batch in batches(library, group, SideFolder(ground / "masks")):
        assert batch[KEY].person_mask.any() == (batch["loss_weights"][0] == 1 and "nobody" not in batch[KEY].names[0])


def test_masks_are_compared_with_the_pictures_before_anything_else(library, ground, tmp_path, capsys):
    masks = tmp_path / "masks"
    masks.mkdir()
    (masks / "anna.json").write_text('{"face_boxes": []}', encoding="utf-8")
    group = make_group(library, ground)
    first, *_ = batches(library, group, SideFolder(masks))
    assert not isinstance(first[KEY], DataError)
    said = capsys.readouterr().err
    assert said.count("warning: 7 of 8 pictures have no mask") == 1
    (masks / "anna.json").rename(masks / "other.json")
    assert "none of the 8 pictures" in str(batches(library, group, SideFolder(masks))[0][KEY])


def test_two_pictures_of_one_name_are_refused(library, ground, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(SCENES[0].pixels()).save(tmp_path / folder / "anna.png")
    parts = [make_group(library, ground, train_data_dir=tmp_path / f).datasets[0] for f in ("a", "b")]
    first, *_ = batches(library, library.DatasetGroup(parts), SideFolder(ground / "masks"))
    assert "have the same name" in str(first[KEY])


def test_a_cache_of_another_picture_is_refused(library, ground, tmp_path):
    pictures = tmp_path / "pictures"
    write_dreambooth(pictures, tmp_path / "masks")
    group = make_group(library, ground, train_data_dir=pictures, cache_latents=True)
    for path in pictures.glob("*.png"):
        with Image.open(path) as picture:
            smaller = picture.crop((0, 0, picture.width - 4, picture.height))
        smaller.save(path)
    first, *_ = batches(library, group, SideFolder(ground / "masks"))
    assert "its cached latents are of a picture of another size" in str(first[KEY])


def test_a_library_that_is_laid_out_otherwise_is_refused(library, ground, monkeypatch):
    monkeypatch.delattr(library, "resize_image")
    with pytest.raises(DataError, match=r"has no resize_image: use version 0\.10"):
        kohya_masks.KohyaCollate(library.collator_class(None), SideFolder(ground / "masks"))


def test_the_collate_function_follows_the_data_sets_where_it_is_unpickled(library, ground):
    pickled = pickle.dumps(kohya_masks.KohyaCollate(library.collator_class(None), SideFolder(ground / "masks")))
    importlib.reload(library)  # as in a worker that was spawned: nothing has been wrapped
    assert not hasattr(library.load_image, "__wrapped__")
    pickle.loads(pickled)
    assert hasattr(library.load_image, "__wrapped__")
    assert KEY in make_group(library, ground)[0]


# Scripts


def spliced(name):
    script = STAND_INS / name
    return {path.name: text for path, text in kohya.splice(script.read_text(encoding="utf-8"), script).items()}


def test_the_edits_reach_the_modules_beside_the_script():
    texts = spliced("flow_train_network.py")
    assert texts.keys() == {"flow_train_network.py", "train_network.py"}
    assert "return mldm.note((model_pred, target, timesteps, weighting), locals())" in texts["flow_train_network.py"]
    assert "            return model_pred\n" in texts["flow_train_network.py"]  # of a function inside
    loop = texts["train_network.py"]
    assert "accelerator.backward(mldm.loss(loss, locals()))" in loop
    assert "return mldm.note((loss.mean()), locals())" in loop
    assert "return latents * mldm.factor(self.vae_scale_factor)" in loop
    assert "collate_fn=mldm.collate(collator)" in loop
    assert spliced("train_controlnet.py").keys() == {"train_control_net.py"}
    for name, text in texts.items():
        assert text.count("\n") == (STAND_INS / name).read_text(encoding="utf-8").count("\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.replace("accelerator.backward(loss)", "loss.backward()"), "there is none"),
        (lambda t: t.replace("noise_pred", "answer"), "found none for model_pred"),
        (lambda t: t.replace("group =", "mldm ="), "has a variable 'mldm'"),
    ],
    ids=["no_backward", "no_prediction", "name_taken"],
)
def test_a_script_without_a_known_step_is_refused(tmp_path, change, said):
    script = tmp_path / "train.py"
    text = change((STAND_INS / "train_control_net.py").read_text(encoding="utf-8"))
    assert kohya.is_script(text)
    with pytest.raises(ScriptError, match=said):
        kohya.splice(text, script)


def run_stand_in(ground, out, script, *flags, plugin=True):
    command = [*(["-m", "mldm_plugin"] if plugin else []), STAND_INS / script]
    command += ["--train_data_dir", ground / "pictures", "--output_dir", out, "--random_crop", "--flip_aug", *flags]
    if plugin:
        command += [*PLUGINS, "--preset", ground / "preset.yaml", "--mldm-mask-dir", ground / "masks"]
    done = forked.run(*command, env={"STEP_FOLDER": f"{out}-steps"})
    weights = load_file(out / "weights.safetensors") if (out / "weights.safetensors").exists() else {}
    return done, weights, [load_file(f) for f in sorted(Path(f"{out}-steps").glob("*"))]


def check_run(done, steps, out, weights=None):
    assert done.returncode == 0, done.stderr
    assert "reaches the network" in done.stderr
    assert "decode(clean latents) resembles the picture" in done.stderr
    assert "masks follow the pictures" in done.stderr
    assert len(steps) == 4
    for step in steps:
        assert iou(step["person_mask"] > 0, person_pixels(step["pixel_values"])) > 0.95
        if weights is not None:
            torch.testing.assert_close(step["base_weights"], weights(step), rtol=1e-4, atol=1e-5)
    records = [json.loads(line) for line in (out / "mldm" / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 4
    assert any(r["pixel_loss"] for r in records)
    assert (out / "mldm" / "panels" / "step-1.png").exists()


def test_a_trainer_class_trains_with_masks_and_zero_weights_leave_it_alone(ground, tmp_path):
    flags = ("train_network.py", "--v_parameterization", "--min_snr_gamma", "5")
    _, plain, _ = run_stand_in(ground, tmp_path / "plain", *flags, plugin=False)
    _, zero, _ = run_stand_in(ground, tmp_path / "zero", *flags, "--set", "losses.pixel_loss.weight=0")
    done, on, steps = run_stand_in(ground, tmp_path / "on", *flags)
    assert plain
    assert all(torch.equal(plain[k], zero[k]) for k in plain)
    assert torch.equal(plain["generator"], on["generator"])
    assert not torch.equal(plain["conv.weight"], on["conv.weight"])
    snr = {t: float(a / (1 - a)) for t, a in enumerate(_alphas_cumprod())}
    check_run(
        done, steps, tmp_path / "on", lambda s: torch.tensor([min(1.0, 5 / snr[t]) for t in s["timesteps"].tolist()])
    )


def _alphas_cumprod():
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, dim=0)


def test_a_subclass_that_imports_its_loop_trains_from_cached_latents_in_a_worker(ground, tmp_path):
    flags = ("flow_train_network.py", "--cache_latents", "--workers", "1")
    done, _, steps = run_stand_in(ground, tmp_path / "out", *flags)
    check_run(done, steps, tmp_path / "out", lambda s: 1 + s["sigmas"].flatten())


def test_a_shim_that_imports_its_loop_trains(ground, tmp_path):
    done, _, steps = run_stand_in(ground, tmp_path / "out", "train_controlnet.py")
    check_run(done, steps, tmp_path / "out", lambda s: torch.ones(len(s["timesteps"])))


# sd-scripts itself


@pytest.fixture(scope="session")
def kohya_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kohya")
    (folder / "preset.yaml").write_text(
        "combine: convex\nchecks: {picture: CHECK}\nlosses:\n"
        "  masked_lpips: {weight: 0.2, max_timestep: 999, form: spatial, network: vgg, weights: random}\n"
        "  face: {weight: 0.3, max_timestep: 999, form: spatial, network: vggface2_resnet50, weights: random}\n",
        encoding="utf-8",
    )
    return folder


def train_kohya(folder, name, case, *flags, picture="stop", small=True):
    """Run a script of sd-scripts with all losses; returns the process, its weights and its steps."""
    preset = folder / f"preset-{picture}.yaml"
    preset.write_text((folder / "preset.yaml").read_text().replace("CHECK", picture), encoding="utf-8")
    out = folder / f"{name}-{case}"
    extra = [*flags, "--loss-plugin", "mldm", "--loss-plugin", HELPERS / "recorder.py", "--preset", preset]
    extra += ["--mldm-mask-dir", folder / "ground" / "masks"]
    done, weights = run_kohya(SCRIPTS[name], out, "mldm_plugin", extra, small=small)
    return done, weights, [load_file(f) for f in sorted(Path(f"{out}-steps").glob("*"))]


def check_kohya(done, steps):
    assert done.returncode == 0, done.stderr
    table = done.stderr[done.stderr.index("Start-up proof") :]
    assert table.count("reaches the network") == 2
    assert len(steps) == 4
    for step in steps:
        people = person_pixels(step["pixel_values"])
        assert step["person_mask"].any() == people.any()
        assert not people.any() or iou(step["person_mask"] > 0, people) > 0.98
        faces = face_pixels(step["pixel_values"])
        for row in range(len(faces)):
            for person in step[f"keypoints.{row}"]:
                check_eyes(person, faces[row, 0])
    return table


KOHYA = {
    "train_network": AUGMENTED,
    "sdxl_train_network": AUGMENTED,
    "train_db": AUGMENTED,
    "fine_tune": ["--flip_aug"],
    "sdxl_train": ["--flip_aug"],
}


@needs_sd_scripts
@pytest.mark.parametrize("name", KOHYA)
def test_sd_scripts_trains_unedited(kohya_folder, name):
    done, _, steps = train_kohya(kohya_folder, name, "on", *KOHYA[name])
    assert "decode(clean latents) resembles the picture" in check_kohya(done, steps)


@needs_sd_scripts
def test_sd_scripts_trains_flux_with_its_own_autoencoder(kohya_folder):
    done, _, steps = train_kohya(kohya_folder, "flux_train_network", "on", *AUGMENTED, picture="warn")
    table = check_kohya(done, steps)  # the autoencoder has random weights, but its latents must be the script's
    assert "decode(clean latents) does not resemble the picture" in table
    assert "the latents are not encode(picture)" not in table


@needs_sd_scripts
def test_sd_scripts_with_cached_latents_weights_and_regularisation(kohya_folder):
    flags = ["--flip_aug", "--cache_latents", "--cache_latents_to_disk", "--v_parameterization", "--min_snr_gamma", "5"]
    flags += ["--reg_data_dir", str(kohya_folder / "ground" / "class"), "--prior_loss_weight", "0.5"]
    for case in ("written", "read"):
        done, _, steps = train_kohya(kohya_folder, "train_network", case, *flags)
        assert "decode(clean latents) resembles the picture" in check_kohya(done, steps)
        for step in steps:
            snr = stable_diffusion_snr()[step["timesteps"]]
            weights = step["base_weights"] / (snr.clamp_max(5) / (snr + 1)).float()
            assert all(min(abs(w - 1), abs(w - 0.5)) < 1e-3 for w in weights.tolist())


@needs_sd_scripts
@pytest.mark.parametrize("name", ["train_network", "train_db"])
def test_sd_scripts_with_weights_of_zero_saves_the_same_bits(kohya_folder, name):
    zero = ("--set", "losses.masked_lpips.weight=0", "--set", "losses.face.weight=0")
    _, plain = run_kohya(SCRIPTS[name], kohya_folder / f"{name}-plain", extra=AUGMENTED)
    _, same, _ = train_kohya(kohya_folder, name, "zero", *AUGMENTED, *zero)
    assert plain
    assert plain.keys() == same.keys()
    assert all(torch.equal(plain[k], same[k]) for k in plain)


@needs_sd_scripts
def test_sd_scripts_trains_a_control_net_through_its_shim_with_the_real_shapes(kohya_folder):
    done, _, steps = train_kohya(kohya_folder, "train_controlnet", "on", "--flip_aug", "--color_aug", small=False)
    assert "decode(clean latents) resembles the picture" in check_kohya(done, steps)


@needs_sd_scripts
def test_sd_scripts_with_a_huber_loss_is_added_to_and_not_mixed_with(kohya_folder):
    done, weights, _ = train_kohya(kohya_folder, "train_network", "huber", "--loss_type", "huber")
    assert done.returncode == 1
    assert not weights
    assert "because of --loss_type huber; combine: convex" in done.stderr
    assert "--set combine=additive takes any loss" in done.stderr
    flags = ("--loss_type", "huber", "--set", "combine=additive")
    done, _, steps = train_kohya(kohya_folder, "train_network", "added", *flags)
    assert "decode(clean latents) resembles the picture" in check_kohya(done, steps)
    assert "times a factor, because of --loss_type huber: combine: additive" in done.stderr


@needs_sd_scripts
@pytest.mark.parametrize("path", sorted(SD_SCRIPTS.glob("*train*.py")), ids=lambda p: p.stem)
def test_every_training_script_of_sd_scripts_has_its_places(path):
    texts = kohya.splice(path.read_text(encoding="utf-8"), path)
    assert sum(text.count("accelerator.backward(mldm.loss(loss, locals()))") for text in texts.values()) == 1
    assert any("mldm.collate(collator)" in text for text in texts.values())
