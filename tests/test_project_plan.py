"""What `mldm start` decides, how run.yaml says it, and the commands that come of it."""

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image
from planned import decided, photographs

from mldm_plugin.cli import main
from mldm_plugin.errors import MldmError
from mldm_plugin.people_mini.words import words
from mldm_plugin.prepare.folder import sources
from mldm_plugin.preset import load_preset
from mldm_plugin.project.models import MODELS, known_model
from mldm_plugin.project.photos import Photo
from mldm_plugin.project.plan import MINI_PROMPTS, decide, taken_words
from mldm_plugin.project.run_file import NAME, Run, read_run, write_run
from mldm_plugin.project.scale import OwnPhotos
from mldm_plugin.training.command_line import parse, resolve
from mldm_plugin.training.flags import LoraFlags


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_the_settings_of_its_preset(tmp_path, model):
    run = decided(tmp_path, model).run
    preset = load_preset(MODELS[model].preset)
    section = dict(preset.training[MODELS[model].script])
    assert run.steps == section.pop("max_train_steps") * 10 // MODELS[model].photos
    assert run.training == section
    assert set(preset.losses) == {"masked_lpips", "face"}


def test_steps_follow_the_photographs_and_some_are_kept_back(tmp_path):
    assert [decided(tmp_path, "sdxl", n).run.steps for n in (2, 5, 20)] == [250, 500, 2000]
    assert [decided(tmp_path, count=n).run.held_out for n in (5, 6, 10, 23)] == [0, 1, 2, 4]
    assert decided(tmp_path, count=10, compare=False).run.held_out == 0


def test_those_that_are_kept_back_are_named_as_the_training_set_will_have_them(tmp_path):
    made = decided(tmp_path, count=10)
    (tmp_path / "photos").mkdir()
    for photo in photographs(10):
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / photo.name)
    held = [Path(one.path).name for one in sources(tmp_path / "photos", "a", held_out=2) if one.split == "validation"]
    assert made.kept_back == held == ["2.jpg", "7.jpg"]
    assert made.reasons["held_out"].endswith(": 2.jpg, 7.jpg")


def test_nothing_to_learn_is_said(tmp_path):
    photos = [Photo("a.jpg", fault="is empty: 0 bytes")]
    with pytest.raises(MldmError, match=r"none of the 1 photographs .* can be learnt: is empty"):
        decide(tmp_path, photos, "anna", known_model("sd15"), "x")


def test_run_yaml_says_each_number_with_its_reason_and_is_read_back(tmp_path):
    made = decided(tmp_path, "flux")
    write_run(tmp_path / NAME, made.run, "anna: two\nlines", made.reasons)
    text = (tmp_path / NAME).read_text(encoding="utf-8")
    assert text.startswith("# anna: two\n# lines\n")
    assert max(map(len, text.splitlines())) <= 120
    assert read_run(tmp_path) == read_run(tmp_path / NAME) == made.run
    for key in Run.model_fields:
        lines = text.splitlines()
        [number] = [i for i, line in enumerate(lines) if line.startswith(f"{key}:")]
        assert " # " in lines[number] or lines[number - 1].startswith("# ")


def test_odd_names_are_read_back(tmp_path):
    odd = {"who": 'it\'s: #1 "ana"', "leave_out": ["a b.jpg", "ü,1.png", "no"]}
    run = decided(tmp_path).run.model_copy(update=odd)
    write_run(tmp_path / NAME, run, "x", {})
    assert read_run(tmp_path / NAME) == run


def test_all_faults_of_a_run_file_are_told_at_once(tmp_path):
    contents = decided(tmp_path).run.model_dump() | {"steps": 1, "compare": "all", "stepz": 3}
    del contents["who"]
    (tmp_path / NAME).write_text(yaml.safe_dump(contents))
    with pytest.raises(MldmError, match=r"has 4 fault\(s\)") as told:
        read_run(tmp_path / NAME)
    assert "stepz: unknown key" in str(told.value)
    assert "did you mean 'steps'" in str(told.value).lower()
    assert "who: is missing" in str(told.value)
    with pytest.raises(MldmError, match="`mldm start PHOTOS --who NAME` writes one"):
        read_run(tmp_path / "none")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("training: {train_batch_size: many}", "train_batch_size is 'many', expected a whole number above 0"),
        ("training: {resolution: 0}", "resolution is 0, expected a whole number above 0"),
        ("training: {mixed_precision: fp8}", "mixed_precision is 'fp8', expected no, bf16, fp16"),
        ("training: {'rank --push_to_hub': 2}", "'rank --push_to_hub' is no flag"),
        ("training: {rank: {a: 1}}", "rank is {'a': 1}, expected one value"),
        ("training: &t {rank: *t}", "expected one value"),
        (f"training: {'[' * 3000}{']' * 3000}", "cannot be read"),
        ("guidance: .nan", "guidance: input should be"),
        ("seed: !!python/object/apply:os.getcwd []", "could not determine a constructor for the tag"),
        (None, "holds 'None', expected keys such as photos:"),
    ],
)
def test_what_a_stranger_may_write_into_a_run_file_is_one_error(tmp_path, line, message):
    lines = yaml.safe_dump(decided(tmp_path).run.model_dump(), default_flow_style=True, width=10_000).strip()
    key = (line or "").partition(":")[0]
    kept = {name: value for name, value in yaml.safe_load(lines).items() if name != key}
    (tmp_path / NAME).write_text("" if line is None else f"{yaml.safe_dump(kept)}{line}\n")
    with pytest.raises(MldmError, match=re.escape(message)):
        read_run(tmp_path)


