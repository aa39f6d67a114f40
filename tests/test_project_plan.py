"""What `mldm start` decides, how run.yaml says it, and the commands that come of it."""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from evaluation_results import make_results
from filelock import FileLock
from PIL import Image

from mldm_plugin.cli import main
from mldm_plugin.errors import DataError, MldmError
from mldm_plugin.evaluation.models import LORA
from mldm_plugin.people_mini.words import words
from mldm_plugin.prepare.folder import sources
from mldm_plugin.preset import load_preset
from mldm_plugin.preset_flags import REPEATED, as_flags, fills
from mldm_plugin.project.finished import keep_names, mark_finished
from mldm_plugin.project.models import MODELS, how_to_get, known_model
from mldm_plugin.project.photos import Photo, look_at
from mldm_plugin.project.plan import MINI_PROMPTS, decide, taken_words
from mldm_plugin.project.run_file import NAME, Run, read_run, write_run
from mldm_plugin.project.samples import open_finished
from mldm_plugin.project.scale import OwnPhotos
from mldm_plugin.reproduce.commands import Command
from mldm_plugin.reproduce.run import Reproduction, claim
from mldm_plugin.training.command_line import TRAINERS, parse, resolve
from mldm_plugin.training.flags import LoraFlags


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
    run, whole = commands(tmp_path, model="flux")
    script = tmp_path / "train_dreambooth_lora_flux.py"
    assert f"-m mldm_plugin {script}" in whole.plan(), "what would be run is shown all the same"
    lacks = OwnPhotos(tmp_path, run).lacks()
    assert re.search(rf"curl -o {script} https://.*/examples/dreambooth/train_dreambooth_lora_flux\.py", lacks)
    assert how_to_get("x/train_dreambooth_lora_sd3.py").endswith("examples/dreambooth/train_dreambooth_lora_sd3.py")
    (tmp_path / "flux").mkdir()
    write_run(tmp_path / "flux" / NAME, run, "x", {})
    shown = CliRunner().invoke(main, ["train", str(tmp_path / "flux"), "--dry-run"])
    assert shown.exit_code == 0
    assert f"note: the script {tmp_path}/flux/train_dreambooth_lora_flux.py is not there" in shown.output
    refused = CliRunner().invoke(main, ["train", str(tmp_path / "flux")])
    assert refused.exit_code == 1
    assert not (tmp_path / "flux" / "people").exists(), "said before anything is made"


def test_relative_paths_mean_the_same_wherever_the_command_is_typed(tmp_path, monkeypatch):
    """They are from run.yaml's folder; what only the folder of the shell has is not taken."""
    run = decided(tmp_path, "sd15").run
    out, elsewhere = tmp_path / "anna", tmp_path / "elsewhere"
    for folder in (out / "pipeline", elsewhere / "mine"):
        folder.mkdir(parents=True)
    (out / "cache" / "hub").mkdir(parents=True)
    (elsewhere / "mine" / "model").mkdir()
    changed = {"photos": "../photos", "masks": "masks", "model": "pipeline", "preset": "own.yaml"}
    changed |= {"plugins": ["mldm", "own_loss.py"], "script": "train_x.py", "prompts": "own.txt"}
    changed |= {"python": "venv/bin/python"}
    changed |= {"training": {**run.training, "cache_dir": "./cache/hub", "revision": "mine/model"}}
    write_run(out / NAME, run.model_copy(update=changed), "x", {})
    (out / "train_x.py").write_text("")
    told = []
    for folder, typed in ((elsewhere, "../anna"), (tmp_path, "anna/run.yaml"), (out, "run.yaml"), (out, ".")):
        monkeypatch.chdir(folder)
        shown = CliRunner().invoke(main, ["train", typed, "--dry-run"], catch_exceptions=False)
        assert shown.exit_code == 0
        told.append({os.path.normpath(word) for word in shlex.split(shown.output, comments=True)})
    assert all(words == told[0] for words in told)
    meant = ["masks", "pipeline", "own.yaml", "own_loss.py", "train_x.py", "own.txt", "cache/hub", "../photos"]
    for name in (*meant, "venv/bin/python"):
        assert os.path.normpath(out / name) in told[0], name
    assert "mine/model" in told[0], "not a path from here"


