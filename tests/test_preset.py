"""Presets: the table of the paper, all faults at once, overrides, and a resolved file that reads back."""

import re

import pytest
import yaml
from make_step import ddpm, tiny_vae

from mldm_plugin.engine.stack import LossStack
from mldm_plugin.errors import PresetError
from mldm_plugin.perceptual.lpips_network import TRUNKS
from mldm_plugin.perceptual.weights import WEIGHT_FILES
from mldm_plugin.plugins import load_plugins
from mldm_plugin.preset import Preset, built_in_presets, load_preset
from mldm_plugin.training.command_line import parse, resolve

# name: λ1, λ2, T, base weighting, batch, epochs: "Improving Latent Diffusion with Perceptual Mask-Aware Loss",
# section 4, section 5 and Table 1; the released train_mldm.py; P2 as in "Conditioning Diffusion Models via …".
PAPER = {
    "baseline": (None, None, None, "none", 2, 10),
    "mldm": (0.2, 0.5, 100, "none", 1, 12),
    "mldm-t400": (0.2, 0.5, 400, "none", 1, 12),
    "mldm-table1-t100": (0.1, 0.5, 100, "none", 1, 12),
    "mldm-table1-t400": (0.1, 0.5, 400, "none", 1, 12),
    "mldm-released-script": (0.1, 0.7, 100, "none", 1, 12),
    "mldm-released-objective": (0.1, 0.5, 100, "none", 1, 12),
    "p2": (None, None, None, "p2", 2, 10),
    "mldm-p2": (0.2, 0.5, 100, "p2", 1, 12),
}


@pytest.fixture(scope="module")
def plugins():
    return load_plugins()


@pytest.mark.parametrize("name", PAPER)
def test_presets_say_what_the_papers_say(name, plugins):
    lpips, face, limit, weighting, batch, epochs = PAPER[name]
    preset = load_preset(name, plugins=plugins)
    assert preset.combine == "convex"
    assert preset.base.weighting == weighting
    if weighting == "p2":
        assert preset.base.options == {"k": 1.0, "gamma": 0.5}
    assert preset.training.keys() == {"train_controlnet"}
    training = preset.training["train_controlnet"]
    assert training["train_batch_size"] == batch
    assert training["num_train_epochs"] == epochs
    assert training["resolution"] == 512
    assert training["learning_rate"] == 1e-5
    assert training["conditioning"] == "none"
    if lpips is None:
        assert preset.losses == {}
        return
    assert {n: s.weight for n, s in preset.losses.items()} == {"masked_lpips": lpips, "face": face}
    assert {s.max_timestep for s in preset.losses.values()} == {limit}
    assert {s.detach for s in preset.losses.values()} == {name == "mldm-released-objective"}


def test_every_built_in_preset_validates_and_reads_back(plugins, tmp_path):
    assert set(PAPER) | {"mldm-open", "mldm-open-t400"} == set(built_in_presets("paper"))
    assert set(built_in_presets("study")) == {"demo", "mldm-tuned"}
    groups = [set(built_in_presets(group)) for group in ("task", "study", "loss", "paper", "faces")]
    assert set(built_in_presets()) == set().union(*groups)
    assert sum(map(len, groups)) == len(built_in_presets())
    for name in built_in_presets():
        preset = load_preset(name, plugins=plugins)
        (tmp_path / "resolved.yaml").write_text(preset.dump(), encoding="utf-8")
        assert load_preset(tmp_path / "resolved.yaml", plugins=plugins) == preset


ITS_NETWORK = {"keypoints": "mediapipe_hand", "dino": "dinov2_small"}  # of losses that offer no choice


@pytest.mark.parametrize("name", built_in_presets())
def test_a_preset_says_which_licences_it_rests_on(name, plugins):
    (line,) = re.findall("^# Licences: (.*)$", built_in_presets()[name].read_text(encoding="utf-8"), re.M)
    losses = load_preset(name, plugins=plugins).losses.items()
    networks = [s.options.get("network", ITS_NETWORK.get(loss)) for loss, s in losses]
    networks = [network for network in networks if network]
    for network in (TRUNKS.get(network, network) for network in networks):
        assert f"{network} {WEIGHT_FILES[network].terms}" in line
        if name.startswith(("mldm-open", "mldm-tuned", "demo")) or name in built_in_presets("task"):
            assert WEIGHT_FILES[network].terms.startswith(("CC0", "BSD-3-Clause"))
    assert networks or line == "no network's but the model's own."


