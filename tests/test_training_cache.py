"""--cache_latents: the same training without an encoder, on entries that are never out of date nor half a file."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import PROCESSES, command
from PIL import Image
from safetensors.torch import load_file, save_file
from test_training_processes import launch
from test_training_resume import start

from mldm_plugin.data.latents_cache import LatentsCache
from mldm_plugin.decode.region import RegionDecode
from mldm_plugin.errors import MldmError
from mldm_plugin.training import caching, controlnet_flags, loop, lora_flags
from mldm_plugin.training.arguments import name_the_plugin

CONTROLNET, LORA = "diffusion_pytorch_model.safetensors", "pytorch_lora_weights.safetensors"
CAPTIONS = ["a person", "somebody", "a face"]


@pytest.fixture
def data(make_data, tmp_path):
    """Five pictures in a folder of their own, and so a cache of their own: beside it."""
    return make_data(tmp_path / "people", 5, captions=CAPTIONS)


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def entries(data: Path) -> dict[Path, int]:
    """The whole entries beside a data set, and when each was written."""
    return {p: p.stat().st_mtime_ns for p in data.with_name(f"{data.name}.latents").rglob("[!.]*.safetensors")}


def difference(a: Path, b: Path) -> float:
    """The relative difference of two weight files.

    Over all weights together: where a gradient is nothing but rounding, Adam makes whole steps of it.
    """
    one, other = load_file(a), load_file(b)
    assert one.keys() == other.keys()
    flat, flat_other = (torch.cat([weights[k].flatten() for k in one]) for weights in (one, other))
    return ((flat - flat_other).norm() / flat_other.norm()).item()


@pytest.fixture
def counted(monkeypatch):
    """How often the VAE encodes, the text encoder runs and a picture is decoded, while steps are made."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel

    from mldm_plugin.data import training_set
    from mldm_plugin.training import loop

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
    count(loop, "finish_step", "steps")
    train = loop.train

    def train_from_zero(run):
        calls.update(dict.fromkeys(calls, 0))
        train(run)

    monkeypatch.setattr(loop, "train", train_from_zero)
    return calls


def test_decoder_statistics_are_kept_for_windows_and_nothing_is_decoded_whole_while_training(
    data, train, tmp_path, monkeypatch
):
    """decode: region wants the group norms of each clean picture: once, not in every step."""
    preset = tmp_path / "faces.yaml"
    preset.write_text(
        "decode: region\nchecks: {picture: warn}\nlosses:\n  face: {weight: 0.5, max_timestep: null, weights: random}\n"
    )
    flags = ["--random_flip", "--max_train_steps", 3, "--preset", preset, "--train_data_dir", data, "--panel_steps", 0]
    measured, steps = [], []
    original, finish_step = RegionDecode.statistics, loop.finish_step
    monkeypatch.setattr(RegionDecode, "statistics", lambda self, z: measured.append(len(z)) or original(self, z))
    monkeypatch.setattr(
        loop, "finish_step", lambda *args, **kwargs: steps.append(len(measured)) or finish_step(*args, **kwargs)
    )
    assert train(tmp_path / "without", *flags) == 0
    assert len(set(steps)) == 3  # in every step
    steps.clear()
    assert train(tmp_path / "with", *flags, "--cache_latents") == 0
    assert len(set(steps)) == 1  # before the first one only
    before = entries(data)
    kept = [load_file(path)["value"] for path in before]
    own = [value for value in kept if value.ndim == 1]
    assert len(own) == 10  # five pictures and their mirror images, whose statistics differ
    assert len({value.sum().item() for value in own}) == 10
    assert all(value.dtype == torch.float32 for value in own)
    assert train(tmp_path / "again", *flags, "--cache_latents") == 0
    assert entries(data) == before


PLAIN = ["--random_flip", "--max_train_steps", 6]


@pytest.mark.parametrize("trainer", ["controlnet", "lora"])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_same_losses_and_weights_as_without(trainer, batch, data, train, train_lora, tmp_path):
    """To the bit where each step has one picture; a batch of two is rounded otherwise than its pictures alone."""
    run, weights, flags = {
        "controlnet": (train, CONTROLNET, ["--proportion_empty_prompts", 0.3]),
        "lora": (train_lora, LORA, ["--center_crop"]),
    }[trainer]
    flags = [*PLAIN, *flags, "--train_batch_size", batch, "--train_data_dir", data]
    assert run(tmp_path / "without", *flags) == 0
    assert run(tmp_path / "with", *flags, "--cache_latents") == 0
    losses = [[r["loss"] for r in records(tmp_path / name)] for name in ("with", "without")]
    apart = difference(tmp_path / "with" / weights, tmp_path / "without" / weights)
    assert len(set(losses[0])) == 6
    if batch == 1:
        assert losses[0] == losses[1]
        assert apart == 0
    else:
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert apart < 1e-5