def test_kohyas_scripts_get_a_data_set_in_their_own_words(tmp_path):
    script = tmp_path / "sdxl_train_network.py"
    script.write_text("")
    run, whole = commands(tmp_path, model="sdxl", script=str(script))
    assert run.preset == "lora-sdxl"
    assert run.steps == 1000, "ten epochs, ten times each of ten photographs"
    described = whole.plan().splitlines()[2]
    assert described.startswith(f"mldm data kohya {tmp_path / 'people' / 'train'} --out {tmp_path / 'dataset.toml'}")
    assert "--repeats 10 --resolution 1024 --batch 1" in described
    words = shlex.split(whole.plan().splitlines()[4].partition("   #")[0])
    flags = dict(itertools.pairwise(words))
    assert flags["--dataset_config"] == str(tmp_path / "dataset.toml")
    assert flags["--mldm-mask-dir"] == str(tmp_path / "people" / "train")
    assert flags["--network_module"] == "networks.lora"
    assert flags["--output_name"] + ".safetensors" == LORA, "where an evaluation finds it"
    assert not {"--resume_from_checkpoint", "--checkpointing_steps", "--resolution", "--train_batch_size"} & {*words}


def test_a_script_runs_in_its_own_environment_where_this_package_is_needed_too(tmp_path):
    script, python = tmp_path / "sdxl_train_network.py", tmp_path / "bin" / "python"
    script.write_text("")
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    run, whole = commands(tmp_path, model="sdxl", script=str(script), python=str(python))
    assert run.python == str(python), "a link to an interpreter is what says which environment"
    lines = [line for line in whole.plan().splitlines() if "--loss-plugin" in line]
    assert len(lines) == 2
    assert all(line.startswith(f"{python} -m accelerate.commands.launch -m mldm_plugin {script} ") for line in lines)
    scale = OwnPhotos(tmp_path, run.model_copy(update={"python": sys.executable}))
    assert scale.lacks() == ""
    log = tmp_path / "log"
    with log.open("wb") as out:
        broken = whole.scale.training(whole.recipe.arms[0], 0, 2)
        python.unlink()
        python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'mldm_plugin' $2\" >&2\nexit 1\n")
        python.chmod(0o755)
        assert broken.start(1, out).wait(60) == 1
    assert "accelerate.commands.launch" in log.read_text(), "it is this interpreter that starts it"
    assert "cannot train with this package: ModuleNotFoundError: No module named 'mldm_plugin'" in whole.scale.lacks()
    python.unlink()
    assert "cannot be run" in whole.scale.lacks()


def test_without_comparison_there_is_one_training(tmp_path):
    run, whole = commands(tmp_path, compare=False)
    assert run.compare == "none"
    assert [training.name for training in whole.trainings(timed=False)] == ["mldm-s0"]
    assert str(whole.evaluation()).count("--model ") == 1
    assert "--data" not in str(whole.evaluation()).replace("--train-data", "")


def test_flags():
    given = {"rank": 4, "on": True, "off": False, "unset": None, "rate": 1e-4, "seed": 0, "several": ["a b", "c"]}
    said = ["--rank", "4", "--on", "--rate", "0.0001", "--seed", "0", "--several", "a b", "c"]
    assert as_flags(given) == said
    assert as_flags({"words": [], "set": []}) == []


def test_flags_that_are_given_once_for_each_value_are_those_of_the_trainers():
    fields = [(name, field) for kind in TRAINERS for name, field in kind.model_fields.items()]
    assert {name for name, field in fields if "repeated" in field.metadata} == REPEATED


