import json
import os
import signal
import tarfile
import time
from pathlib import Path

import datasets
import forked
import pytest
from coco_files import make_coco
from filelock import FileLock
from odd_pictures import BAD, FINE, encoded, scene

from mldm_plugin.data.load import open_rows
from mldm_plugin.data.training_set import Columns, TrainingSet
from mldm_plugin.errors import DataError, MldmError
from mldm_plugin.prepare import engines, plans
from mldm_plugin.prepare.convert import Recipe
from mldm_plugin.prepare.plans import Plan
from mldm_plugin.prepare.run import Output, prepare
from mldm_plugin.prepare.source import Source
from mldm_plugin.prepare.stored import parts


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    make_coco(folder, 300)
    return folder


def plan_of(folder, **options):
    return plans.coco(folder / "pictures", folder / "instances.json", captions=folder / "captions.json", **options)


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("format_", ["imagefolder", "parquet", "webdataset"])
def test_the_output_does_not_depend_on_who_works(noise, tmp_path, format_):
    for workers in (0, 2):
        prepare(plan_of(noise), Output(tmp_path / str(workers), format_, shard_size=40, workers=workers))
    assert tree(tmp_path / "0") == tree(tmp_path / "2")
    assert not list(tmp_path.glob("*.partial"))


def test_ray_makes_the_same_output(noise, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    prepare(plan_of(noise), Output(tmp_path / "here", workers=0))
    prepare(plan_of(noise), Output(tmp_path / "ray", engine="ray", workers=2))
    assert tree(tmp_path / "here") == tree(tmp_path / "ray")


def test_the_formats_hold_the_same(noise, tmp_path):
    for format_ in ("imagefolder", "parquet", "webdataset"):
        prepare(plan_of(noise), Output(tmp_path / format_, format_, shard_size=100, workers=0))
    read = {
        name: datasets.load_dataset(str(tmp_path / name), cache_dir=str(tmp_path / "cache"))["train"]
        for name in ("imagefolder", "parquet", "webdataset")
    }
    assert {len(rows) for rows in read.values()} == {len(read["imagefolder"])}
    assert len(list((tmp_path / "parquet").glob("*.parquet"))) > 1
    for one, two, three in zip(read["imagefolder"], read["parquet"], read["webdataset"], strict=True):
        pictures = [one.pop("image"), two.pop("image"), three.pop("jpg")]
        masks = [one.pop("mask"), two.pop("mask"), three.pop("mask.png")]
        for same in (pictures, masks):
            assert same[0].tobytes() == same[1].tobytes() == same[2].tobytes()
        assert one == two == three["json"]
        assert three["txt"] == one["text"][0]


def command(folder, out):
    return [
        *("-m", "mldm_plugin.cli", "data", "coco", "--images", str(folder / "pictures")),
        *("--instances", str(folder / "instances.json"), "--captions", str(folder / "captions.json")),
        *("--out", str(out), "--workers", "2", "--shard-size", "1"),
    ]


def partial(out):
    return out.with_name(f"{out.name}.partial")


def shards_done(out):
    return len(list(partial(out).glob("done/*.json")))


@pytest.mark.parametrize(
    ("format_", "kills"),
    [("imagefolder", (0, 1, 20, 60, 120)), ("webdataset", (1, 100))],
    ids=["imagefolder", "webdataset"],
)
def test_killed_at_any_moment_it_goes_on_to_the_same_output(noise, tmp_path, format_, kills):
    """Killed when so many of the 217 shards are done, 0 for while it reads the annotation; then the same command."""
    out = tmp_path / "out"
    prepare(plan_of(noise), Output(tmp_path / "whole", format_, shard_size=1, workers=0))
    before = 0
    for kill in kills:
        running = forked.Forked(*command(noise, out), "--format", format_)
        deadline = time.monotonic() + 60
        while running.poll() is None and time.monotonic() < deadline:
            if shards_done(out) >= max(kill, before + 1) if kill else partial(out).exists():
                break
            time.sleep(0.002)
        assert running.poll() is None, "it ended before it could be killed"
        running.kill()
        assert running.wait() == -signal.SIGKILL
        assert not out.exists()
        assert shards_done(out) >= kill
        before = shards_done(out)
    done = forked.run(*command(noise, out), "--format", format_)
    assert done.returncode == 0, done.stderr
    assert tree(out) == tree(tmp_path / "whole")
    assert not list(tmp_path.glob("*.partial"))


def test_no_worker_outlives_a_killed_parent(noise, tmp_path):
    out = tmp_path / "out"
    running = forked.Forked(*command(noise, out))  # in a group of its own
    deadline = time.monotonic() + 60
    while not shards_done(out) and time.monotonic() < deadline:
        time.sleep(0.01)
    group = os.getpgid(running.pid)
    assert group == running.pid
    running.kill()
    running.wait()
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    pytest.fail("a worker goes on without its parent")


def test_what_is_finished_is_not_made_again(noise, tmp_path):
    first = prepare(plan_of(noise), Output(tmp_path / "out", workers=0))
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    assert prepare(plan_of(noise), Output(tmp_path / "out", workers=0)) == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == times


def test_another_command_does_not_write_over_an_output(noise, tmp_path):
    prepare(plan_of(noise), Output(tmp_path / "out", workers=0))
    before = tree(tmp_path / "out")
    with pytest.raises(DataError, match="exists already and is not what this command makes"):
        prepare(plan_of(noise, min_person_area=0.2), Output(tmp_path / "out", workers=0))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="name another --out, or remove it"):
        prepare(plan_of(noise), Output(tmp_path / "photos", workers=0))
    assert tree(tmp_path / "out") == before
    assert (tmp_path / "photos" / "mine.jpg").read_bytes() == b"x"


