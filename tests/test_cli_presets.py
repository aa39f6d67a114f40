"""mldm presets: list, show, validate, copy."""

import pytest
import yaml
from click.testing import CliRunner

from mldm_plugin.cli import main
from mldm_plugin.preset import built_in_presets, load_preset


def run(*arguments):
    return CliRunner().invoke(main, ["presets", *map(str, arguments)])


def refused(*arguments):
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("mldm: ")
    return result.stderr


def write(folder, text, name="own.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


PLUGIN = """
from pathlib import Path
from mldm_plugin import hookimpl

@hookimpl
def register_presets(register):
    register("brought", Path(__file__).with_name("own.yaml"))
"""


def test_list_names_each_preset_and_what_it_is():
    output = run("list").output
    for name in built_in_presets():
        assert f"\n{name} " in f"\n{output}"
    assert 'mldm                     Masked LDM, section 5: "best results".' in output
    assert output.index("\nlora-sd15 ") < output.index("\nbaseline ")
    assert "Needs:" not in output
    assert max(map(len, output.splitlines())) <= 100


def test_list_names_presets_of_plugins(tmp_path):
    write(tmp_path, "# My own.\n# Needs: nothing.\nlosses: {}\n")
    plugin = write(tmp_path, PLUGIN, "plugin.py")
    output = run("list", "--loss-plugin", plugin).output
    assert any(line.split(maxsplit=1) == ["brought", "My own."] for line in output.splitlines())
    assert "losses: {}" in run("show", "brought", "--loss-plugin", plugin).output


@pytest.mark.parametrize("name", built_in_presets())
def test_each_built_in_preset_is_sound_and_shown_with_its_comments(name):
    file, given = built_in_presets()[name].read_text(encoding="utf-8"), run("show", name).output
    assert given.startswith(file)
    assert yaml.safe_load(given) == yaml.safe_load(file), "what follows is comments"
    result = run("validate", name)
    assert result.exit_code == 0, result.stderr
    assert result.output.startswith(f"{name} is sound: ")


def test_show_says_what_each_script_is_given(tmp_path):
    own = "{flip: true, plain: false, words: [a, b], rate: 1.0e-5, nothing: null}"
    path = write(tmp_path, f"training: {{own: {own}, other: {{}}}}\n")
    assert run("show", path).output.splitlines()[1:] == [
        "# own.py is given --flip --words a b --rate 1e-05",
        "# other.py is given",
    ]


def test_list_of_a_group():
    tasks, studies, papers = (run("list", "--group", group).output for group in ("task", "study", "paper"))
    assert [line.split()[0] for line in studies.splitlines() if line[0] != " "] == ["demo", "mldm-tuned"]
    assert "tuned" not in papers
    assert "lora-sdxl" in tasks
    assert "mldm" not in tasks
    assert f"\n{papers}".count("\nmldm ") == 1
    assert "lora-sdxl" not in papers


def test_resolved_says_everything_and_takes_overrides():
    output = run("show", "mldm", "--resolved", "--set", "losses.face.weight=0.3").output
    resolved = yaml.safe_load(output)
    assert resolved["losses"]["face"]["weight"] == 0.3
    assert resolved["losses"]["face"]["max_faces"] is None
    assert resolved["losses"]["masked_lpips"]["divide_by"] == "area"


def test_set_without_resolved_is_not_ignored():
    assert "add --resolved" in refused("show", "mldm", "--set", "losses.face.weight=0.3")


def test_validate_tells_all_faults_at_once_and_none_is_lost(tmp_path):
    path = write(
        tmp_path,
        "combin: convex\n"
        "losses: {fcae: {weight: 0.2}, face: {weight: 0.1, from: spatial}}\n"
        "training: {train_controlnet: {resolution: big, learnin_rate: 1.0e-5}, anything: {x: 1}}\n",
    )
    message = refused("validate", path)
    assert "has 5 fault(s):" in message
    ours = "training.train_controlnet"
    for fault in ("combin:", "losses.fcae:", "losses.face.from:", f"{ours}.resolution:", f"{ours}.learnin_rate:"):
        assert f"\n  {fault}" in message
    assert "'combine'" in message
    assert "'face'" in message
    assert "'form'" in message
    assert "'learning_rate'" in message


def test_validate_checks_the_flags_of_a_preset_whose_losses_are_sound(tmp_path):
    message = refused("validate", write(tmp_path, "losses: {}\ntraining: {train_controlnet: {resolution: big}}\n"))
    assert "has 1 fault(s):\n  training.train_controlnet.resolution" in message


@pytest.mark.parametrize(
    ("text", "says"),
    [("losses: [", "cannot be read"), ("- a\n", "is a list"), ("losses: {}\ntraining: 3\n", "training")],
)
def test_validate_of_what_is_no_preset(tmp_path, text, says):
    assert says in refused("validate", write(tmp_path, text))


def test_unknown_names_are_answered_with_the_nearest():
    for command in ("show", "validate"):
        assert "did you mean 'mldm'" in refused(command, "mldmm")
    assert "does not exist" in refused("show", "no/such.yaml")


def test_validate_counts_a_plugins_losses(tmp_path):
    path = write(tmp_path, "losses: {soft: {weight: 0.1}}\n")
    assert "unknown loss 'soft'" in refused("validate", path)
    plugin = write(
        tmp_path,
        "from mldm_plugin import hookimpl\n"
        "class Soft:\n"
        "    def __call__(self, step): return step.model_pred.mean()\n"
        "@hookimpl\n"
        "def register_losses(register): register('soft', Soft)\n",
        "soft.py",
    )
    assert run("validate", path, "--loss-plugin", plugin).output == (
        f"{path} is sound: convex mix of the plain loss and soft 0.1 at t <= 100\n"
    )


def test_validate_describes_weights_gates_and_weightings(tmp_path):
    path = write(
        tmp_path,
        "combine: additive\n"
        "base: {weighting: p2}\n"
        "losses: {face: {weight: 0, weights: random}, masked_lpips: {weight: 2, max_timestep: null, detach: true}}\n",
    )
    assert run("validate", path).output.endswith(
        "additive mix of the plain loss and face off; masked_lpips 2 at every t, detached, weighted by p2\n"
    )


def test_copy_is_the_same_preset_and_refuses_to_overwrite(tmp_path):
    target = tmp_path / "new" / "mine.yaml"
    assert run("copy", "mldm", target).output == f"wrote {target}; use it with --preset {target}\n"
    assert target.read_text(encoding="utf-8") == built_in_presets()["mldm"].read_text(encoding="utf-8")
    assert load_preset(target) == load_preset("mldm")
    target.write_text("losses: {}\n")
    assert "exists already" in refused("copy", "mldm", target)
    assert target.read_text() == "losses: {}\n"
    assert [p.name for p in target.parent.iterdir()] == ["mine.yaml"]


def test_copy_into_a_folder_keeps_the_name(tmp_path):
    run("copy", "p2", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["p2.yaml"]


def test_copy_refuses_what_would_not_be_found_again(tmp_path):
    assert "ending .yaml" in refused("copy", "mldm", tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


def test_copy_that_cannot_be_written_leaves_nothing(tmp_path):
    blocked = write(tmp_path, "", "file")
    assert "cannot be written" in refused("copy", "mldm", blocked / "mine.yaml")


def test_copy_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.link", interrupt)
    run("copy", "mldm", tmp_path / "mine.yaml")
    assert list(tmp_path.iterdir()) == []


def test_copy_does_not_replace_a_file_that_appears_meanwhile(tmp_path, monkeypatch):
    import os

    target, link = tmp_path / "mine.yaml", os.link

    def race(source, destination):
        target.write_text("theirs")
        link(source, destination)

    monkeypatch.setattr("os.link", race)
    assert "exists already" in refused("copy", "mldm", target)
    assert target.read_text() == "theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["mine.yaml"]
