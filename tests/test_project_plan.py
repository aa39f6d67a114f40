"""What `mldm start` decides, how run.yaml says it, and the commands that come of it."""

import itertools
import json
import shlex

import pytest
import yaml

from mldm_plugin.errors import DataError, MldmError
from mldm_plugin.preset import load_preset
from mldm_plugin.project.models import MODELS, how_to_get, known_model
from mldm_plugin.project.photos import Photo, look_at
from mldm_plugin.project.plan import decide, unknown_words
from mldm_plugin.project.run_file import NAME, Run, read_run, write_run
from mldm_plugin.project.scale import OwnPhotos, as_flags
from mldm_plugin.reproduce.run import Reproduction


def photographs(count):
    return [Photo(f"{number}.jpg", (800, 800), faces=[300.0], people=[0]) for number in range(count)]


def decided(tmp_path, model="people-mini", count=10, **options):
    known = known_model(model)
    return decide(tmp_path / "photos", photographs(count), "anna woman", known, known.pipeline, **options)


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


def test_an_unknown_model_and_a_word_that_is_taken():
    with pytest.raises(MldmError, match="sdxl"):
        known_model("sdxI")
    assert unknown_words("anna red woman") == ["red"]


def commands(tmp_path, **options):
    run = decided(tmp_path, **options).run
    return run, Reproduction(OwnPhotos(tmp_path, run).recipe(), OwnPhotos(tmp_path, run), seeds=1, prompts=0)


def test_the_commands_that_a_person_would_type(tmp_path):
    run, whole = commands(tmp_path)
    folder, check, plain, ours, judged = whole.plan().splitlines()
    assert folder.startswith(f"mldm data folder {run.photos} --caption 'photo of anna woman, bust' --masks auto")
    assert "--held-out 2" in folder
    assert check.startswith(f"mldm data check {tmp_path / 'people'}")
    assert plain.startswith(
        "accelerate launch -m mldm_plugin.training.text_to_image_lora --loss-plugin mldm --preset demo"
    )
    assert "--set 'losses={}'" in plain
    assert "losses={}" not in ours
    assert plain.replace("--set 'losses={}' ", "").replace("plain-s0", "mldm-s0") == ours, "they differ in that alone"
    assert f"--train_data_dir {tmp_path / 'people' / 'train'}" in ours
    assert "--random_flip" in ours
    assert f"--model plain={tmp_path}/runs/plain-s0 --model mldm={tmp_path}/runs/mldm-s0" in judged
    assert f"--person {tmp_path}/people/train" in judged


def test_somebody_elses_script_is_attached_to_and_finds_masks_by_name(tmp_path):
    script = tmp_path / "train_dreambooth_lora_sdxl.py"
    script.write_text("")
    run, whole = commands(tmp_path, model="sdxl", script=str(script))
    words = shlex.split(whole.plan().splitlines()[3].partition("   #")[0])
    assert words[:5] == ["accelerate", "launch", "-m", "mldm_plugin", str(script)]
    flags = dict(itertools.pairwise(words))
    assert flags["--mldm-mask-dir"] == flags["--dataset_name"] == str(tmp_path / "people" / "train")
    assert flags["--instance_prompt"] == "a photo of anna woman"
    assert flags["--pretrained_model_name_or_path"] == run.model
    assert flags["--max_train_steps"] == str(run.steps)


def test_a_script_that_is_not_here_is_said_with_the_command_that_gets_it(tmp_path):
    _, whole = commands(tmp_path, model="flux")
    with pytest.raises(MldmError, match=r"curl -O https://.*/examples/dreambooth/train_dreambooth_lora_flux\.py"):
        whole.plan()
    assert how_to_get("x/train_dreambooth_lora_sd3.py").endswith("examples/dreambooth/train_dreambooth_lora_sd3.py")


def test_without_comparison_there_is_one_training(tmp_path):
    run, whole = commands(tmp_path, compare=False)
    assert run.compare == "none"
    assert [training.name for training in whole.trainings(timed=False)] == ["mldm-s0"]
    assert str(whole.evaluation()).count("--model ") == 1
    assert "--data" not in str(whole.evaluation()).replace("--train-data", "")


def test_flags():
    given = {"rank": 4, "on": True, "off": False, "unset": None, "rate": 1e-4, "seed": 0}
    assert as_flags(given) == ["--rank", "4", "--on", "--rate", "0.0001", "--seed", "0"]


def training_set(folder, rows):
    """Rows of metadata.jsonl by split, without pictures."""
    for split, names in rows.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        lines = (json.dumps({"file_name": f"images/{n}.jpg", "mask_file_name": f"masks/{n}.png"}) + "\n" for n in names)
        (folder / split / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def test_a_training_set_is_taken_as_it_is(tmp_path):
    photos = training_set(tmp_path / "photos", {"train": "abcd", "validation": "ef"})
    run, whole = commands(tmp_path, count=6)
    assert (run.masks, run.held_out, run.leave_out) == ("given", 2, [])
    assert run.steps == 60, "for the four that are learnt"
    check, _, ours, judged = whole.plan().splitlines()
    assert check.startswith(f"mldm data check {photos}")
    assert f"--train_data_dir {photos / 'train'}" in ours
    assert f"--data {photos} " in judged


def test_a_broken_training_set_is_said(tmp_path):
    photos = training_set(tmp_path / "photos", {"train": ["../../a"]})
    with pytest.raises(DataError, match="leaves the folder"):
        look_at(photos)
    (photos / "train" / "metadata.jsonl").write_text("\n[]\n")
    with pytest.raises(DataError, match="line 2: expected an object with a file_name"):
        look_at(photos)