def test_a_length_that_was_given_is_the_only_one():
    section = {"max_train_steps": 500, "rank": 4}
    assert fills(section, {"num_train_epochs"}) == {"rank": 4}
    assert fills(section, {"rank"}) == {"max_train_steps": 500}


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


def test_a_step_that_failed_is_not_done_the_second_time(tmp_path, monkeypatch):
    """Though it left its file behind, as `mldm data check` does of a set with faults."""
    _, whole = commands(tmp_path)
    made = tmp_path / "made"
    text = f"import pathlib, sys; pathlib.Path({str(made)!r}).touch(); sys.exit(not pathlib.Path('ok').exists())"
    monkeypatch.setattr(OwnPhotos, "data", lambda self: [Command((sys.executable, "-c", text), made)])
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with pytest.raises(MldmError, match="ended with status 1"):
            whole.make_data()
    (tmp_path / "ok").touch()
    whole.make_data()
    (tmp_path / "ok").unlink()
    whole.make_data()


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
    assert run.steps == 72, "for six photographs"
    check, _, ours, judged = whole.plan().splitlines()
    assert check.startswith(f"mldm data check {photos}")
    assert f"--train_data_dir {photos / 'train'}" in ours
    assert f"--data {photos} " in judged
    assert run.training["cache_latents"]
    assert f"--latents_cache_dir {tmp_path / 'latents'}" in ours, "not beside somebody's photographs"