@pytest.mark.parametrize("name", built_in_presets())
def test_no_built_in_preset_has_random_networks(name, plugins):
    losses = load_preset(name, plugins=plugins).losses.values()
    assert {loss.options.get("weights", "pretrained") for loss in losses} <= {"pretrained"}


@pytest.mark.parametrize(("name", "paper"), [("mldm-open", "mldm"), ("mldm-open-t400", "mldm-t400")])
def test_the_open_presets_differ_from_the_papers_in_the_face_network_alone(name, paper, plugins):
    one, other = (yaml.safe_load(load_preset(n, plugins=plugins).dump()) for n in (name, paper))
    assert one["losses"]["face"].pop("network") == "dlib_resnet"
    assert other["losses"]["face"].pop("network") == "vggface2_resnet50"
    assert one == other


def test_what_is_called_tuned_is_what_the_study_trained(plugins):
    """docs/evidence.md tells of trainings with preset demo, whose T is the last timestep of its model."""
    tuned, trained = (load_preset(name, plugins=plugins) for name in ("mldm-tuned", "demo"))
    assert {loss.max_timestep for loss in trained.losses.values()} == {999}
    opened = {name: loss.model_copy(update={"max_timestep": None}) for name, loss in trained.losses.items()}
    assert tuned == trained.model_copy(update={"losses": opened, "training": {}})


def test_a_resolved_preset_names_every_option(plugins):
    face = yaml.safe_load(load_preset("mldm", plugins=plugins).dump())["losses"]["masked_lpips"]
    assert face["divide_by"] == "area"
    assert face["layer_weights"] == [0.2] * 5


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_part_of_a_preset_is_enough(tmp_path, plugins):
    preset = load_preset(write(tmp_path, "losses: {face: {weight: 0.3}}"), plugins=plugins)
    assert preset.losses["face"].max_timestep == 100
    assert preset.losses["face"].options["network"] == "vggface2_resnet50"


def test_all_faults_are_named_at_once_with_the_nearest_names(tmp_path, plugins):
    path = write(
        tmp_path,
        """
combin: convex
target: pixels
base: {weighting: min_snrr}
losses:
  face: {weight: -1, max_timestep: 1001, netwrok: vgg}
  masked_lpisp: {weight: 0.1}
  masked_lpips: {weight: 0.2, form: spatiall}
checks: {pictur: warn}
""",
    )
    with pytest.raises(PresetError) as error:
        load_preset(path, plugins=plugins)
    text = str(error.value)
    for expected in (
        "combin: unknown key; did you mean 'combine'?",
        "target: input should be 'image' or 'decoded', got 'pixels'",
        "losses.face.weight: input should be greater than or equal to 0, got -1",
        "losses.face.max_timestep: input should be less than or equal to 999, got 1001",
        "losses.face.netwrok: unknown key; did you mean 'network'?",
        "losses.masked_lpisp: unknown loss 'masked_lpisp': did you mean 'masked_lpips' or 'masked_mse'?",
        "losses.masked_lpips.form: input should be 'spatial' or 'features', got 'spatiall'",
        "base: unknown base weighting 'min_snrr': did you mean 'min_snr'?",
        "checks.pictur: unknown key; did you mean 'picture'?",
    ):
        assert expected in text
    assert "9 fault(s)" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("losses: {face: {weight: 0.7}, masked_lpips: {weight: 0.4}}", "sum to 1.1, expected at most 1"),
        ("losses: {face: {max_timestep: 3}}", "losses.face.weight: is missing"),
        ("losses: {face: {weight: .nan}}", "losses.face.weight"),
        ("losses: [face]", "losses: input should be a valid dictionary"),
        ("losses: {face: 3}", "losses.face: input should be a valid dictionary"),
        ("[1, 2]", "is a list, expected keys"),
        ("a: [1", "cannot be read"),
        ("base: {weighting: none, k: 3}", "weighting none takes no options, got k"),
        ("base: p2", "base: input should be a valid dictionary"),
        ("training: {learning_rate: 1}", r"training: expected the names of training scripts.*got learning_rate: 1"),
        ("training: [1]", "training: input should be a valid dictionary"),
    ],
)
def test_bad_presets(tmp_path, plugins, text, message):
    with pytest.raises(PresetError, match=message):
        load_preset(write(tmp_path, text), plugins=plugins)


