"""musubi-tuner, unedited: masks lie where its cached pictures were cut, and its step gives the library form's loss.

What is called here is called as in kohya-ss/musubi-tuner at 30c658c4 (0.3.4): `training/trainer_base.py` (`train`,
`process_batch`), `flux_2_train_network.py` and `zimage_train_network.py` (`call_dit`), `dataset/bucket.py` (the batch),
`dataset/image_video_dataset.py` and `dataset/media_utils.py` (`resize_image_to_bucket`).
MLDM_MUSUBI names the folder of a checkout, MLDM_MUSUBI_PYTHON the interpreter of its environment.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from make_step import flow, tiny_vae
from PIL import Image
from safetensors.torch import load_file
from tiny_people import SCENES, person_pixels, write_dreambooth
from torch.nn import functional as F

from mldm_plugin import DiffusionStep, LossStack
from mldm_plugin.attach import musubi
from mldm_plugin.attach.annotation import KEY, annotate_frames
from mldm_plugin.attach.attachment import Attachment
from mldm_plugin.attach.flags import Settings
from mldm_plugin.attach.musubi_pictures import Batches, frame_of_item, paths_of
from mldm_plugin.attach.on_record import Fault, SideFolder
from mldm_plugin.attach.scope import share_of_noise
from mldm_plugin.errors import CheckError, DataError, MldmError

PRESET = """
combine: convex
checks: {picture: warn}
losses:
  masked_lpips: {weight: 0.2, max_timestep: 999, form: spatial, network: vgg, weights: random}
"""
BUCKET = (64, 64)


# Pictures


def resize(picture, bucket):
    """As its own: the short side to the bucket's, then the middle."""
    scale = max(bucket[0] / picture.width, bucket[1] / picture.height)
    width, height = int(picture.width * scale + 0.5), int(picture.height * scale + 0.5)
    left, top = (width - bucket[0]) // 2, (height - bucket[1]) // 2
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX))[top : top + bucket[1], left:][
        :, : bucket[0]
    ]


