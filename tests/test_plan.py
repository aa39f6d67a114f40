"""mldm plan: the memory of a step, from shapes alone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from mldm_plugin.cli.plan import plan
from mldm_plugin.errors import MldmError
from mldm_plugin.planning import budget
from mldm_plugin.planning.families import FAMILIES, Family, read_family
from mldm_plugin.planning.pixels import PixelMemory
from mldm_plugin.planning.shadow import building, compute_like_cuda_autocast
from mldm_plugin.planning.step import StepMemory, TrainedNetworks, Weights
from mldm_plugin.planning.tensor_memory import TensorMemory

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


@pytest.mark.parametrize("kind", ["controlnet", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_data_as_with(kind, checkpointing, dtype):
    """The same step on tensors that have data, really computed on the CPU."""
    shadow, real = (
        TrainedNetworks(SMALL, kind, dtype, checkpointing=checkpointing, device=device).measure(2, 128)
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


MEASURED = budget.Measured(
    weights=Weights(frozen=1_000_000_000, trained=100_000_000),
    dtype=torch.bfloat16,
    trained_bytes=4,
    steps={
        False: (StepMemory(2 * 10**9, 2 * 10**9, 3 * 10**9), StepMemory(4 * 10**9, 4 * 10**9, 6 * 10**9)),
        True: (StepMemory(10**9, 10**9, 10**9), StepMemory(2 * 10**9, 2 * 10**9, 2 * 10**9)),
    },
    encoder_weights=50_000_000,
    encoder=(5 * 10**9, 10 * 10**9),
    text_weights=150_000_000,
    pixels=PixelMemory(200_000_000, {"full": 8 * 10**9, "checkpointed": 3 * 10**9, "region": 2 * 10**9}),
)


def by_hand(resident, moment):
    return (resident + moment) * 1.05 + 1.0


def test_a_peak_worked_out_by_hand():
    """2 GB frozen, 1.6 GB for what is trained, 0.2 GB for the losses' networks; on top the worst moment."""
    full = MEASURED.peak(budget.Setting(1, False, True, "full"))
    assert full.gb == pytest.approx(by_hand(3.8, 2 + 8))
    assert full.without_pixels == pytest.approx(by_hand(3.8, 3))
    uncached = MEASURED.peak(budget.Setting(2, True, False, "checkpointed"))
    assert uncached.gb == pytest.approx(by_hand(4.2, 10))  # the encoder, at twice a picture
    region = MEASURED.peak(budget.Setting(4, False, True, "region"))
    assert region.gb == pytest.approx(by_hand(3.8, 12))  # the backward pass
    eight_bit = MEASURED.peak(budget.Setting(1, True, True, "region"), eight_bit=True)
    assert eight_bit.gb == pytest.approx(by_hand(3.2, 1 + 2))


def test_decoding_all_at_once_grows_with_the_number_of_gated_images():
    setting = budget.Setting(4, True, True, "full")
    peaks = [MEASURED.peak(setting, pictures=n).gb for n in (1, 2, 4)]
    assert peaks == pytest.approx([by_hand(3.8, 4 + 8 * n) for n in (1, 2, 4)])


def test_the_recommendation_is_the_largest_batch_and_then_the_fastest():
    peaks = [MEASURED.peak(s) for s in budget.settings((1, 2))]
    best = budget.recommend(peaks, 16)
    assert best.setting == budget.Setting(2, False, True, "checkpointed")
    assert best.gb <= 16
    assert budget.recommend(peaks, 30).setting == budget.Setting(2, False, True, "full")
    assert budget.recommend(peaks, 5) is None
    left = MEASURED.pixel_budget(best.setting, 16)
    assert left == pytest.approx(15 / 1.05 - 3.8 - 4)


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
    result = CliRunner().invoke(plan, [*flags, "--batch", "1", "--train", "lora", "--json"], catch_exceptions=False)
    found = json.loads(result.output)
    peaks = {(s["decode"], s["gradient_checkpointing"], s["cache_latents"]): s["gb"] for s in found["settings"]}
    assert len(peaks) == 12
    assert peaks["checkpointed", True, True] <= peaks["full", True, True] <= peaks["full", False, True]
    assert found["command"].startswith("accelerate launch train_text_to_image_lora.py")


@pytest.mark.parametrize(
    ("vram", "command"),
    [
        (
            "16",
            "accelerate launch train_controlnet.py --loss-plugin mldm --pixel_memory_gb 6.4 --resolution 512 "
            "--train_batch_size 2 --cache_latents --mixed_precision bf16 …",
        ),
        ("5", "Nothing fits into 5 GB: lower --resolution, or --use_8bit_adam."),
    ],
)
def test_the_table_and_the_line_under_it(vram, command, monkeypatch):
    monkeypatch.setattr(budget.Measured, "of", lambda *_, **__: MEASURED)
    result = CliRunner().invoke(plan, ["--vram", vram, "--batch", "1", "--batch", "2"], catch_exceptions=False)
    lines = result.output.splitlines()
    assert lines[-1] == command
    assert len(lines) == 2 + 12 + 3 + 2  # head, settings, what is assumed, the command
    expected = [f"{MEASURED.peak(budget.Setting(b, False, True, 'full')).gb:.1f}" for b in (1, 2)]
    shown = next(line for line in lines if line.split()[:3] == ["whole", "no", "yes"]).split()[3:]
    assert [cell.rstrip("*") for cell in shown] == expected
    assert [cell.endswith("*") for cell in shown] == [float(gb) > float(vram) for gb in expected]


def test_the_published_shapes_have_their_known_numbers_of_weights():
    """SD 1.5: 859.5 million in the U-Net, 361.3 in a ControlNet; SDXL: 2567.5 in the U-Net."""
    weights = TrainedNetworks(FAMILIES["sd15"], "controlnet", torch.bfloat16).weights
    assert weights == Weights(859_520_964, 361_279_120)
    assert TrainedNetworks(FAMILIES["sdxl"], "lora", torch.bfloat16).weights.frozen == 2_567_463_684
    assert FAMILIES["sdxl"].text_parameters == 123_060_480 + 694_659_840


def test_errors(tmp_path):
    with pytest.raises(MldmError, match=r"config.json cannot be read .*diffusers' format"):
        read_family(tmp_path)
    with pytest.raises(MldmError, match="--resolution is 100, expected a multiple of 64"):
        budget.Measured.of(SMALL, "lora", torch.float32, 100)


def test_without_diffusers_it_says_what_to_install():
    program = (
        "import sys; sys.modules['diffusers'] = None\n"
        "from mldm_plugin.cli.plan import plan\n"
        "from mldm_plugin.errors import MldmError\n"
        "try:\n    plan.main(['--vram', '24'], standalone_mode=False)\n"
        "except MldmError as error:\n    assert \"pip install 'mldm-plugin[train]'\" in str(error)\n"
        "else:\n    raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
