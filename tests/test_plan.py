"""mldm plan: the memory of a step, from shapes alone."""

from __future__ import annotations

import itertools
import json
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from diffusers import DDPMScheduler
from torch.utils.flop_counter import flop_registry

from mldm_plugin.cli import main
from mldm_plugin.engine.schedule import NoiseSchedule
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.errors import MldmError
from mldm_plugin.planning import budget
from mldm_plugin.planning.families import FAMILIES, Family, read_family
from mldm_plugin.planning.meta import building, compute_like_cuda_autocast, flash_attention
from mldm_plugin.planning.operations import counting
from mldm_plugin.planning.step import StepMemory, TrainedNetworks
from mldm_plugin.planning.tensor_memory import TensorMemory
from mldm_plugin.plugins import load_plugins
from mldm_plugin.preset import load_preset
from mldm_plugin.training.command_line import TRAINERS, parse, resolve

CPU = torch.device("cpu")
SMALL = Family(
    "small",
    64,
    {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    },
    {
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": 4,
        "norm_num_groups": 4,
    },
    ({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1},),
)


@pytest.mark.parametrize(
    ("kind", "checkpointing", "dtype", "answers"),
    [
        *itertools.product(["controlnet", "lora"], [False, True], [torch.float32, torch.bfloat16], [1]),
        ("controlnet", False, torch.float32, 3),
        ("lora", True, torch.bfloat16, 3),
    ],
)
def test_without_data_as_with(kind, checkpointing, dtype, answers):
    """The same step on tensors that have data, really computed on the CPU."""
    shadow, real = (
        TrainedNetworks(SMALL, kind, dtype, checkpointing=checkpointing, device=device).measure(2, 128, answers)
        for device in (torch.device("meta"), CPU)
    )
    for name, value in vars(shadow).items():
        assert value == pytest.approx(getattr(real, name), rel=0.02), name


