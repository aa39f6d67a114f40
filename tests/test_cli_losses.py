"""mldm losses and mldm plugins: what is there, who brought it, what can be set."""

import importlib
from typing import Any, Literal, Optional

import pytest
from click.testing import CliRunner

from mldm_plugin.cli import main
from mldm_plugin.cli.describe import describe_options, described_arguments, summary, type_text, value_text
from mldm_plugin.plugins import load_plugins

OWN = '''
from mldm_plugin import hookimpl

class Soft:
    """Softness of a thing.

    More about it.

    Args:
        edge: how soft, in pixels,
            or in parts of them.
    """
    needs = frozenset()
    def __init__(self, *, edge: float, deep: bool = False): ...

@hookimpl
def register_losses(register):
    register("soft", Soft)

@hookimpl
def after_loss(step, report): ...
'''


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return str(path)


def output_of(*arguments):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    return result.output


def test_losses_tells_every_option_of_every_loss():
    output = output_of("losses")
    plugins = load_plugins()
    for table in (plugins.losses, plugins.base_weightings):
        for name, factory in table.entries.items():
            assert f"  {name}  (built-in)\n" in output
            for option in describe_options(factory):
                assert f"    {option.name}: {option.type} = {option.default}\n" in output
                assert option.meaning, f"{name}.{option.name} is not described in the docstring"
            assert summary(factory)
    assert "    max_timestep: int | null = 100\n" in output
    assert max(map(len, output.splitlines())) <= 100


def test_losses_names_the_plugin_that_brought_one(own):
    output = output_of("losses", "--loss-plugin", own)
    assert f"  soft  (from {own})\n    Softness of a thing.\n    needs: latents only\n" in output
    assert "    edge: float = required\n        how soft, in pixels, or in parts of them.\n" in output
    assert "    deep: true | false = false\n" in output


def test_plugins_lists_built_in_given_and_no_installed_ones(own, monkeypatch):
    monkeypatch.setattr("mldm_plugin.plugins.installed_plugins", dict)
    output = output_of("plugins", "--loss-plugin", own)
    assert "  face: register_losses\n" in output
    assert "  p2: register_base_weightings\n" in output
    assert "group 'mldm': none\n" in output
    assert f"given\n  {own}: after_loss, register_losses\n" in output


def test_plugins_lists_installed_ones_and_why_one_does_not_load(tmp_path, monkeypatch):
    (tmp_path / "soft_pack.py").write_text(OWN)
    (tmp_path / "broken_pack.py").write_text("import no_such_thing_at_all\n")
    info = tmp_path / "pack-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pack\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mldm]\nsoft-pack = soft_pack\nbroken-pack = broken_pack\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    output = output_of("plugins")
    assert "  soft-pack (soft_pack): after_loss, register_losses\n" in output
    assert "  broken-pack (broken_pack): does not load: plugin 'broken-pack' does not import" in output


def test_a_built_in_module_given_again_is_loaded_already():
    assert "mldm_plugin.hooks.p2: loaded already" in output_of("plugins", "--loss-plugin", "mldm_plugin.hooks.p2")


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (float, "float"),
        (bool, "true | false"),
        (str, "text"),
        (int | None, "int | null"),
        (Optional[str], "text | null"),  # noqa: UP045
        (Literal["a", "b"], "a | b"),
        (Literal["a"] | None, "a | null"),
        (tuple[float, float], "list of 2 floats"),
        (tuple[float, str], "list"),
        (list[int], "list of ints"),
        (tuple[int, ...], "list of ints"),
        (Any, "Any"),
    ],
)
def test_types_as_yaml_thinks_of_them(annotation, text):
    assert type_text(annotation) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), (0.5, "0.5"), ((1.0, 2.0), "[1, 2]"), ("a", "a"), (3, "3")],
)
def test_values_as_yaml_has_them(value, text):
    assert value_text(value) == text


def test_arguments_of_a_docstring():
    text = "One.\n\nArgs:\n    a, b: both: of them\n        go on.\n    c: alone.\n\nSource: d: none."
    assert described_arguments(text) == {"a": "both: of them go on.", "b": "both: of them go on.", "c": "alone."}
    assert described_arguments("No such section.") == {}
