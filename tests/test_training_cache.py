"""--cache_latents: the same training without an encoder, on entries that are never out of date nor half a file."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from run_trainer import LORA, command, launch, records, same_weights, start, weights_of
from safetensors.torch import load_file, save_file

from mldm_plugin.data.latents_cache import LatentsCache
from mldm_plugin.training import caching
from mldm_plugin.training.run import Run

CAPTIONS = ["a person", "somebody", "a face"]


@pytest.fixture
def data(make_data, tmp_path):
    """Five pictures in a folder of their own, and so a cache of their own: beside it."""
    return make_data(tmp_path / "people", 5, captions=CAPTIONS)


@pytest.fixture(scope="module")
def cached(train, make_data, tmp_path_factory):
    """A finished run whose cache others copy: the folder of its data set, and the run."""
    data = make_data(tmp_path_factory.mktemp("cached") / "people", 5, captions=CAPTIONS)
    run = data.with_name("run")
    assert train(run, "--cache_latents", "--train_data_dir", data) == 0
    return data, run


@pytest.fixture
def copied(cached, data):
    """The same pictures with a copy of that cache, to be changed."""
    shutil.copytree(cached[0].with_name("people.latents"), data.with_name("people.latents"))
    return data


def entries(data: Path) -> dict[Path, int]:
    """The whole entries beside a data set, and when each was written."""
    return {p: p.stat().st_mtime_ns for p in data.with_name(f"{data.name}.latents").rglob("[!.]*.safetensors")}


def difference(a: Path, b: Path) -> float:
    """The relative difference of what two runs trained.

    Over all weights together: where a gradient is nothing but rounding, Adam makes whole steps of it.
    """
    one, other = weights_of(a), weights_of(b)
    assert one.keys() == other.keys()
    flat, flat_other = (torch.cat([weights[k].flatten() for k in one]) for weights in (one, other))
    return ((flat - flat_other).norm() / flat_other.norm()).item()


@pytest.fixture
def counted(monkeypatch):
    """How often the VAE encodes, the text encoder runs and a picture is decoded, while steps are made."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel

    from mldm_plugin.data import training_set

    calls = {"vae": 0, "text": 0, "picture": 0, "steps": 0}

    def count(owner, name, what):
        original = getattr(owner, name)

        def counting(*args, **kwargs):
            calls[what] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    count(AutoencoderKL, "encode", "vae")
    count(CLIPTextModel, "forward", "text")
    count(training_set, "read_picture", "picture")
    count(Run, "finish_step", "steps")
    train = Run.train

    def train_from_zero(run):
        calls.update(dict.fromkeys(calls, 0))
        train(run)

    monkeypatch.setattr(Run, "train", train_from_zero)
    return calls


PLAIN = ["--random_flip", "--max_train_steps", 6]


@pytest.mark.parametrize(("trainer", "batch"), [("controlnet", 1), ("lora", 1), ("controlnet", 2)])
def test_the_same_losses_and_weights_as_without(trainer, batch, data, train, train_lora, tmp_path):
    """To the bit where each step has one picture; a batch of two is rounded otherwise than its pictures alone."""
    run, flags = {
        "controlnet": (train, ["--proportion_empty_prompts", 0.3]),
        "lora": (train_lora, ["--center_crop"]),
    }[trainer]
    flags = [*PLAIN, *flags, "--train_batch_size", batch, "--train_data_dir", data]
    assert run(tmp_path / "without", *flags) == 0
    assert run(tmp_path / "with", *flags, "--cache_latents") == 0
    losses = [[r["loss"] for r in records(tmp_path / name)] for name in ("with", "without")]
    apart = difference(tmp_path / "with", tmp_path / "without")
    assert len(set(losses[0])) == 6
    if batch == 1:
        assert losses[0] == losses[1]
        assert apart == 0
    else:
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert apart < 1e-5


