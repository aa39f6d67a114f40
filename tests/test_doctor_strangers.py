"""`mldm doctor FILE`: files of strangers, odd or hostile, have a verdict or a line, and never a traceback."""

import json

import pytest
import torch
from doctoring import doctor
from safetensors.torch import save_file

from mldm_plugin.doctor.drawing import block_of
from mldm_plugin.doctor.lora import read_lora
from mldm_plugin.evaluation.models import LORA
from mldm_plugin.project.export import METADATA


def write_lora(file, down, up, alpha=None, layer="unet.mid_block.to_q", about=None):
    """A LoRA of one layer, in diffusers' names, and its α if it has one."""
    tensors = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    save_file(tensors | ({} if alpha is None else {f"{layer}.alpha": alpha}), file, about)
    return file


@pytest.mark.parametrize("pattern", ["(a+)+b", "(", ".*to_q", ""])
def test_a_strangers_patterns_are_not_run(tmp_path, pattern):
    told = {METADATA: json.dumps({"unet.lora_alpha": 4, "unet.alpha_pattern": {pattern: 2}})}
    file = write_lora(tmp_path / LORA, torch.ones(2, 3), torch.ones(3, 2), layer="unet." + "a" * 40, about=told)
    assert read_lora(file, None).unscaled == ["unet." + "a" * 40]
    status, output = doctor(file)
    assert status == 0
    assert output.startswith("The LoRA could not be measured. Nothing is wrong, and ")
    assert "worth a look: Not measured: 1 layer whose alpha the file does not tell" in output
    assert "worth a look: No layer could be measured: whether the LoRA does anything is not known." in output


@pytest.mark.parametrize(
    ("pattern", "times"),
    [("to_q", 3), ("block.to_q", 3), ("^mid.block.to_q", 3), ("o_q", 1), ("^to_q", 1), ("midXblock.to_q", 1)],
)
def test_a_pattern_names_a_layer_or_the_end_of_its_name(tmp_path, pattern, times):
    about = {METADATA: json.dumps({"unet.lora_alpha": 2, "unet.alpha_pattern": {pattern: 6}})}
    pair = torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    (layer,) = read_lora(write_lora(tmp_path / LORA, *pair, layer="unet.mid.block.to_q", about=about), None).layers
    assert layer.moved == pytest.approx(12 * times)


ONES = torch.ones(2, 3), torch.ones(3, 2)


@pytest.mark.parametrize(
    ("tensors", "told", "verdict"),
    [
        ((torch.ones(0, 3), torch.ones(3, 0)), {}, "could not be measured"),
        ((torch.tensor(1.0), torch.tensor(1.0)), {}, "could not be measured"),
        ((torch.ones(2), torch.ones(2)), {}, "could not be measured"),
        ((torch.ones(2, 3, dtype=torch.int8), torch.ones(3, 2, dtype=torch.int8)), {}, "could not be measured"),
        ((*ONES, torch.ones(3)), {}, "could not be measured"),
        ((*ONES, torch.tensor(float("nan"))), {}, "is broken"),
        ((*ONES, torch.tensor(float("inf"))), {}, "is broken"),
        ((torch.full((2, 3), 1e37).double() * 1e150, torch.full((3, 2), 1e37).double() * 1e150), {}, "is broken"),
        (ONES, '{"unet.lora_alpha": NaN}', "could not be measured"),
        (ONES, '{"unet.lora_alpha": 1e999}', "could not be measured"),
        (ONES, '{"unet.lora_alpha": "4"}', "could not be measured"),
        (ONES, f'{{"unet.lora_alpha": 1{"0" * 400}}}', "could not be measured"),
        (ONES, '{"unet.lora_alpha": 2, "unet.alpha_pattern": [1]}', "could not be measured"),
        (ONES, "[" * 100_000, "could not be measured"),
        ((torch.ones(200_000, 1), torch.ones(1, 200_000)), {}, "does something"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 30 else "",
)
def test_odd_tensors_and_settings_have_a_verdict(tmp_path, tensors, told, verdict):
    file = write_lora(tmp_path / LORA, *tensors, about={METADATA: told} if told else None)
    status, output = doctor(file)
    assert output.startswith(f"The LoRA {verdict}. "), output
    assert status == (verdict == "is broken")
    assert "not found in" not in output


def test_a_base_that_does_not_fit_is_said(tmp_path):
    file = write_lora(tmp_path / LORA, *ONES)
    for weight, words in (
        (torch.ones(3), "of another shape"),
        (torch.full((3, 3), float("nan")), "the base, holds NaN"),
    ):
        save_file({"mid_block.to_q.weight": weight}, tmp_path / "base.safetensors")
        status, output = doctor(file, "--base", tmp_path / "base.safetensors")
        assert status == 1
        assert words in output


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("lora.bin", b"pickle", "is no .safetensors file; others can hold code"),
        ("lora.safetensors", b"\x00" * 64, "cannot be read as safetensors"),
    ],
)
def test_files_that_are_not_opened(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    status, output = doctor(tmp_path / name)
    assert status == 1
    assert words in output
    assert len(output.splitlines()) == 1


def test_names_cannot_steer_the_terminal(tmp_path):
    name = "unet.\x1b[2J\u202eblock"
    file = write_lora(tmp_path / LORA, *ONES, layer=name)
    assert doctor(file)[1].splitlines()[-1].endswith("  unet.?[2J?block")
    write_lora(file, torch.full((2, 3), float("nan")), ONES[1], layer=name)
    assert "NaN or infinity" in (output := doctor(file)[1])
    assert "unet.?[2J?block" in output
    save_file({"\x1b[2J": torch.ones(2)}, file)
    assert "are called ?[2J" in doctor(file)[1]
    assert block_of("\x1b[2J\n") == "?[2J?"
