"""The plugin's flags: taken off the command line, and what is refused."""

from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType
from click.testing import CliRunner

from mldm_plugin.attach.attachment import Attachment
from mldm_plugin.attach.flags import PANEL_STEPS, Settings, take
from mldm_plugin.attach.launcher import main
from mldm_plugin.attach.ranks import refuse_unshown, refuse_unshown_in
from mldm_plugin.cli import main as cli
from mldm_plugin.errors import MldmError, PresetError


def test_ours_are_taken_and_the_rest_stays_in_order():
    words = "--seed 1 --loss-plugin=mldm --loss_plugin my.py pos --set a=1 --flip --set b=2"
    settings, rest = take(words.split(), name="train_controlnet")
    assert rest == ["--seed", "1", "pos", "--flip"]
    assert settings.loss_plugin == ("mldm", "my.py")
    assert settings.set == ("a=1", "b=2")
    assert settings.preset == "controlnet"
    assert settings.script == "train_controlnet"
    assert settings.panel_steps == PANEL_STEPS
    assert settings.mask_column == "mask"


def test_abbreviations_are_the_scripts():
    settings, rest = take(["--pre", "x", "--help", "--preset", "p"])
    assert rest == ["--pre", "x", "--help"]
    assert settings.loss_plugin == ("mldm",)
    assert settings.preset == "p"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing to do"),
        (["--seed", "1"], "nothing to do"),
        (["--loss-plugin", "mine"], "without --preset"),
        (["--loss-plugin", "mldm"], r"no built-in preset has settings for own.py: .* --preset"),
        (["--loss-plugn", "mldm", "--preset", "mldm"], "did you mean '--loss-plugin'"),
        (["--preset", "mldm", "--mldm-mask-dirs", "x"], "did you mean '--mldm-mask-dir'"),
        (["--preset", "mldm", "--mldm-mask-dirs=x"], "did you mean '--mldm-mask-dir'"),
        (["--preset", "mldm", "--mldm-panel-steps", "-1"], "expected at least 0"),
    ],
)
def test_what_is_misspelt_or_missing(argv, message):
    with pytest.raises((MldmError, PresetError), match=message):
        take(argv, name="own")


def test_a_value_that_a_flag_cannot_have_is_told_in_a_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        take(["--preset", "p", "--mldm-panel-steps", "many"])
    expected = "mldm: argument --mldm-panel-steps: invalid int value: 'many' (see python -m mldm_plugin --help)\n"
    assert capsys.readouterr().err == expected


def test_a_flag_of_the_scripts_own_is_left_alone_or_named():
    _, rest = take(["--presets", "x", "--preset", "mldm"], 'parser.add_argument("--presets")')
    assert rest == ["--presets", "x"]
    with pytest.raises(MldmError, match="a flag --preset of its own"):
        take(["--preset", "x"], 'parser.add_argument("--preset")')
    with pytest.raises(MldmError, match="a flag --preset of its own"):
        take(["--preset", "x"], "parser.add_argument('--preset')")
    assert take(["--preset", "mldm", "--reset"])[1] == ["--reset"]


def test_mldm_run_hands_everything_to_the_launcher(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("raise SystemExit(3)\n", encoding="utf-8")
    result = CliRunner().invoke(cli, ["run", str(script), "--help", "--preset", "mldm"])
    assert result.exit_code == 1
    assert "expected one call of accelerator.backward" in result.output
    assert CliRunner().invoke(cli, ["run", "--help"]).exit_code == 0


def test_the_launcher_without_arguments_or_script(capsys, tmp_path):
    assert main([]) == 1
    assert main(["--help"]) == 0
    assert main(["-h"]) == 0
    assert "--mldm-mask-dir" in capsys.readouterr().out
    assert main([str(tmp_path / "none.py"), "--loss-plugin", "mldm"]) == 1
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "refused"),
    [
        ({}, None),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, None),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "FSDP1"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP1"),
        ({"ACCELERATE_USE_FSDP": "false", "FSDP_VERSION": "1"}, None),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, "DeepSpeed ZeRO 2"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "MEGATRON_LM"),
    ],
)
def test_ways_to_shard_that_were_not_shown_to_work_are_refused(environment, refused):
    if refused is None:
        refuse_unshown(environment)
        return
    with pytest.raises(MldmError, match=f"accelerate is set to {refused}, .*use FSDP2"):
        refuse_unshown(environment)


def test_an_attachment_refuses_them_before_anything_else(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(MldmError, match="accelerate is set to FSDP1"):
        Attachment(Settings(("mldm",), "mldm"))


def test_what_a_script_sets_itself_is_refused_in_its_first_step():
    for kind, fsdp2, refused in (("FSDP", False, "FSDP1"), ("FSDP", True, None), ("DEEPSPEED", False, "DEEPSPEED")):
        accelerator = SimpleNamespace(distributed_type=DistributedType[kind], is_fsdp2=fsdp2)
        if refused is None:
            refuse_unshown_in(accelerator)
            continue
        with pytest.raises(MldmError, match=refused):
            refuse_unshown_in(accelerator)
    refuse_unshown_in(None)
    refuse_unshown_in(SimpleNamespace(distributed_type=DistributedType.MULTI_GPU))