def test_with_losses_in_bf16_and_without_hints(data, train, random_preset, tmp_path):
    flags = ["--preset", random_preset, "--train_data_dir", data, "--train_batch_size", 1, "--max_train_steps", 2]
    flags += ["--mixed_precision", "bf16", "--conditioning", "none", "--random_flip", "--panel_steps", 2]
    flags += ["--set", "precision=float32"]  # of the losses, which a CPU computes sooner
    assert train(tmp_path / "plain", *flags) == 0
    assert train(tmp_path / "cached", *flags, "--cache_latents") == 0
    assert records(tmp_path / "cached") == records(tmp_path / "plain")
    assert same_weights(tmp_path / "cached", tmp_path / "plain")
    assert any(r["masked_lpips"] for r in records(tmp_path / "plain"))
    assert {load_file(p)["value"].dtype for p in entries(data)} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("flags", "pictures"),
    [([], 0), (["--set", "target=decoded"], 0), (["--set", "target=image"], 5)],
    ids=["no plugin", "decoded", "image"],
)
def test_training_encodes_nothing_and_loads_what_is_looked_at(
    data, train_lora, random_preset, tmp_path, counted, flags, pictures
):
    plugin = ["--preset", random_preset, "--set", "checks.picture=warn", *flags] if flags else []
    common = [*plugin, "--center_crop", "--train_data_dir", data, "--train_batch_size", 1, "--max_train_steps", 5]
    assert train_lora(tmp_path / "without", *common) == 0
    assert (counted["steps"], counted["vae"], counted["text"], counted["picture"]) == (5, 5, 5, 5)
    assert train_lora(tmp_path / "with", *common, "--cache_latents") == 0
    assert (counted["steps"], counted["vae"], counted["text"], counted["picture"]) == (5, 0, 0, pictures)
    assert records(tmp_path / "with") == records(tmp_path / "without")


def test_a_second_run_reuses_everything(cached, copied, train, train_lora, tmp_path, capfd):
    first = entries(copied)
    assert len(first) == 5 + len(CAPTIONS) + 1  # the empty one
    assert train(tmp_path / "two", "--cache_latents", "--train_data_dir", copied, "--seed", 9) == 0
    assert entries(copied) == first
    assert "is damaged" not in capfd.readouterr().err
    flips = ["--center_crop", "--random_flip", "--image_interpolation_mode", "bilinear"]
    assert train_lora(tmp_path / "three", "--cache_latents", "--train_data_dir", copied, *flips) == 0
    assert len(entries(copied)) == len(first) + 5  # the mirror images; all else is the same as for the ControlNet
    assert first.items() <= entries(copied).items()
    assert not list(cached[1].glob("*latents*"))


def change_weight(file: Path, name: str, by: float) -> None:
    """Add to the first number of a tensor of a weight file."""
    weights = load_file(file)
    next(w for k, w in weights.items() if k.endswith(name)).flatten()[0] += by
    save_file(weights, file, {"format": "pt"})


def break_a_picture(data: Path, pipeline: Path) -> tuple[list, int]:
    with Image.open(data / "2.png") as picture:
        picture.putpixel((30, 30), (1, 2, 3))
        picture.save(data / "2.png")
    return [], 1


def break_the_resolution(data: Path, pipeline: Path) -> tuple[list, int]:
    return ["--resolution", 32], 5


def break_a_weight(data: Path, pipeline: Path) -> tuple[list, int]:
    change_weight(pipeline / "vae" / "diffusion_pytorch_model.safetensors", "encoder.conv_in.weight", 1e-3)
    return [], 5


def break_the_text_encoder(data: Path, pipeline: Path) -> tuple[list, int]:
    change_weight(pipeline / "text_encoder" / "model.safetensors", "final_layer_norm.weight", 1e-3)
    return [], 4


def break_the_precision(data: Path, pipeline: Path) -> tuple[list, int]:
    return ["--mixed_precision", "bf16"], 9