@pytest.mark.parametrize(
    ("files", "images", "told"),
    [
        (("annotations/instances_val2017.json", "annotations/captions_val2017.json"), "val2017", 2),
        (("instances.json", "captions.json", "person_keypoints.json"), "images", 3),
        (("instances.json",), "", 1),
    ],
)
def test_of_a_coco_data_set_the_command_is_said_that_makes_a_training_set(tmp_path, files, images, told):
    folder = tmp_path / "my coco"
    for name in (*files, f"{images}/a.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    done = CliRunner().invoke(main, ["start", str(folder), "--who", "anna woman", "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    [line] = done.output.splitlines()
    words = shlex.split(line.split("`")[1])
    flags = dict(itertools.pairwise(words))
    assert words[:3] == ["mldm", "data", "coco"]
    assert flags["--images"] == os.path.normpath(folder / images)
    assert [flags[f] for f in ("--instances", "--captions", "--keypoints") if f in flags] == [
        str(folder / name) for name in files[:told]
    ]
    assert flags["--out"] == f"{folder}-people"


def test_a_broken_training_set_is_said(tmp_path):
    photos = training_set(tmp_path / "photos", {"train": ["../../a"]})
    with pytest.raises(DataError, match="leaves the folder"):
        look_at(photos)
    (photos / "train" / "metadata.jsonl").write_text("\n[]\n")
    with pytest.raises(DataError, match="line 2: expected an object with a file_name"):
        look_at(photos)


def test_data_that_changed_between_two_trainings_are_told(tmp_path):
    """Else the page would compare a training before a review with one after it."""
    photos = training_set(tmp_path / "photos", {"": "abcd"})
    _, whole = commands(tmp_path, count=4)
    whole.scale.check_data()
    (tmp_path / "runs").mkdir()
    whole.scale.check_data()
    training_set(photos, {"": "abc"})
    with pytest.raises(MldmError, match="was changed after training had begun: remove"):
        whole.scale.check_data()
    (tmp_path / "runs").rmdir()
    whole.scale.check_data()


def test_people_mini_knows_every_word_that_it_is_asked_for():
    said = {word for prompt in MINI_PROMPTS for word in re.findall("[a-z]+", prompt.format(who=""))}
    assert said <= set(words().split())


def test_two_processes_do_not_fill_one_folder(tmp_path):
    """They would write and remove each other's checkpoints, and end with a clean page."""
    _, whole = commands(tmp_path)
    with FileLock(tmp_path / ".lock"), pytest.raises(MldmError, match="is being filled by another process already"):
        whole.run()


def test_photographs_are_no_run(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.jpg")
    with pytest.raises(MldmError, match="is no finished run"):
        open_finished(folder, None)
    assert [path.name for path in folder.iterdir()] == ["a.jpg"], "nothing is written among photographs"


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """The folder of a run that is done, as far as its files say; anything that would be started fails."""
    for name in "abc":
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "photos" / f"{name}.jpg")
    out = tmp_path / "anna"
    run = decided(tmp_path, count=3).run
    out.mkdir()
    write_run(out / NAME, run, "x", {})
    (out / "prompts.txt").write_text("photo of anna\n")
    scale = OwnPhotos(out, run)
    claim(scale, "photos")
    keep_names(scale)
    training_set(out / "people", {"": "abc"})
    for name in ("plain", "mldm"):
        (out / "runs" / f"{name}-s0").mkdir(parents=True)
        (out / "runs" / f"{name}-s0" / LORA).touch()
    (out / "report").mkdir()
    (out / "report" / "report.html").touch()
    results = make_results(tmp_path / "report", models=("plain", "mldm"))
    (out / "report" / "metrics.json").write_text(json.dumps(results))
    mark_finished(scale)

    def never(*_):
        raise MldmError("something is started")

    monkeypatch.setattr(Reproduction, "_run", never)
    return out


def train(out):
    return CliRunner().invoke(main, ["train", str(out)])


def test_a_run_that_is_done_says_so_and_does_nothing(finished):
    told = train(finished)
    assert told.exit_code == 0, told.output
    assert f"done: {finished}/report/report.html" in told.output
    assert "mldm against plain. " in told.output
    assert "note:" not in told.output
    program = (
        "import sys\nfrom click.testing import CliRunner\nfrom mldm_plugin.cli import main\n"
        f"told = CliRunner().invoke(main, ['train', {str(finished)!r}])\n"
        "assert 'done: ' in told.output and not {'torch', 'scipy'} & set(sys.modules), told.output"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("what", ["prompts.txt", "report/report.html", "people/metadata.jsonl", NAME])
def test_a_run_of_which_something_else_is_asked_is_not_done(finished, what):
    file = finished / what
    if what == NAME:
        file.write_text(file.read_text().replace("\npictures: 2", "\npictures: 3"))
    elif what.endswith(".html"):
        file.unlink()
    else:
        file.write_text("{}\n")
    assert "something is started" in train(finished).output


def test_photographs_that_came_and_went_since_are_told_with_what_to_do(finished):
    photos = finished.parent / "photos"
    (photos / "a.jpg").unlink()
    Image.new("RGB", (64, 64)).save(photos / "d.jpg")
    told = train(finished).output
    assert "(added: d.jpg; gone: a.jpg)" in told
    assert f'mldm start {photos} --who "anna woman" --out ANEW' in told
    assert "done: " in told


def test_other_settings_in_a_run_that_has_begun_are_told_with_what_to_do(finished):
    file = finished / NAME
    file.write_text(file.read_text().replace("\nsteps: 60", "\nsteps: 90"))
    told = train(finished)
    assert told.exit_code == 1
    assert "was begun with steps 60, now 90: change it back to go on" in told.output
    commands = told.output.partition("of its own: ")[2].strip()
    assert commands.endswith(f"&& mldm train {finished}-2")
    made = subprocess.run(commands.rpartition(" && ")[0], shell=True)
    assert made.returncode == 0
    assert read_run(Path(f"{finished}-2")).steps == 90


@pytest.mark.parametrize(
    ("name", "message"),
    [("prompts.txt", r"did you mean: mldm train \S*/anna/run\.yaml"), ("other.yaml", r"call it run\.yaml")],
)
def test_another_file_than_run_yaml_is_told_in_one_line(finished, name, message):
    (finished / name).write_text("a photo\n")
    told = train(finished / name)
    assert told.exit_code == 1
    [line] = told.output.splitlines()
    assert re.search(message, line)