def test_yaml_reads_1e_4_as_a_text_and_no_as_false_and_both_are_taken(tmp_path):
    run = decided(tmp_path).run.model_dump() | {"training": {}}
    (tmp_path / NAME).write_text(yaml.safe_dump(run) + "training: {learning_rate: 1e-4, mixed_precision: no}\n")
    with pytest.raises(MldmError, match="key 'training' is given twice"):
        read_run(tmp_path)
    del run["training"]
    (tmp_path / NAME).write_text(yaml.safe_dump(run) + "training: {learning_rate: 1e-4, mixed_precision: no}\n")
    read = read_run(tmp_path)
    [plain, _] = OwnPhotos(tmp_path, read).recipe().arms
    flags = OwnPhotos(tmp_path, read).training(plain, 0, 5).flags
    assert flags[flags.index("--learning_rate") + 1] == "1e-4"
    assert "--mixed_precision" not in flags


@pytest.mark.parametrize("who", ["", "  ", "anna\nwoman", "anna\x07"])
def test_a_name_that_is_none_is_refused(tmp_path, who):
    done = CliRunner().invoke(main, ["start", str(tmp_path), "--who", who])
    assert done.exit_code == 1
    assert "expected a rare word and what it is" in done.output


def test_an_unknown_preset_is_said_before_anything_is_made(tmp_path):
    run = decided(tmp_path).run.model_copy(update={"preset": "dremo"})
    write_run(tmp_path / NAME, run, "x", {})
    done = CliRunner().invoke(main, ["train", str(tmp_path)])
    assert done.exit_code == 1
    assert "unknown preset 'dremo'" in done.output
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_an_unknown_model_and_a_word_that_is_taken():
    with pytest.raises(MldmError, match="sdxl"):
        known_model("sdxI")
    assert taken_words("anna red woman") == ["red"]


def test_what_run_yaml_leaves_out_the_preset_does_not_put_back(tmp_path):
    """Else `random_flip: false`, or a line taken out, would have no effect."""
    run = decided(tmp_path).run
    assert run.training.pop("random_flip") is True
    run.training["cache_latents"] = False
    words = OwnPhotos(tmp_path, run).training(OwnPhotos(tmp_path, run).recipe().arms[1], 0, 3).words
    assert not {"--random_flip", "--cache_latents"} & {*words}
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    preset = load_preset(run.preset, sets)
    given = parse(LoraFlags, words[2:])
    flags = resolve(LoraFlags, given, preset.training)
    assert (flags.random_flip, flags.cache_latents, flags.rank) == (False, False, 16)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("training: {max_train_steps: 5}", "max_train_steps is `steps:`"),
        ("training: {push_to_hub: true}", "mldm sample --push-to-hub"),
        ("seed: 1\nseed: 2", "key 'seed' is given twice"),
    ],
)
def test_keys_that_would_have_no_effect_are_refused(tmp_path, line, message):
    told = decided(tmp_path).run.model_dump()
    for key in ("training", "seed"):
        del told[key]
    (tmp_path / NAME).write_text(yaml.safe_dump(told) + ("training:\n" if "seed" in line else "") + line + "\n")
    with pytest.raises(MldmError, match=message):
        read_run(tmp_path)


def test_all_of_training_may_be_taken_out(tmp_path):
    told = decided(tmp_path).run.model_dump() | {"training": None}
    (tmp_path / NAME).write_text(yaml.safe_dump(told))
    assert read_run(tmp_path).training == {}


def test_people_mini_knows_every_word_that_it_is_asked_for():
    said = {word for prompt in MINI_PROMPTS for word in re.findall("[a-z]+", prompt.format(who=""))}
    assert said <= set(words().split())
