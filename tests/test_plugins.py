"""Plugins: real entry points, modules and files; collisions, misspelt hooks and broken files are named."""

import subprocess
import sys
import textwrap

import pytest
from make_step import ddpm, make_step, tiny_vae

from mldm_plugin.engine.stack import LossStack
from mldm_plugin.errors import PluginError
from mldm_plugin.plugins import load_plugins, options_model

GOOD = """
    from mldm_plugin import hookimpl

    class Brightness:
        needs = frozenset({"pred_images"})

        def __init__(self, *, power: float = 2.0):
            self.power = power

        def __call__(self, step):
            difference = step.pred_images.mean(1) - step.target_images.mean(1)
            return difference.abs().pow(self.power).flatten(1).mean(1)

    @hookimpl
    def register_losses(register):
        register("brightness", Brightness)
"""


def write(folder, name, text):
    path = folder / name
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def test_the_built_in_set():
    plugins = load_plugins(["mldm"])
    assert set(plugins.names()) >= {"debiased", "face", "masked_lpips", "min_snr", "p2"}
    assert set(plugins.losses.entries) == {
        *("dino", "face", "identity", "keypoints", "latent_perceptual", "masked_lpips", "masked_mse")
    }
    assert set(plugins.base_weightings.entries) == {"debiased", "min_snr", "p2"}
    assert load_plugins().manager is not plugins.manager


def test_a_file_is_a_plugin_and_its_loss_trains(tmp_path):
    path = write(tmp_path, "brightness.py", GOOD)
    preset = write(tmp_path, "p.yaml", "losses: {brightness: {weight: 0.5, power: 1}}\nchecks: {picture: warn}")
    stack = LossStack.from_preset(
        preset, vae=tiny_vae(), noise_scheduler=ddpm(), plugins=[str(path)], announce=lambda text: None
    )
    step = make_step((50,))
    stack(step).loss.backward()
    assert stack.terms[0].loss.power == 1
    assert step.model_pred.grad.abs().max() > 0


def test_a_plugin_whose_loss_the_preset_does_not_use_is_named(tmp_path):
    path = write(tmp_path, "brightness.py", GOOD)
    said = []
    LossStack.from_preset(
        write(tmp_path, "p.yaml", "losses: {}"),
        vae=None,
        noise_scheduler=ddpm(),
        plugins=[str(path)],
        announce=said.append,
    )
    assert said == [
        f"warning: plugin {path} registers the loss 'brightness', but the preset gives it no weight, so it does "
        "nothing: --set losses.brightness.weight=0.1 would."
    ]


def test_a_module_and_a_repeated_name(tmp_path, monkeypatch):
    write(tmp_path, "brightness_module.py", GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins = load_plugins(["brightness_module", "mldm", "brightness_module"])
    assert plugins.losses.origins["brightness"] == "brightness_module"


def test_a_real_entry_point(tmp_path):
    """A distribution with an entry point of group mldm, as pip lays it out, seen by a fresh interpreter."""
    write(tmp_path, "brightness_package.py", GOOD)
    info = tmp_path / "brightness_package-1.0.dist-info"
    info.mkdir()
    write(info, "METADATA", "Metadata-Version: 2.1\nName: brightness-package\nVersion: 1.0\n")
    write(info, "entry_points.txt", "[mldm]\nbright = brightness_package\n")
    code = (
        "from mldm_plugin.plugins import *; p = load_plugins(['bright']); "
        "assert p.losses.origins['brightness'] == 'bright'; assert installed_plugins() == "
        "{'bright': 'brightness_package'}, installed_plugins()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path), "PATH": ""}
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import not_there_at_all", "does not import: No module named 'not_there_at_all'. Install what it needs"),
        ("1 / 0", "does not import: ZeroDivisionError"),
        ("def (", "does not import: SyntaxError"),
        ("x = 1", "implements no hook"),
        ("from mldm_plugin import hookimpl\n@hookimpl\ndef register_loses(register): pass", "register_loses"),
        (GOOD.replace('"brightness"', '"face"'), "loss 'face' is registered by face and again by"),
        (GOOD.replace('"brightness"', '"ldm"'), "registers a loss 'ldm', a name with a meaning of its own"),
        (GOOD.replace("(register)", "(reg)"), "does not fit its hook"),
        (GOOD.replace('register("brightness"', '1 / 0, register("brightness"'), "failed in register_losses: ZeroDiv"),
        ("raise SystemExit(3)", "does not import: SystemExit"),
    ],
)
def test_broken_plugins_are_named(tmp_path, text, message):
    path = write(tmp_path, "broken.py", text)
    with pytest.raises(PluginError, match=message):
        load_plugins([str(path)])


def test_a_hook_may_take_fewer_arguments_and_a_file_may_be_named_like_a_built_in(tmp_path):
    path = write(tmp_path, "face.py", GOOD)
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other", "face.py", GOOD.replace('"brightness"', '"second"'))
    idle = write(tmp_path, "idle.py", "from mldm_plugin import hookimpl\n@hookimpl\ndef register_losses():\n    pass\n")
    plugins = load_plugins([str(path), str(other), str(idle)])
    assert {"face", "brightness", "second"} <= set(plugins.losses.entries)


def test_unknown_plugins():
    with pytest.raises(PluginError, match="'mldmm' is no entry point of group 'mldm'.*did you mean 'mldm'"):
        load_plugins(["mldmm"])
    with pytest.raises(PluginError, match=r"gone.py does not exist"):
        load_plugins(["gone.py"])
    with pytest.raises(PluginError, match="unknown loss 'fase': did you mean 'face'"):
        load_plugins().losses["fase"]


def test_a_plugin_brings_presets(tmp_path):
    write(tmp_path, "extra.yaml", "losses: {}\ntarget: decoded")
    path = write(
        tmp_path,
        "bringer.py",
        """
        from pathlib import Path
        from mldm_plugin import hookimpl

        @hookimpl
        def register_presets(register):
            register("extra", Path(__file__).parent / "extra.yaml")
        """,
    )
    from mldm_plugin.preset import load_preset

    assert load_preset("extra", plugins=load_plugins([str(path)])).target == "decoded"


def test_after_loss_hook_is_called(tmp_path):
    path = write(
        tmp_path,
        "watcher.py",
        """
        from mldm_plugin import hookimpl

        SEEN = []

        @hookimpl
        def after_loss(step, report):
            SEEN.append((step.pred_latents.shape, report.logs()["loss"]))
        """,
    )
    preset = write(tmp_path, "p.yaml", "losses: {}")
    stack = LossStack.from_preset(preset, vae=None, noise_scheduler=ddpm(), plugins=[str(path)])
    step = make_step((50,))
    stack(step)
    watcher = next(module for name, module in sys.modules.items() if name.startswith("mldm_plugin_file_watcher"))
    ((shape, loss),) = watcher.SEEN
    assert shape == (1, 4, 8, 8)
    assert loss == step.base_loss.item()


def test_options_are_the_constructors_keywords():
    from mldm_plugin.hooks.p2 import P2

    assert options_model(P2)().model_dump() == {"k": 1.0, "gamma": 0.5}

    class Plain:
        def __call__(self, step):
            return None

    assert options_model(Plain)().model_dump() == {}

    class Open:
        def __init__(self, **kwargs):
            pass

    with pytest.raises(PluginError, match="name its options"):
        options_model(Open)