def test_additive_weights_may_exceed_one(tmp_path, plugins):
    load_preset(write(tmp_path, "combine: additive\nlosses: {face: {weight: 3}}"), plugins=plugins)


def test_unknown_names_and_files():
    with pytest.raises(PresetError, match="unknown preset 'mlmd': did you mean 'mldm'"):
        load_preset("mlmd")
    with pytest.raises(PresetError, match=r"gone.yaml does not exist"):
        load_preset("gone.yaml")


def test_overrides(plugins):
    preset = load_preset(
        "mldm", ["losses.face.weight=0.3", "base.weighting=p2", "losses.face.form=features"], plugins=plugins
    )
    assert preset.losses["face"].weight == 0.3
    assert preset.losses["face"].options["form"] == "features"
    assert preset.base.options == {"k": 1.0, "gamma": 0.5}
    with pytest.raises(PresetError, match="not of the form a.b=c"):
        load_preset("mldm", ["losses.face.weight"])
    with pytest.raises(PresetError, match="holds no keys"):
        load_preset("mldm", ["combine.face=3"])
    with pytest.raises(PresetError, match=r"losses.face.wieght: unknown key; did you mean 'weight'"):
        load_preset("mldm", ["losses.face.wieght=1"], plugins=plugins)
    with pytest.raises(PresetError, match="the value is not YAML"):
        load_preset("mldm", ["combine=[1"])


def test_a_fault_of_an_override_is_told_under_its_name(tmp_path, plugins):
    with pytest.raises(PresetError) as error:
        load_preset("mldm", ["target=decoded", "losses.face.weight=0.9"], plugins=plugins)
    assert str(error.value).startswith("--set losses.face.weight=0.9: losses: the weights sum to 1.1")
    own = write(tmp_path, "combin: convex\nlosses: {face: {weight: 0.1}}")
    with pytest.raises(PresetError) as error:
        load_preset(own, ["losses.face.wieght=1", "losses.face.form=flat"], plugins=plugins)
    first, fault, *flags = str(error.value).splitlines()
    assert first == f"preset {own} has 1 fault(s):"
    assert fault.startswith("  combin: ")
    assert [line.partition(": ")[0] for line in flags] == ["--set losses.face.form=flat", "--set losses.face.wieght=1"]


def test_an_override_may_mend_a_file(tmp_path, plugins):
    own = write(tmp_path, "losses: {face: {max_timestep: 3}}")
    assert load_preset(own, ["losses.face.weight=0.2"], plugins=plugins).losses["face"].weight == 0.2


def test_from_preset_builds_what_the_preset_says(tmp_path):
    path = write(
        tmp_path,
        "combine: additive\ntarget: decoded\nbase: {weighting: min_snr, gamma: 3}\nchecks: {picture: warn}\n"
        "losses: {masked_lpips: {weight: 0.2, weights: random, people: each}, face: {weight: 0}}",
    )
    stack = LossStack.from_preset(path, vae=tiny_vae(), noise_scheduler=ddpm())
    assert [t.name for t in stack.terms] == ["masked_lpips"]  # weight 0 needs no network
    assert stack.terms[0].loss.people == "each"
    assert (stack.combine, stack.pictures.target) == ("additive", "decoded")
    assert stack.plain.weighting.gamma == 3