STALE = [
    break_a_picture,
    break_the_resolution,
    break_a_weight,
    break_the_text_encoder,
    break_the_precision,
]


@pytest.mark.parametrize("change", STALE, ids=lambda f: f.__name__.removeprefix("break_"))
def test_what_an_entry_depends_on_makes_another(change, copied, tiny_pipeline, train, tmp_path):
    pipeline = shutil.copytree(tiny_pipeline, tmp_path / "pipeline")
    before = entries(copied)
    more, new = change(copied, pipeline)
    flags = ["--train_data_dir", copied, "--pretrained_model_name_or_path", pipeline, "--max_train_steps", 1]
    assert train(tmp_path / "run", "--cache_latents", *flags, *more) == 0
    assert len(entries(copied)) == len(before) + new
    assert before.items() <= entries(copied).items()


def test_damaged_entries_are_named_and_made_again(cached, copied, train, tmp_path, caplog):
    whole = {path: path.read_bytes() for path in sorted(entries(copied))}
    one, two, three, four, five, other = list(whole)[:6]
    flipped = bytearray(whole[three])
    flipped[len(flipped) // 2] ^= 4
    damaged = {
        one: whole[one][:-7],
        two: b"",
        three: bytes(flipped),
        four: whole[other],
        five: b"\x80\x04K\x01." * 30,  # no safetensors
    }
    for path, content in damaged.items():
        path.write_bytes(content)
    assert train(tmp_path / "run", "--cache_latents", "--train_data_dir", copied) == 0
    warnings = [r.getMessage() for r in caplog.records if "damaged" in r.getMessage()]
    assert sorted(warning.partition(" is damaged")[0] for warning in warnings) == sorted(map(str, damaged))
    assert {p: p.read_bytes() for p in entries(copied)} == whole
    assert records(tmp_path / "run") == records(cached[1])


def test_an_entry_that_is_lost_or_damaged_meanwhile_stops_the_run_with_its_name(
    copied, train, tmp_path, monkeypatch, the_error
):
    training = Run.train

    def lose_and_train(run):
        for path in entries(copied):
            path.write_bytes(path.read_bytes()[:100])
        training(run)

    monkeypatch.setattr(Run, "train", lose_and_train)
    assert train(tmp_path / "run", "--cache_latents", "--train_data_dir", copied) == 1
    line = the_error()
    assert ".latents/" in line
    assert "is damaged" in line
    assert "start again" in line


def test_an_entry_that_the_networks_would_not_make_is_refused(copied, train, tmp_path, the_error):
    """As if another version of a library had written it: its name and checksum are right."""
    for path in entries(copied):
        LatentsCache(path.parent.parent, {}, "", "").write(path.stem, load_file(path)["value"] * 1.2)
    assert train(tmp_path / "run", "--cache_latents", "--train_data_dir", copied) == 1
    assert "is not what encoding the picture" in the_error()
    assert not (tmp_path / "run").exists()


def test_latents_that_are_not_finite_are_not_kept(data, tiny_pipeline, train, tmp_path, capfd):
    pipeline = shutil.copytree(tiny_pipeline, tmp_path / "pipeline")
    change_weight(pipeline / "vae" / "diffusion_pytorch_model.safetensors", "encoder.conv_in.weight", float("inf"))
    flags = ["--train_data_dir", data, "--pretrained_model_name_or_path", pipeline]
    assert train(tmp_path / "run", "--cache_latents", *flags) == 1
    assert "0.png is NaN or infinite when it is encoded" in capfd.readouterr().err
    assert not entries(data)


def test_an_unreadable_picture_is_one_line(data, train, tmp_path, capfd):
    (data / "3.png").write_bytes(b"no picture")
    assert train(tmp_path / "run", "--cache_latents", "--train_data_dir", data) == 1
    err = capfd.readouterr().err
    assert "3.png cannot be read as a picture" in err[err.index("mldm: ") :]
    assert not (tmp_path / "run").exists()


def test_interrupted_caching_goes_on(data, tiny_pipeline, tmp_path):
    """Killed in the middle of writing the eighth entry."""
    argv = command(tmp_path / "run", tiny_pipeline, data, "--cache_latents", "--random_flip")
    assert start(argv, 8, during=".latents") == -signal.SIGKILL
    first = entries(data)
    assert len(first) == 7
    assert not (tmp_path / "run").exists()
    assert start(argv) == 0
    assert len(entries(data)) == 5 * 2 + 4
    assert first.items() <= entries(data).items()
    assert all(load_file(path)["value"].isfinite().all() for path in entries(data))


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed_is_uninterrupted_and_as_without_a_cache(workers, data, train_lora, tiny_pipeline, tmp_path):
    """Flips and several captions a picture, which a resumed run draws again."""
    flags = ["--max_train_steps", 7, "--checkpointing_steps", 2, "--random_flip", "--center_crop"]
    flags += ["--dataloader_num_workers", workers, "--train_batch_size", 1]
    plain, killed = tmp_path / "plain", tmp_path / "killed"
    assert train_lora(plain, "--train_data_dir", data, *flags) == 0
    flags += ["--cache_latents", "--resume_from_checkpoint", "latest"]
    argv = command(killed, tiny_pipeline, data, *flags)
    assert start(argv, 3, trainer=LORA) == -signal.SIGKILL
    assert start(argv, trainer=LORA) == 0
    assert records(killed) == records(plain)
    assert same_weights(killed, plain)


def test_two_processes_share_the_work_and_the_cache(data, tiny_pipeline, tmp_path):
    flags = ["--train_batch_size", 1, "--max_train_steps", 3, "--random_flip"]
    statuses, outputs = launch(command(tmp_path / "plain", tiny_pipeline, data, *flags), tmp_path)
    assert statuses == [0, 0], outputs
    statuses, outputs = launch(command(tmp_path / "cached", tiny_pipeline, data, *flags, "--cache_latents"), tmp_path)
    assert statuses == [0, 0], outputs
    assert len(entries(data)) == 5 * 2 + 4
    assert records(tmp_path / "cached") == records(tmp_path / "plain")
    assert same_weights(tmp_path / "cached", tmp_path / "plain")


def test_validation_still_has_its_networks(data, train_lora, tmp_path):
    flags = ["--center_crop", "--train_data_dir", data, "--validation_prompt", "a person", "--max_train_steps", 3]
    flags += ["--num_validation_images", 1, "--train_batch_size", 1]
    assert train_lora(tmp_path / "plain", *flags) == 0
    assert train_lora(tmp_path / "cached", *flags, "--cache_latents") == 0
    for plain in (tmp_path / "plain" / "validation").iterdir():
        assert plain.read_bytes() == (tmp_path / "cached" / "validation" / plain.name).read_bytes()
    assert records(tmp_path / "cached") == records(tmp_path / "plain")


def test_where_the_cache_lies(tmp_path, monkeypatch):
    import datasets

    def folder(**given) -> Path:
        names = ("latents_cache_dir", "dataset_name", "train_data_dir", "cache_dir")
        return caching.cache_folder(SimpleNamespace(**(dict.fromkeys(names) | given)))

    (tmp_path / "people").mkdir()
    monkeypatch.chdir(tmp_path)
    assert folder(train_data_dir="people/") == tmp_path / "people.latents"
    assert folder(dataset_name=str(tmp_path / "people"), train_data_dir="x") == tmp_path / "people.latents"
    assert folder(dataset_name="somebody/people") == Path(datasets.config.HF_DATASETS_CACHE) / "mldm_latents"
    assert folder(dataset_name="somebody/people", cache_dir="hub") == Path("hub/mldm_latents")
    assert folder(train_data_dir="people", latents_cache_dir="fast") == Path("fast")