class Manager:
    """Its `BucketBatchManager`, one picture's latents after the other."""

    batch_size = 2

    def __init__(self, latents):
        items = [
            SimpleNamespace(
                item_key=scene.name,
                original_size=scene.size,
                bucket_size=(*BUCKET, 9),
                latent_cache_path=f"{scene.name}_x",
            )
            for scene in SCENES
        ]
        self.latents = dict(zip((item.item_key for item in items), latents, strict=True))
        self.buckets = {BUCKET: items}
        self.bucket_batch_indices = [(BUCKET, i) for i in reversed(range((len(items) + 1) // 2))]

    def __len__(self):
        return len(self.bucket_batch_indices)

    def __getitem__(self, index):
        bucket, number = self.bucket_batch_indices[index]
        items = self.buckets[bucket][number * 2 : number * 2 + 2]
        return {"latents": torch.stack([self.latents[i.item_key] for i in items]), "timesteps": None}

    def shuffle(self):
        self.bucket_batch_indices.reverse()


@pytest.fixture
def batches(tmp_path):
    folder = write_dreambooth(tmp_path / "photos", tmp_path / "photos" / "masks")
    source = SimpleNamespace(image_paths=[str(folder / f"{s.name}.png") for s in SCENES])
    manager = Manager(torch.randn(len(SCENES), 4, 16, 16))
    return Batches(manager, source, SideFolder(folder / "masks"), resize)


def test_masks_lie_where_its_pictures_were_cut(batches):
    seen_ones = 0
    for index in range(len(batches)):
        batch = batches[index]
        annotation = batch[KEY]
        pictures = annotation.pictures.float() / 127.5 - 1
        assert pictures.shape[-2:] == BUCKET[::-1]
        seen, mask = person_pixels(pictures), annotation.person_mask > 0
        for row in range(len(annotation)):
            union = (seen[row] | mask[row]).sum()
            seen_ones += int(union > 0)
            assert not union or (seen[row] & mask[row]).sum() / union > 0.9
        assert all(p.likeness > 0.9 for p in annotation.placements)
    assert seen_ones == sum(bool(s.people) for s in SCENES)
    first = batches[0][KEY].names
    batches.shuffle()
    assert batches[0][KEY].names != first


@pytest.mark.parametrize("size", [(37, 91), (64, 64), (200, 90), (63, 65), (64, 300)])
def test_the_frame_is_that_of_its_resizing(size):
    x, y = np.meshgrid(np.arange(size[0], dtype=np.float32), np.arange(size[1], dtype=np.float32))
    frame = frame_of_item("a.png", size, BUCKET)
    a, _, c, _, e, f = frame.affine
    for coordinates, (scale, shift) in ((x, (a, c)), (y, (e, f))):
        found = resize(Image.fromarray(coordinates + 0.5), BUCKET)  # of each pixel its place in the source
        places = (np.arange(64) + 0.5 - shift) / scale
        line = found[32] if coordinates is x else found[:, 32]
        np.testing.assert_allclose(line, places, atol=0.51 + 0.5 / scale)  # to a pixel, of the source or of the picture
        assert abs((line - places)[8:-8].mean()) < 0.1


def test_pictures_that_are_gone_or_others_are_a_fault_of_their_step(batches, tmp_path):
    (tmp_path / "photos" / f"{SCENES[0].name}.png").unlink()
    Image.new("RGB", (9, 9)).save(tmp_path / "photos" / f"{SCENES[2].name}.png")
    batches._manager.latents[SCENES[-1].name] = torch.zeros(4, 16, 16)
    faults = [batches[i][KEY].message for i in range(len(batches)) if isinstance(batches[i][KEY], Fault)]
    assert any("cannot be read" in fault for fault in faults)
    assert any("when its latents were cached: cache them again" in fault for fault in faults)
    with pytest.raises(DataError, match="share their cached latents"):
        paths_of(SimpleNamespace(data=[{"image_path": "a/x.png"}, {"image_path": "b/x.jpg"}]))
    batches._paths = {}
    assert "does not list any more" in batches[0][KEY].message


# Steps


class Trainer:
    """Its loop's methods, for a network that is a tensor; `sign` -1 for the flow from noise to picture (Z-Image)."""

    def __init__(self, sign=1, turns=0.1, weight=None):
        self.sign, self.turns, self.weight, self.loaded = sign, turns, weight, 0

    def load_vae(self, args, vae_dtype, vae_path):
        self.loaded += 1
        torch.randn(3)  # as modules do that are made
        assert vae_dtype is torch.float32
        return tiny_vae()

    def get_noisy_model_input_and_timesteps(self, args, noise, latents, timesteps, noise_scheduler, device, dtype):
        t = torch.tensor([0.1, 0.35])
        shape = (-1, *(1,) * (latents.ndim - 1))
        return (1 - t.view(shape)) * latents + t.view(shape) * noise, t * 1000 + 1

    def call_dit(
        self, args, accelerator, transformer, latents, batch, noise, noisy, timesteps, network_dtype, **kwargs
    ):
        target = self.sign * (noise - latents)
        return SimpleNamespace(pred=target + self.turns * transformer, target=target, extra={})

    def process_batch(
        self,
        args,
        accelerator,
        transformer,
        network,
        batch,
        latents,
        noise,
        noise_scheduler,
        dit_dtype,
        network_dtype,
        vae,
        global_step,
    ):
        noisy, timesteps = self.get_noisy_model_input_and_timesteps(
            args, noise, latents, batch["timesteps"], noise_scheduler, "cpu", dit_dtype
        )
        output = self.call_dit(args, accelerator, transformer, latents, batch, noise, noisy, timesteps, network_dtype)
        losses = F.mse_loss(output.pred.to(network_dtype), output.target, reduction="none")
        if self.weight is not None:
            losses = losses * self.weight.view(-1, *(1,) * (losses.ndim - 1))
        return losses.mean(), {"loss/own": 1.0}


def step_of(trainer, batch, latents, noise, network, tmp_path, **options):
    args = SimpleNamespace(output_dir=str(tmp_path / "out"), **{"vae": "vae.safetensors", **options})
    accelerator = SimpleNamespace(is_main_process=True, sync_gradients=False, num_processes=1)
    given = (args, accelerator, network, None, batch, latents, noise, flow(), torch.float32, torch.float32, None, 0)
    return trainer.process_batch(*given)


def preset_of(tmp_path, text=PRESET):
    path = tmp_path / "preset.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["flow", "turned", "film"])
def test_a_recorded_step_gives_the_loss_of_the_library_form(batches, tmp_path, kind):
    torch.manual_seed(5)
    batch, vae = batches[len(batches) - 1], tiny_vae()
    annotation = batch[KEY]
    assert annotation.person_mask.flatten(1).any(1).all()
    pictures = annotation.pictures.float() / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mode() * vae.config.scaling_factor
    noise, network = torch.randn_like(latents), torch.randn_like(latents).requires_grad_()
    trainer = Trainer(-1 if kind == "turned" else 1, weight=torch.tensor([1.0, 0.5]))
    preset = preset_of(tmp_path)
    attachment = Attachment(Settings(("mldm",), str(preset), panel_steps=0))
    musubi.Steps(trainer, attachment)
    shaped = [x.unsqueeze(2) if kind == "film" else x for x in (latents, noise, network)]
    state = torch.get_rng_state()
    loss, logs = step_of(trainer, batch, *shaped, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert logs == {"loss/own": 1.0}
    (gradient,) = torch.autograd.grad(loss, network)

    own = network.detach().clone().requires_grad_()
    sigmas = torch.tensor([0.1, 0.35])
    spread = sigmas[:, None, None, None]
    step = DiffusionStep(
        latents=latents,
        noise=noise,
        noisy_latents=(1 - spread) * latents + spread * noise,
        timesteps=1000 * sigmas,
        sigmas=sigmas,
        model_pred=noise - latents + (-0.1 if kind == "turned" else 0.1) * own,
        target=noise - latents,
        base_weights=torch.tensor([1.0, 0.5]),
        pixel_values=pictures,
        person_mask=annotation.person_mask,
    )
    expected = LossStack.from_preset(preset, vae=vae, noise_scheduler=flow())(step).loss
    (right,) = torch.autograd.grad(expected, own)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (gradient - right).norm() <= 1e-6 * right.norm()
    plain, _ = step_of(Trainer(trainer.sign, weight=trainer.weight), batch, *shaped, tmp_path)
    assert loss.item() != pytest.approx(plain.item(), rel=1e-3)
    step_of(trainer, batch, *shaped, tmp_path)
    assert trainer.loaded == 1


def test_weights_zero_leave_the_loss_as_it_is_and_load_nothing(tmp_path):
    torch.manual_seed(2)
    latents, noise, network = torch.randn(3, 2, 4, 8, 8).unbind()
    network.requires_grad_()
    preset = preset_of(tmp_path, PRESET.replace("weight: 0.2", "weight: 0"))
    trainer = Trainer()
    musubi.Steps(trainer, Attachment(Settings(("mldm",), str(preset), panel_steps=0)))
    loss, _ = step_of(trainer, {"timesteps": None}, latents, noise, network, tmp_path, vae=None)
    plain, _ = step_of(Trainer(), {"timesteps": None}, latents, noise, network, tmp_path)
    assert torch.equal(loss, plain)
    gradients = [torch.autograd.grad(x, network)[0] for x in (loss, plain)]
    assert torch.equal(*gradients)
    assert trainer.loaded == 0


def test_films_a_step_of_its_own_and_no_autoencoder_are_told(tmp_path):
    attachment = Attachment(Settings(("mldm",), str(preset_of(tmp_path)), panel_steps=0))
    latents, noise, network = torch.randn(3, 2, 4, 5, 8, 8).unbind()
    trainer = Trainer()
    musubi.Steps(trainer, attachment)
    with pytest.raises(CheckError, match="these are films, layers or tokens"):
        step_of(trainer, {"timesteps": None}, latents, noise, network.requires_grad_(), tmp_path)
    own = Trainer()
    own.process_batch = lambda *_: (torch.zeros(()), {})
    musubi.Steps(own, attachment)
    with pytest.raises(CheckError, match="this trainer has a step of its own"):
        step_of(own, {"timesteps": None}, latents, noise, network, tmp_path)
    trainer = Trainer()
    musubi.Steps(trainer, attachment)
    with pytest.raises(MldmError, match="add --vae FILE"):
        step_of(trainer, {"timesteps": None}, *torch.randn(3, 2, 4, 8, 8).unbind(), tmp_path, vae=None)


def test_the_share_of_noise_is_read_off_half_precision_too():
    torch.manual_seed(0)
    latents, noise = torch.randn(2, 3, 16, 8, 8).unbind()
    for sigma in (0.0, 0.004, 0.5, 1.0):
        noisy = ((1 - sigma) * latents + sigma * noise).bfloat16()
        found = share_of_noise(latents, noise, noisy)
        torch.testing.assert_close(found, torch.full((3,), sigma), atol=2e-4, rtol=0)


# What it is installed on


@pytest.fixture
def stand_in(monkeypatch):
    """The three modules of its that are followed."""

    class ImageDataset:
        def prepare_for_training(self, num_timestep_buckets=None):
            self.batch_manager, self.datasource = Manager(torch.zeros(len(SCENES), 4, 16, 16)), self.source

    class NetworkTrainer(Trainer):
        def train(self, args):
            self.done = self.process_batch(*args)

    names = ("musubi_tuner", "musubi_tuner.dataset", "musubi_tuner.training")
    made = {name: ModuleType(name) for name in names}
    made["musubi_tuner.dataset.image_video_dataset"] = SimpleNamespace(ImageDataset=ImageDataset)
    made["musubi_tuner.dataset.media_utils"] = SimpleNamespace(resize_image_to_bucket=resize)
    made["musubi_tuner.training.trainer_base"] = SimpleNamespace(NetworkTrainer=NetworkTrainer)
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    told = []
    monkeypatch.setattr(musubi, "stop_unseen", lambda attachment, door, remedy: told.append(remedy))
    return SimpleNamespace(data=ImageDataset, trainer=NetworkTrainer, told=told)


def test_its_data_sets_and_its_loop_are_followed(stand_in, tmp_path):
    folder = write_dreambooth(tmp_path / "photos", tmp_path / "photos" / "masks")
    settings = Settings(("mldm",), str(preset_of(tmp_path)), mask_dir=str(folder / "masks"), panel_steps=0)
    attachment = Attachment(settings)
    musubi.install(attachment, tmp_path / "flux_2_train_network.py")
    assert "Full fine-tuning has loops of its own" in stand_in.told[0]
    data = stand_in.data()
    data.source = SimpleNamespace(image_paths=[str(folder / f"{s.name}.png") for s in SCENES])
    data.prepare_for_training()
    batch = data.batch_manager[1]
    vae = tiny_vae()
    with torch.no_grad():
        latents = vae.encode(batch[KEY].pictures.float() / 127.5 - 1).latent_dist.mode() * vae.config.scaling_factor
    trainer, network = stand_in.trainer(), torch.randn_like(latents).requires_grad_()
    args = SimpleNamespace(output_dir=str(tmp_path / "out"), vae="vae.safetensors")
    accelerator = SimpleNamespace(is_main_process=True, sync_gradients=False, num_processes=1)
    trainer.train(
        (
            args,
            accelerator,
            network,
            None,
            batch,
            latents,
            torch.randn_like(latents),
            flow(),
            None,
            torch.float32,
            None,
            0,
        )
    )
    assert attachment.steps == 1
    assert trainer.done[0].requires_grad
    attachment.finish()


def test_without_musubi_tuner_its_script_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "musubi_tuner", None)
    with pytest.raises(MldmError, match="install musubi-tuner"):
        musubi.install(SimpleNamespace(in_use=True), tmp_path / "flux_2_train_network.py")


def test_a_picture_stored_turned_is_told(tmp_path):
    folder = write_dreambooth(tmp_path / "photos", tmp_path / "photos" / "masks")
    frame = frame_of_item(str(folder / f"{SCENES[0].name}.png"), SCENES[0].size, BUCKET, 6)
    with pytest.raises(DataError, match="stored turned"):
        annotate_frames([frame], SideFolder(folder / "masks"))


# The real one


CHECKOUT = Path(os.environ.get("MLDM_MUSUBI", "checkout-of-musubi-tuner"))
PYTHON = os.environ.get("MLDM_MUSUBI_PYTHON", sys.executable)
SCRIPT = Path(__file__).parent / "scripts" / "musubi" / "tiny_flux_2.py"


def run_real(*arguments, plugin=()):
    here = [str(Path(__file__).parents[1]), str(CHECKOUT / "src")]
    done = subprocess.run(
        [PYTHON, *(["-m", "mldm_plugin"] if plugin else []), str(SCRIPT), *map(str, arguments), *map(str, plugin)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(here)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.timeout(3600)
@pytest.mark.skipif(not CHECKOUT.is_dir(), reason="MLDM_MUSUBI names no folder")
def test_the_real_trainer_trains_with_our_losses_and_with_weights_zero_as_without_us(tmp_path):
    photos = write_dreambooth(tmp_path / "photos", tmp_path / "photos" / "masks")
    for scene in SCENES:
        (photos / f"{scene.name}.txt").write_text(scene.text, encoding="utf-8")
    (tmp_path / "data.toml").write_text(
        '[general]\nresolution = [64, 64]\ncaption_extension = ".txt"\nbatch_size = 2\nenable_bucket = true\n'
        f'[[datasets]]\nimage_directory = "{photos}"\ncache_directory = "{tmp_path / "cache"}"\n',
        encoding="utf-8",
    )
    run_real("prepare", tmp_path)
    flags = ["--dit", tmp_path / "dit.safetensors", "--vae", tmp_path / "ae.safetensors", "--sdpa", "--seed", 1]
    flags += [
        "--dataset_config",
        tmp_path / "data.toml",
        "--model_version",
        "klein-base-4b",
        "--mixed_precision",
        "bf16",
    ]
    flags += ["--timestep_sampling", "flux2_shift", "--network_module", "networks.lora_flux_2", "--network_dim", 2]
    flags += ["--max_train_steps", 4, "--learning_rate", 0.01, "--optimizer_type", "AdamW", "--output_name", "lora"]
    flags += ["--max_data_loader_n_workers", 1]
    preset = ["--preset", preset_of(tmp_path), "--mldm-mask-dir", photos / "masks"]
    run_real(*flags, "--output_dir", tmp_path / "plain")
    run_real(*flags, "--output_dir", tmp_path / "zero", plugin=[*preset, "--set", "losses.masked_lpips.weight=0"])
    told = run_real(*flags, "--output_dir", tmp_path / "ours", plugin=preset)
    plain, zero, ours = (load_file(tmp_path / name / "lora.safetensors") for name in ("plain", "zero", "ours"))
    assert plain.keys() == zero.keys() == ours.keys()
    assert all(torch.equal(plain[name], zero[name]) for name in plain)
    assert any(not torch.equal(plain[name], ours[name]) for name in plain)
    assert "masks follow the pictures" in told
    assert "reaches the network" in told
    lines = [json.loads(x) for x in (tmp_path / "ours/mldm/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert sum(line["masked_lpips/gated"] for line in lines) > len(lines)