def test_with_losses_in_bf16_and_without_hints(data, train, random_preset, tmp_path):
    flags = ["--preset", random_preset, "--train_data_dir", data, "--train_batch_size", 1, "--max_train_steps", 4]
    flags += ["--mixed_precision", "bf16", "--conditioning", "none", "--random_flip", "--panel_steps", 2]
    assert train(tmp_path / "plain", *flags) == 0
    assert train(tmp_path / "cached", *flags, "--cache_latents") == 0
    assert records(tmp_path / "cached") == records(tmp_path / "plain")
    assert difference(tmp_path / "cached" / CONTROLNET, tmp_path / "plain" / CONTROLNET) == 0
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


def test_a_second_run_reuses_everything(data, train, train_lora, tmp_path, capfd):
    assert train(tmp_path / "one", "--cache_latents", "--train_data_dir", data) == 0
    first = entries(data)
    assert len(first) == 5 + len(CAPTIONS) + 1  # the empty one
    assert train(tmp_path / "two", "--cache_latents", "--train_data_dir", data, "--seed", 9) == 0
    assert entries(data) == first
    assert "is damaged" not in capfd.readouterr().err
    flips = ["--center_crop", "--random_flip", "--image_interpolation_mode", "bilinear"]
    assert train_lora(tmp_path / "three", "--cache_latents", "--train_data_dir", data, *flips) == 0
    assert len(entries(data)) == len(first) + 5  # the mirror images; all else is the same as for the ControlNet
    assert first.items() <= entries(data).items()
    assert not list((tmp_path / "one").glob("*latents*"))


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
def test_what_an_entry_depends_on_makes_another(change, data, tiny_pipeline, train, tmp_path):
    pipeline = shutil.copytree(tiny_pipeline, tmp_path / "pipeline")
    flags = ["--cache_latents", "--train_data_dir", data, "--pretrained_model_name_or_path", pipeline]
    flags += ["--max_train_steps", 3]
    assert train(tmp_path / "before", *flags) == 0
    before = entries(data)
    more, new = change(data, pipeline)
    assert train(tmp_path / "after", *flags, *more) == 0
    assert len(entries(data)) == len(before) + new
    assert before.items() <= entries(data).items()
    assert train(tmp_path / "without", *flags[1:], *more) == 0
    cached, plain = ([r["loss"] for r in records(tmp_path / name)] for name in ("after", "without"))
    assert cached == pytest.approx(plain, rel=1e-2 if "bf16" in more else 1e-5)