def interrupted(plan, output):
    """As a full disk leaves it after the first shards."""
    calls = []

    def some(work, jobs, workers):
        for job in jobs:
            if len(calls) == 2:
                raise DataError("the disk is full")
            calls.append(job)
            yield work(job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(engines.ENGINES, "processes", some)
        with pytest.raises(DataError, match="the disk is full"):
            prepare(plan, output)


def test_another_command_does_not_go_on_with_unfinished_work(noise, tmp_path):
    interrupted(plan_of(noise), Output(tmp_path / "out", workers=0))
    with pytest.raises(DataError, match=r"unfinished work of another command \(other min_person_area\)"):
        prepare(plan_of(noise, min_person_area=0.2), Output(tmp_path / "out", workers=0))
    prepare(plan_of(noise), Output(tmp_path / "out", workers=0))


def test_finished_shards_are_not_converted_again(noise, tmp_path):
    output = Output(tmp_path / "out", workers=0)
    interrupted(plan_of(noise), output)
    kept = tmp_path / "out.partial" / "images" / "000000.jpg"
    kept.write_bytes(b"proof that nobody wrote here again")
    prepare(plan_of(noise), output)
    assert (tmp_path / "out/images/000000.jpg").read_bytes() == b"proof that nobody wrote here again"


def test_two_runs_into_one_folder_are_refused(noise, tmp_path):
    (tmp_path / "out.partial").mkdir()
    with FileLock(tmp_path / "out.partial" / "lock"), pytest.raises(DataError, match="another run is writing"):
        prepare(plan_of(noise), Output(tmp_path / "out", workers=0))
    prepare(plan_of(noise), Output(tmp_path / "out", workers=0))


def test_a_worker_that_is_killed_is_told(tmp_path):
    with pytest.raises(MldmError, match="a worker process was killed"):
        list(engines.in_processes(os._exit, [1], 1))


def test_a_fault_in_a_worker_comes_through():
    with pytest.raises(ZeroDivisionError):
        list(engines.in_processes(_divide, range(3), 1))


def _divide(number):
    return 1 // number


def photos(folder, *, fine, bad):
    """A folder of `fine` plain pictures, the odd ones, and `bad` bad ones; all with captions."""
    folder.mkdir()
    plain = encoded(scene(), "JPEG")
    files = {f"p{k:04d}.jpg": plain for k in range(fine)}
    files |= {f"odd_{name}": make() for name, (make, _) in FINE.items()}
    files |= {f"bad_{k}_{name}": BAD[name][0]() for k, name in zip(range(bad), [*BAD] * 9, strict=False)}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return files


def test_a_bad_picture_does_not_stop_the_others(tmp_path):
    files = photos(tmp_path / "photos", fine=200, bad=len(BAD))
    plan = plans.folder(tmp_path / "photos", caption="x", masks="none", faces="none")
    counts = prepare(plan, Output(tmp_path / "out", workers=2))
    rejected = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    reasons = {Path(one["file"]).name.split("_", 2)[2]: one["reason"] for one in rejected}
    assert reasons.keys() == BAD.keys()
    assert all(BAD[name][1] in reason for name, reason in reasons.items())
    assert counts.pictures == len(files) - len(BAD)
    read = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(read) == counts.pictures
    assert {row["image"].mode for row in read} <= {"RGB", "L"}


@pytest.mark.parametrize(("fine", "status"), [(60, 1), (200, 0)])
def test_more_than_five_in_a_hundred_rejected_ends_with_1(tmp_path, fine, status):
    photos(tmp_path / "photos", fine=fine, bad=6)
    words = ("data", "folder", "photos", "--caption", "x", "--masks", "none", "--faces", "none", "--out", "out")
    for _ in range(2):  # the second time, it is only told again
        done = forked.run("-m", "mldm_plugin.cli", *words, cwd=tmp_path)
        assert done.returncode == status, done.stderr
        assert ("of the pictures were rejected, more than 5%" in done.stderr) == bool(status)
        assert "6 rejected (rejected.jsonl)" in done.stdout
    assert (tmp_path / "out/metadata.jsonl").is_file()


def test_a_tar_does_not_tell_when_it_was_written(noise, tmp_path):
    prepare(plan_of(noise), Output(tmp_path / "out", "webdataset", workers=0))
    with tarfile.open(next((tmp_path / "out").glob("*.tar"))) as tar:
        assert {(e.mtime, e.uid, e.uname) for e in tar} == {(0, 0, "")}


def test_ctrl_c_is_answered_with_how_to_go_on(noise, tmp_path):
    running = forked.Forked(*command(noise, tmp_path / "out"))
    deadline = time.monotonic() + 60
    while not shards_done(tmp_path / "out") and time.monotonic() < deadline:
        time.sleep(0.002)
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 1
    assert "interrupted: the same command goes on where it was" in running.stderr
    assert "Traceback" not in running.stderr


@pytest.mark.parametrize("every_file", [False, True])
@pytest.mark.parametrize("format_", ["imagefolder", "parquet"])
def test_our_trainers_read_what_was_written(noise, tmp_path, format_, every_file):
    """Whichever way a trainer opens its data set, and though a list of rejected pictures lies in it."""
    plan = plan_of(noise)
    prepare(plan, Output(tmp_path / "out", format_, workers=0))
    (tmp_path / "out" / "rejected.jsonl").write_text('{"file": "x", "reason": "y"}\n')
    rows = open_rows(None, folder=str(tmp_path / "out"), cache=str(tmp_path / "cache"), every_file=every_file)
    columns = Columns(conditioning=None, mask="mask", boxes="face_boxes", keypoints="keypoints")
    training_set = TrainingSet(rows, columns, resolution=64)
    people = 0
    for index in range(0, len(training_set), 10):
        training_set.check_row(index)
        example = training_set.look(index)
        assert example.person_mask.shape == (1, 64, 64)
        assert example.keypoints.shape[1:] == (17, 3)
        people += int(example.person_mask.max() > 0)
    assert people


def listed(folder, names):
    """A plan for plain pictures of these names and splits."""
    found = []
    for name, split in names:
        path = folder / f"{name.replace('/', '_')}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(scene(), "PNG"))
        found.append(Source(name=name, path=str(path), text=f"{split} {name}", split=split))
    return Plan({"data": "test"}, lambda scratch: ({}, found), lambda facts: Recipe(None, None))


@pytest.mark.parametrize("format_", ["imagefolder", "parquet", "webdataset"])
def test_splits_may_come_in_any_order(tmp_path, format_):
    names = [(f"p{k}", ["train", "validation"][k % 3 == 0]) for k in range(9)]
    prepare(listed(tmp_path / "pictures", names), Output(tmp_path / "out", format_, shard_size=4, workers=0))
    found = [row for part in parts(tmp_path / "out") for row in part.rows()]
    assert sorted(row.columns["text"] for row in found) == sorted(f"{split} {name}" for name, split in names)


def test_a_webdataset_keeps_names_with_dots_apart(tmp_path):
    names = [("a.b", ""), ("a_b", ""), ("x.y/a", ""), ("a%2Eb", "")]
    prepare(listed(tmp_path / "pictures", names), Output(tmp_path / "out", "webdataset", workers=0))
    read = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(set(read["__key__"])) == 4


def test_an_output_that_lacks_shards_is_not_published(noise, tmp_path, monkeypatch):
    """As when a cluster's machines write to folders of their own."""
    monkeypatch.setitem(engines.ENGINES, "processes", lambda work, jobs, workers: iter(()))
    with pytest.raises(DataError, match="shards were not written to .*: is that folder the same on all machines"):
        prepare(plan_of(noise), Output(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_somebody_elses_folder_of_the_same_name_is_left_alone(noise, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/mine.txt").write_text("precious")
    with pytest.raises(DataError, match="out.partial is there and not ours"):
        prepare(plan_of(noise), Output(tmp_path / "out", workers=0))
    assert (tmp_path / "out.partial/mine.txt").read_text() == "precious"


def test_the_output_may_be_a_link_or_relative(noise, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    prepare(plan_of(noise), Output(tmp_path / "link", workers=0))
    assert (tmp_path / "disk/metadata.jsonl").is_file()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    prepare(plan_of(noise), Output(Path(), workers=2))
    assert tree(tmp_path / "here") == tree(tmp_path / "disk")


def test_a_full_disk_is_told_with_what_to_do(noise, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match="No space left on device.*make room, and give the same command again"):
        prepare(plan_of(noise), Output(tmp_path / "out", workers=0))


def test_an_output_without_a_picture_is_not_left_behind(tmp_path):
    sources = [Source(name="a", path=str(tmp_path / "a.png"), text="a"), Source(name="b", path="b.png", text="b")]
    plan = Plan({"of": "nothing"}, lambda scratch: ({}, sources), lambda facts: Recipe(None, None))
    with pytest.raises(DataError, match="none of 2 pictures could be used, and nothing was written, for example"):
        prepare(plan, Output(tmp_path / "out", workers=0))
    assert not list(tmp_path.iterdir())