def test_the_sum_of_weights_is_named_beside_other_faults(tmp_path, plugins):
    path = write(tmp_path, "target: pixels\nlosses: {face: {weight: 0.7}, masked_lpips: {weight: 0.4}}")
    with pytest.raises(PresetError, match=r"2 fault\(s\)"):
        load_preset(path, plugins=plugins)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("base={weighting: p2, k: -1}", "base.k: input should be greater than 0"),
        ("base={weighting: min_snr, gamma: 0}", "base.gamma: input should be greater than 0"),
        ("losses.face.max_faces=0", "losses.face.max_faces: input should be greater than or equal to 1"),
        ("losses.masked_lpips.layer_weights=[1, 1, 1, 1, -1]", "losses.masked_lpips.layer_weights.4"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_built(plugins, override, message):
    with pytest.raises(PresetError, match=message):
        load_preset("mldm", [override], plugins=plugins)


def test_yaml_that_reads_a_number_as_text_does_not_get_round_the_sum(tmp_path, plugins):
    path = write(tmp_path, "losses: {face: {weight: 9e-1}, masked_lpips: {weight: 0.2}}")
    with pytest.raises(PresetError, match="the weights sum to 1.1"):
        load_preset(path, plugins=plugins)


def test_a_key_given_twice_is_refused(tmp_path, plugins):
    path = write(tmp_path, "losses: {face: {weight: 0.3}}\nlosses: {masked_lpips: {weight: 0.2}}")
    with pytest.raises(PresetError, match="key 'losses' is given twice"):
        load_preset(path, plugins=plugins)


def test_a_preset_object_is_completed_and_overridden(plugins):
    bare = Preset.model_validate({"losses": {"masked_lpips": {"weight": 0.2, "weights": "random"}}})
    completed = load_preset(bare, ["losses.masked_lpips.weight=0.1"], plugins=plugins)
    assert completed.losses["masked_lpips"].weight == 0.1
    assert completed.losses["masked_lpips"].options["form"] == "spatial"
    with pytest.raises(PresetError, match="losses.masked_lpips.from: unknown key"):
        load_preset(bare, ["losses.masked_lpips.from=spatial"], plugins=plugins)


def test_an_option_must_not_take_the_name_of_a_setting(plugins):
    class Heavy:
        needs = frozenset()

        def __init__(self, *, weight: float = 1.0):
            self.weight = weight

    plugins.losses.entries["heavy"] = Heavy
    with pytest.raises(PresetError, match="losses.heavy: option weight of 'heavy' has the name of a setting"):
        load_preset(Preset(losses={"heavy": {"weight": 0.1}}), plugins=plugins)
    del plugins.losses.entries["heavy"]


FACES = {
    "unconditional": None,
    "attributes": ["attributes"],
    "mask": ["semantic_mask"],
    "mask-pooled": ["semantic_mask"],
    "multi": ["attributes", "semantic_mask"],
}


@pytest.mark.parametrize("mini", ["", "-mini"])
@pytest.mark.parametrize("name", FACES)
def test_presets_of_faces_are_networks_of_their_conditions(name, mini, plugins):
    """Each makes a network; the paper's numbers of tokens: 1 for attributes, 64 for a mask, 1 pooled, 65 for both."""
    conditions = pytest.importorskip("mldm_plugin.conditions.conditions")
    from mldm_plugin.training.conditional_flags import ConditionalFlags
    from mldm_plugin.training.conditions import options_of

    preset = load_preset(f"faces-{name}{mini}", plugins=plugins)
    p2 = ("p2", {"k": 1.0, "gamma": 0.5})
    assert (preset.base.weighting, preset.base.options) == (("none", {}) if mini and name != "unconditional" else p2)
    assert not preset.losses
    given = parse(ConditionalFlags, ["--pretrained_model_name_or_path", "x", "--train_data_dir", "y"])
    flags = resolve(ConditionalFlags, given, preset.training)
    assert flags.condition == FACES[name]
    made = conditions.Conditions(flags.cross_attention_dim, list(options_of(flags).items()))
    assert made.tokens == {"mask": 64, "multi": 65}.get(name, 1)
    with_p2 = load_preset(f"faces-{name}{mini}", ["base={weighting: p2, k: 1.0, gamma: 0.5}"], plugins=plugins).base
    assert (with_p2.weighting, with_p2.options) == p2


def test_a_thousand_timesteps_are_all_of_them(tmp_path, plugins):
    path = write(tmp_path, "losses: {face: {weight: 0.1, max_timestep: 1000}, masked_mse: {weight: 0.1}}\n")
    preset = load_preset(path, ["losses.masked_mse.max_timestep=1000"], plugins=plugins)
    assert [loss.max_timestep for loss in preset.losses.values()] == [None, None]
    assert preset.dump().count("max_timestep: null") == 2
    with pytest.raises(PresetError, match="less than or equal to 999, got 1001"):
        load_preset(path, ["losses.masked_mse.max_timestep=1001"], plugins=plugins)