@pytest.mark.parametrize("damage", ["truncated", "empty", "a flipped bit", "of another key", "not safetensors"])
def test_a_damaged_entry_is_named_and_made_again(damage, data, train, tmp_path, caplog):
    flags = ["--cache_latents", "--train_data_dir", data]
    assert train(tmp_path / "one", *flags) == 0
    whole = {path: path.read_bytes() for path in entries(data)}
    path, other = sorted(whole)[:2]
    content = bytearray(whole[path])
    content[len(content) // 2] ^= 4
    path.write_bytes(
        {
            "truncated": whole[path][:-7],
            "empty": b"",
            "a flipped bit": bytes(content),
            "of another key": whole[other],
            "not safetensors": b"\x80\x04K\x01." * 30,
        }[damage]
    )
    assert train(tmp_path / "two", *flags) == 0
    (warning,) = [r.getMessage() for r in caplog.records if "damaged" in r.getMessage()]
    assert f"{path} is damaged" in warning
    assert {p: p.read_bytes() for p in entries(data)} == whole
    assert records(tmp_path / "two") == records(tmp_path / "one")


def test_an_entry_that_is_lost_or_damaged_meanwhile_stops_the_run_with_its_name(
    data, train, tmp_path, monkeypatch, capfd
):
    from mldm_plugin.training import run

    def cache_and_lose(*args, **kwargs):
        caching.cache_latents(*args, **kwargs)
        for path in entries(data):
            path.write_bytes(path.read_bytes()[:100])

    monkeypatch.setattr(run, "cache_latents", cache_and_lose)
    assert train(tmp_path / "run", "--cache_latents", "--train_data_dir", data) == 1
    (line,) = [x for x in capfd.readouterr().err.splitlines() if x.startswith("error: ")]
    assert ".latents/" in line
    assert "is damaged" in line
    assert "start again" in line


def test_an_entry_that_the_networks_would_not_make_is_refused(data, train, tmp_path, capfd):
    """As if another version of a library had written it: its name and checksum are right."""
    flags = ["--cache_latents", "--train_data_dir", data]
    assert train(tmp_path / "one", *flags) == 0
    for path in entries(data):
        LatentsCache(path.parent.parent, {}, "", "").write(path.stem, load_file(path)["value"] * 1.2)
    assert train(tmp_path / "two", *flags) == 1
    assert "is not what encoding the picture" in capfd.readouterr().err
    assert not (tmp_path / "two").exists()


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
    assert "3.png cannot be read as a picture" in err[err.index("error: ") :]
    assert not (tmp_path / "run").exists()


def cache_and_die(trainer: str, argv: list[str], after: int) -> None:
    """Train in this process; SIGKILL it in the middle of writing an entry, when `after` are written."""
    torch.set_num_threads(1)
    replace, written = Path.replace, []

    def replace_or_die(self: Path, target: Path) -> Path:
        if self.suffix == ".partial" and ".latents" in str(self):
            if len(written) == after:
                os.kill(os.getpid(), signal.SIGKILL)
            written.append(target)
        return replace(self, target)

    Path.replace = replace_or_die
    sys.exit(import_module(f"mldm_plugin.training.{trainer}").main(argv))


def test_interrupted_caching_goes_on(data, tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    argv = command(tmp_path / "run", tiny_pipeline, data, "--cache_latents", "--random_flip")
    process = PROCESSES.Process(target=cache_and_die, args=("controlnet", argv, 7))
    process.start()
    process.join(200)
    assert process.exitcode == -signal.SIGKILL
    first = entries(data)
    assert len(first) == 7
    assert not (tmp_path / "run").exists()
    assert start(argv) == 0
    assert len(entries(data)) == 5 * 2 + 4
    assert first.items() <= entries(data).items()
    assert all(load_file(path)["value"].isfinite().all() for path in entries(data))


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed_is_uninterrupted_and_as_without_a_cache(
    workers, data, tiny_pipeline, tmp_path, monkeypatch
):
    """Flips and several captions a picture, which a resumed run draws again."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    flags = ["--max_train_steps", 7, "--checkpointing_steps", 2, "--random_flip", "--center_crop"]
    flags += ["--dataloader_num_workers", workers, "--train_batch_size", 1]
    plain, whole, killed = (tmp_path / name for name in ("plain", "whole", "killed"))
    assert start(command(plain, tiny_pipeline, data, *flags), trainer="text_to_image_lora") == 0
    flags += ["--cache_latents"]
    assert start(command(whole, tiny_pipeline, data, *flags), trainer="text_to_image_lora") == 0
    argv = command(killed, tiny_pipeline, data, *flags, "--resume_from_checkpoint", "latest")
    for step in (3, 5):
        assert start(argv, step, trainer="text_to_image_lora") == -signal.SIGKILL
    assert start(argv, trainer="text_to_image_lora") == 0
    assert records(killed) == records(whole) == records(plain)
    assert difference(killed / LORA, whole / LORA) == difference(killed / LORA, plain / LORA) == 0


def test_two_processes_share_the_work_and_the_cache(data, tiny_pipeline, tmp_path):
    flags = ["--train_batch_size", 1, "--max_train_steps", 3, "--random_flip"]
    statuses, outputs = launch(command(tmp_path / "plain", tiny_pipeline, data, *flags), tmp_path)
    assert statuses == [0, 0], outputs
    statuses, outputs = launch(command(tmp_path / "cached", tiny_pipeline, data, *flags, "--cache_latents"), tmp_path)
    assert statuses == [0, 0], outputs
    assert len(entries(data)) == 5 * 2 + 4
    assert records(tmp_path / "cached") == records(tmp_path / "plain")
    assert difference(tmp_path / "cached" / CONTROLNET, tmp_path / "plain" / CONTROLNET) == 0


def test_validation_still_has_its_networks(data, train_lora, tmp_path):
    flags = ["--center_crop", "--train_data_dir", data, "--validation_prompt", "a person", "--max_train_steps", 3]
    flags += ["--num_validation_images", 1, "--train_batch_size", 1]
    assert train_lora(tmp_path / "plain", *flags) == 0
    assert train_lora(tmp_path / "cached", *flags, "--cache_latents") == 0
    for plain in (tmp_path / "plain" / "validation").iterdir():
        assert plain.read_bytes() == (tmp_path / "cached" / "validation" / plain.name).read_bytes()
    assert records(tmp_path / "cached") == records(tmp_path / "plain")


NEEDED = ["--pretrained_model_name_or_path", "sd", "--train_data_dir", "data"]


@pytest.mark.parametrize(
    ("table", "argv", "words"),
    [
        (lora_flags.FLAGS, ["--cache_latents"], "drawn at random in each pass: add --center_crop"),
        (controlnet_flags.FLAGS, ["--cache_latents", "--random_crop"], "leave out --random_crop"),
        (controlnet_flags.FLAGS, ["--cache_latents", "--color_jitter", "1", "0", "0", "0"], "leave out --color_jitter"),
        (controlnet_flags.FLAGS, ["--latents_cache_dir", "x"], "--latents_cache_dir is for --cache_latents"),
        (lora_flags.FLAGS, ["--cache_latents", "--center_crop", "--resolution", "100"], "multiple of 8"),
    ],
)
def test_what_cannot_be_cached_is_refused(table, argv, words):
    with pytest.raises(MldmError, match=words):
        table.resolve(name_the_plugin(table.parse([*NEEDED, *argv])))


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