@pytest.mark.parametrize("kind", ["controlnet", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_is_linear_in_the_batch(kind, checkpointing):
    networks = TrainedNetworks(SMALL, kind, torch.bfloat16, checkpointing=checkpointing)
    one, two, four = (networks.measure(n, 128) for n in (1, 2, 4))
    assert one.extrapolated(two, 4) == four


def engine_step(networks, inputs, answers):
    """What the engine makes of K answers: the loss on its clean estimate and the plain one, as in training."""
    latents, *others = inputs
    noise, timesteps = torch.randn_like(latents), torch.tensor([60, 90])
    ask = lambda z, t, rows: networks.predict(z, *others)  # noqa: E731
    pred = ask(noise, timesteps, [0, 1])
    of = {"latents": latents, "noise": noise, "noisy_latents": noise, "timesteps": timesteps, "target": noise}
    schedule = NoiseSchedule.from_scheduler(DDPMScheduler(beta_schedule="scaled_linear"))
    schedule.answers = answers
    estimate = schedule.pred_latents(DiffusionStep(**of, model_pred=pred, predict=ask if answers > 1 else None))
    return pred.float().square().mean() + estimate.square().mean()


@pytest.mark.parametrize(("kind", "checkpointing"), [("controlnet", False), ("lora", True)])
def test_further_answers_take_what_the_engine_takes(kind, checkpointing):
    """Memory, and operations counted as it runs, of the engine's own DDIM steps, which this module only imitates."""
    networks = TrainedNetworks(SMALL, kind, torch.float32, checkpointing=checkpointing, device=CPU)
    inputs = networks.inputs(2, 128)
    for answers in (1, 3):
        planned = networks.measure(2, 128, answers)
        with flash_attention(), TensorMemory() as memory:
            loss = engine_step(networks, inputs, answers)
            kept = memory.live
            memory.peak = kept
            loss.backward()
        del loss
        with flash_attention(), counting() as operations:  # would hold on to what is recomputed
            engine_step(networks, inputs, answers).backward()
        assert kept == pytest.approx(planned.kept, rel=0.03)
        assert memory.peak == pytest.approx(planned.backward, rel=0.03)
        counted = operations.get_total_flops() / 1e12 / 2  # of a picture
        assert counted == pytest.approx(networks.tflop(128, answers), rel=1e-6)


def test_attention_is_counted_by_torches_that_leave_it_out(monkeypatch):
    aten = torch.ops.aten
    for operation in (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    ):
        monkeypatch.delitem(flop_registry, getattr(aten, operation), raising=False)
    query, key, value = (torch.randn(1, 2, 8, 4, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 8 * 8 * 4
    with flash_attention(), counting() as operations:
        answer = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        assert operations.get_total_flops() == 2 * product
        answer.sum().backward()
    assert operations.get_total_flops() == (2 + 5) * product  # the map again, and two products for each of the two


def test_memory_does_not_grow_with_answers_and_operations_do():
    networks = TrainedNetworks(SMALL, "lora", torch.float32)
    one, two, three = (networks.measure(1, 128, k) for k in (1, 2, 3))
    assert 1.2 * one.backward < two.backward < 3 * one.backward
    # torch holds a weight's gradients of all answers but .grad together until the last: once more the trained weights
    assert two.backward <= three.backward <= 1.02 * two.backward + 4 * networks.trained_weights
    assert three.kept == pytest.approx(one.kept, rel=0.01)
    first, second, third = (networks.tflop(128, k) for k in (1, 2, 3))
    each = second - first
    assert third - second == pytest.approx(each, rel=1e-6)
    inputs = networks.inputs(1, 128)
    with counting() as operations:
        networks.predict(*inputs)
    forward = operations.get_total_flops() / 1e12
    # a forward pass, another one, and a backward pass to the question, which is at least as much as one
    assert 3 * forward < each < 5 * forward


def test_checkpointing_keeps_less():
    less, more = (TrainedNetworks(SMALL, "lora", torch.float32, checkpointing=c).measure(2, 128) for c in (True, False))
    assert less.kept < more.kept / 2


def test_it_converts_as_cuda_autocast_does():
    """The real `torch.autocast("cuda")`, on tensors without data that claim to be on a GPU, keeps the same."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    def build():
        layers = [torch.nn.Conv2d(4, 8, 3, padding=1), torch.nn.GroupNorm(4, 8), torch.nn.SiLU()]
        return torch.nn.Sequential(*layers, torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.LayerNorm([8, 16, 16]))

    with building(torch.float32):
        network, x = build(), torch.zeros(2, 4, 16, 16)
    compute_like_cuda_autocast(network, torch.bfloat16)
    with TensorMemory() as own:
        out = network(x)
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    with FakeTensorMode():
        with torch.device("cuda"):
            network, x = build(), torch.zeros(2, 4, 16, 16)
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            with TensorMemory() as theirs:
                expected = network(x)
        finally:
            torch.set_autocast_enabled("cuda", before[0])
            torch.set_autocast_dtype("cuda", before[1])
            torch.clear_autocast_cache()
    assert out.dtype == expected.dtype == torch.float32
    assert own.live == theirs.live


FOOTPRINT = budget.Footprint(
    resident=38 * 10**8,
    uncached=4 * 10**8,
    optimizer=4 * 10**8,
    steps={
        False: (StepMemory(2 * 10**9, 2 * 10**9, 3 * 10**9), StepMemory(4 * 10**9, 4 * 10**9, 6 * 10**9)),
        True: (StepMemory(10**9, 10**9, 10**9), StepMemory(2 * 10**9, 2 * 10**9, 2 * 10**9)),
    },
    gated={
        False: (StepMemory(2 * 10**9, 2 * 10**9, 3 * 10**9), StepMemory(4 * 10**9, 4 * 10**9, 6 * 10**9)),
        True: (StepMemory(10**9, 10**9, 10**9), StepMemory(2 * 10**9, 2 * 10**9, 2 * 10**9)),
    },
    encoder=(5 * 10**9, 10 * 10**9),
    pictures={"whole": (8 * 10**9, 1), "checkpointed": (3 * 10**9, 2)},
    tflop=(2.0, 5.0),
)


@pytest.mark.parametrize(
    ("setting", "resident", "moment"),
    [
        (budget.Setting(1, False, True, "whole"), 3.8, 2 + 8),
        (budget.Setting(1, True, True, "checkpointed"), 3.8, 1 + 3),
        (budget.Setting(2, True, True, "checkpointed"), 3.8, 2 + 2 * 3),
        (budget.Setting(4, True, True, "checkpointed"), 3.8, 4 + 2 * 3),  # no more than two together
        (budget.Setting(2, True, False, "checkpointed"), 4.2, 10),  # the encoder, at twice a picture
        (budget.Setting(8, False, True, "checkpointed"), 3.8, 24),  # the backward pass
    ],
)
def test_a_peak_worked_out_by_hand(setting, resident, moment):
    assert FOOTPRINT.peak(setting).gb == pytest.approx((resident + moment) * 1.05 + 1.0)


def test_a_peak_of_further_answers_worked_out_by_hand():
    """They are computed in the forward pass and again in the backward pass, only where a picture is gated."""
    further = (StepMemory(2 * 10**9, 3 * 10**9, 13 * 10**9), StepMemory(4 * 10**9, 6 * 10**9, 22 * 10**9))
    footprint = replace(FOOTPRINT, gated={False: further, True: further})
    for batch, backward in ((1, 13), (2, 22), (3, 31)):
        peak = footprint.peak(budget.Setting(batch, False, True, "whole"))
        assert peak.gb == pytest.approx((3.8 + backward) * 1.05 + 1.0)
        assert peak.without_pixels == pytest.approx((3.8 + 3 * batch) * 1.05 + 1.0)
    forward = (StepMemory(2 * 10**9, 11 * 10**9, 3 * 10**9),) * 2
    peak = replace(FOOTPRINT, gated={False: forward, True: forward}).peak(budget.Setting(1, False, True, "whole"))
    assert peak.gb == pytest.approx((3.8 + 11) * 1.05 + 1.0)


def test_without_a_gated_image_it_takes_less():
    peak = FOOTPRINT.peak(budget.Setting(1, False, True, "whole"))
    assert peak.without_pixels == pytest.approx((3.8 + 3) * 1.05 + 1.0)


def test_the_recommendation_is_the_largest_batch_and_then_the_fastest():
    peaks = [FOOTPRINT.peak(s) for s in FOOTPRINT.settings((1, 2))]
    assert budget.recommend(peaks, 17).setting == budget.Setting(2, False, True, "checkpointed")
    assert budget.recommend(peaks, 30).setting == budget.Setting(2, False, True, "whole")
    assert budget.recommend(peaks, 5) is None
    assert budget.recommend(peaks, 30, 1).setting == budget.Setting(1, False, True, "whole")


class KnownPictures:
    """Stands in for `PictureMemory`, whose networks take seconds."""

    weights = 7

    def __init__(self, family, dtype, resolution):
        assert (family, dtype, resolution) == (SMALL, torch.bfloat16, 64)

    def peaks(self):
        return {"whole": 3, "checkpointed": 2}


def test_what_is_resident_and_how_many_pictures_are_decoded_together(monkeypatch):
    """Of 64² pictures 64 have the pixels of one of 512²."""
    monkeypatch.setattr(budget, "PictureMemory", KnownPictures)
    measured = budget.measure(SMALL, "lora", torch.bfloat16, 64, eight_bit=True)
    networks = TrainedNetworks(SMALL, "lora", torch.bfloat16, checkpointing=False)
    assert measured.resident == 2 * networks.frozen_weights + (2 + 2 + 2) * networks.trained_weights + 7
    assert measured.optimizer == 0
    assert list(measured.pictures) == list(budget.DECODES)
    assert list(measured.pictures.values()) == [(3, 64), (3, 1), (2, 64), (2, 1)]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """The folder of a pipeline, of which only the configurations are there."""
    folder = tmp_path_factory.mktemp("pipeline")
    for part, config in (("unet", SMALL.unet), ("vae", SMALL.vae), ("text_encoder", SMALL.text_encoders[0])):
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps({"_class_name": "x", **config}))
    return folder


def test_the_whole_command(pipeline):
    flags = ["--vram", "8", "--pretrained_model_name_or_path", str(pipeline), "--resolution", "64"]
    result = CliRunner().invoke(
        main, ["plan", *flags, "--batch", "8", "--train", "lora", "--json"], catch_exceptions=False
    )
    found = json.loads(result.stdout)
    assert result.stderr.splitlines() == [
        "measuring the network …",
        "measuring the network, checkpointed …",
        "measuring the encoder …",
        "measuring the decoder and the losses …",
    ]
    peaks = {(s["decode"], s["gradient_checkpointing"], s["cache_latents"]): s["gb"] for s in found["settings"]}
    assert len(peaks) == 16
    assert peaks["checkpointed", True, True] <= peaks["whole", True, True] <= peaks["whole", False, True]
    assert peaks["whole, one at a time", True, True] < peaks["whole", True, True]
    assert f"--pretrained_model_name_or_path {pipeline}" in found["command"]
    flags = understood(found["command"])
    assert (flags.rank, flags.train_batch_size, flags.resolution, flags.learning_rate) == (4, 8, 64, 1e-4)


def understood(command):
    """The flags as the trainer that the command names reads them."""
    words = shlex.split(command)
    [kind] = [trainer for trainer in TRAINERS if trainer.script in words]
    given = parse(kind, words[words.index(kind.script) + 1 :])
    return resolve(kind, given, load_preset(given["preset"], given.get("set", ())).training)


def planned(monkeypatch, *flags):
    monkeypatch.setattr(budget, "measure", lambda *_, **__: FOOTPRINT)
    return CliRunner().invoke(main, ["plan", *flags], catch_exceptions=False)


@pytest.mark.parametrize(("estimate", "answers"), [(None, 1), ("one_step", 1), ("direct-40", 1), ("ddim-3", 3)])
def test_what_further_answers_cost_is_told(estimate, answers, monkeypatch):
    asked = []
    monkeypatch.setattr(budget, "measure", lambda *_, **options: asked.append(options["answers"]) or FOOTPRINT)
    flags = ["--vram", "40", "--batch", "1", *([] if estimate is None else ["--estimate", estimate])]
    result = CliRunner().invoke(main, ["plan", *flags], catch_exceptions=False)
    command = result.stdout.splitlines()[-1]
    assert asked == [answers]
    assert (f"--set estimate={estimate} " in command) == (estimate is not None)
    understood(command)
    told = "estimate: ddim-3. Peaks are those of a step whose every picture is gated." in result.stdout
    assert told == (answers > 1)
    found = json.loads(CliRunner().invoke(main, ["plan", *flags, "--json"], catch_exceptions=False).stdout)
    if answers == 1:
        assert found["further_answers"] is None
    else:  # T = 100: a picture is gated in 101 of 1000 steps, and then takes 5 more beside 2
        assert "take 5 TFLOP for a gated\npicture, beside the 2 of its step" in result.stdout
        assert "With the preset's T = 100 that is 25% more\noperations" in result.stdout
        assert found["further_answers"]["mean"] == pytest.approx(0.101 * 5 / 2)


def test_an_estimate_that_there_is_not_is_told_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(budget, "measure", None)
    runner = CliRunner()
    unknown = runner.invoke(main, ["plan", "--vram", "24", "--estimate", "ddim-9"], catch_exceptions=False)
    assert unknown.exit_code == 1
    assert "ddim-K with K answers" in unknown.stderr
    attached = runner.invoke(main, ["plan", "--vram", "24", "--family", "sdxl", "--estimate", "ddim-2"])
    assert attached.exit_code == 1
    assert "train_controlnet_sdxl.py, whose network cannot be asked again" in attached.stderr


@pytest.mark.parametrize("vram", ["17", "5"])
def test_the_table(vram, monkeypatch):
    result = planned(monkeypatch, "--vram", vram, "--batch", "1", "--batch", "2")
    lines = result.stdout.splitlines()
    assert len(lines) == 2 + 8 + 5 + (3 if vram == "17" else 0)  # head, settings, what is assumed, places, command
    expected = [f"{FOOTPRINT.peak(budget.Setting(b, False, True, 'whole')).gb:.1f}" for b in (1, 2)]
    shown = next(line for line in lines if line.split()[:3] == ["whole", "no", "yes"]).split()[3:]
    assert [cell.rstrip("*") for cell in shown] == expected
    assert [cell.endswith("*") for cell in shown] == [float(gb) > float(vram) for gb in expected]


def test_losses_that_are_not_counted_are_named(monkeypatch):
    output = planned(monkeypatch, "--vram", "17", "--batch", "1").stdout
    (line,) = [
        line for line in output.splitlines() if line.startswith("Counted are the losses masked_lpips and face; ")
    ]
    named = line.partition("add them: ")[2]
    assert named.endswith(", those of your own.")
    assert {*named.split(", ")[:-1], "masked_lpips", "face"} == set(load_plugins().losses.entries)
    assert "latent_perceptual" in named


def test_the_command_can_be_copied(monkeypatch):
    result = planned(monkeypatch, "--vram", "17", "--batch", "1", "--batch", "2")
    *_, places, _, command = result.stdout.splitlines()
    assert result.exit_code == 0
    assert "DATA_DIR is a data set with masks, face boxes and hints" in places
    assert command == (
        "accelerate launch train_controlnet.py --loss-plugin mldm --preset controlnet --set decode_checkpointing=true "
        "--pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 --train_data_dir DATA_DIR "
        "--output_dir OUTPUT_DIR --learning_rate 1e-05 --resolution 512 --train_batch_size 2 --cache_latents "
        "--mixed_precision bf16"
    )
    assert understood(command).train_batch_size == 2


@pytest.mark.parametrize(("kind", "batch"), [("controlnet", 4), ("lora", 1)])
def test_the_presets_batch_is_recommended_unless_others_are_asked_for(kind, batch, monkeypatch):
    command = planned(monkeypatch, "--vram", "80", "--train", kind).stdout.splitlines()[-1]
    flags = understood(command)
    assert flags.train_batch_size == batch
    assert flags.cache_latents
    asked = planned(monkeypatch, "--vram", "80", "--train", kind, "--batch", "2", "--batch", "8")
    assert understood(asked.stdout.splitlines()[-1]).train_batch_size == 8


def test_what_a_preset_says_otherwise_is_set(monkeypatch):
    """lora-sdxl checkpoints the decoder and the U-Net; where there is room, the command does neither."""
    command = planned(monkeypatch, "--vram", "80", "--family", "sdxl", "--train", "lora").stdout.splitlines()[-1]
    assert command.startswith("accelerate launch -m mldm_plugin SCRIPTS/train_text_to_image_lora_sdxl.py ")
    assert "--cache_latents" not in command
    sets = [word for before, word in itertools.pairwise(shlex.split(command)) if before == "--set"]
    preset = load_preset("lora-sdxl", sets)
    assert not preset.decode_checkpointing
    assert not preset.training["train_text_to_image_lora_sdxl"]["gradient_checkpointing"]


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_nothing_fits(more, monkeypatch):
    result = planned(monkeypatch, "--vram", "5", *more)
    assert result.exit_code == 1
    assert result.stderr.startswith("mldm: nothing fits into 5 GB; batch 1 takes ")
    least = FOOTPRINT.peak(budget.Setting(1, True, True, "checkpointed")).gb
    assert f"takes {least:.1f} GB at least" in result.stderr
    assert "lower --resolution, 512 now, --use_8bit_adam, --train lora." in result.stderr
    if more:
        assert json.loads(result.stdout)["command"] is None
    asked = planned(monkeypatch, "--vram", "5", "--estimate", "ddim-2", *more)
    assert "--train lora, --estimate one_step." in asked.stderr


def test_the_published_shapes_have_their_known_numbers_of_weights():
    """SD 1.5: 859.5 million in the U-Net, 361.3 in a ControlNet; SDXL: 2567.5 in the U-Net."""
    networks = TrainedNetworks(FAMILIES["sd15"], "controlnet", torch.bfloat16)
    assert (networks.frozen_weights, networks.trained_weights) == (859_520_964, 361_279_120)
    assert TrainedNetworks(FAMILIES["sdxl"], "lora", torch.bfloat16).frozen_weights == 2_567_463_684
    assert FAMILIES["sdxl"].text_parameters == 123_060_480 + 694_659_840


def test_errors(tmp_path):
    with pytest.raises(MldmError, match=r"config.json cannot be read .*diffusers' format"):
        read_family(tmp_path)
    with pytest.raises(MldmError, match="--resolution is 100, expected a multiple of 64"):
        budget.measure(SMALL, "lora", torch.float32, 100)


def test_without_diffusers_it_says_what_to_install():
    program = (
        "import sys; sys.modules['diffusers'] = None\n"
        "from mldm_plugin.cli.plan import plan\n"
        "from mldm_plugin.errors import MldmError\n"
        "try:\n    plan.main(['--vram', '24'], standalone_mode=False)\n"
        'except MldmError as error:\n    assert "pip install \'diffusers>=" in str(error)\n'
        "else:\n    raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
