"""One command as several processes: who speaks, whose status it is, and that none is left behind."""

import subprocess
import sys
import time

import psutil
import pytest
from click.testing import CliRunner

from mldm_plugin.cli import main
from mldm_plugin.evaluation import spreading
from mldm_plugin.evaluation.processes import LOOK
from mldm_plugin.evaluation.spreading import spread

RANK = "import os, sys, time; rank = int(os.environ['RANK'])\n"


def program(text):
    return [sys.executable, "-c", RANK + text]


def test_they_find_each_other(capfd):
    """Real processes of torch.distributed, by the environment alone."""
    text = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
x = torch.tensor([rank + 1.0]); dist.all_reduce(x)
print(f"{rank} of {dist.get_world_size()}: {x.item()}")
dist.destroy_process_group()
"""
    assert spread(program(text), 2) == 0
    assert capfd.readouterr().out == "0 of 2: 3.0\n", "the first speaks for all"


@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_fails_is_heard_once_and_ends_the_others(failing, capfd, monkeypatch):
    monkeypatch.setattr(spreading, "PATIENCE", 0.2)
    start, before = time.monotonic(), set(psutil.Process().children())
    assert spread(program(f"if rank == {failing}: sys.exit('mldm: this is wrong')\ntime.sleep(60)"), 2) == 1
    assert time.monotonic() - start < 20
    assert capfd.readouterr().err == "mldm: this is wrong\n"
    assert not set(psutil.Process().children()) - before


def test_what_all_say_is_said_once(capfd):
    assert spread(program("sys.exit('mldm: this is wrong')"), 2) == 1
    assert capfd.readouterr().err == "mldm: this is wrong\n"


def test_one_that_is_killed_is_not_the_reason_if_another_failed(capfd):
    assert spread(program("if rank: sys.exit('why')\nos.kill(os.getpid(), 9)"), 2) == 1
    killed = "mldm: process 0 was ended by signal 9, as where memory runs out\n"
    assert capfd.readouterr().err == killed + "why\n"
    assert spread(program("if not rank: os.kill(os.getpid(), 9)"), 2) == 9
    assert capfd.readouterr().err == killed


@pytest.mark.parametrize(
    ("fails", "status", "reason"),
    [("sys.exit('mldm: the reason')", 1, "mldm: the reason"), ("os.kill(os.getpid(), 9)", 9, "ended by signal 9")],
    ids=["says why", "killed"],
)
def test_the_reason_is_not_that_of_one_that_was_asked_to_end(fails, status, reason, capfd, monkeypatch):
    """`mldm` answers SIGTERM with a word and a status of its own."""
    monkeypatch.setattr(spreading, "PATIENCE", 2)
    words = f"signal.signal(signal.SIGTERM, lambda *_: sys.exit('Aborted!'))\nif rank: {fails}\ntime.sleep(60)"
    assert spread(program("import signal\n" + words), 2) == status
    assert reason in capfd.readouterr().err


def test_a_stop_reaches_all_of_them(tmp_path):
    """SIGTERM to the one that was started ends those that it started, in order."""
    words = program(f"open(r'{tmp_path}/' + str(rank), 'w').write(str(os.getpid()))\ntime.sleep(60)")
    text = (
        "from mldm_plugin.stopping import stopping_in_order\nfrom mldm_plugin.evaluation.spreading import spread\n"
        f"with stopping_in_order():\n    spread({words!r}, 2)"
    )
    process = subprocess.Popen([sys.executable, "-c", text], stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while not all((tmp_path / str(k)).is_file() and (tmp_path / str(k)).read_text() for k in range(2)):
        assert time.monotonic() < end
        time.sleep(0.05)
    pids = [int((tmp_path / str(k)).read_text()) for k in range(2)]
    process.terminate()
    assert process.wait(30) != 0
    process.stderr.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.parametrize(("world", "spreads"), [(None, True), ("1", True), ("2", False)])
def test_processes_are_started_but_by_one_of_them(world, spreads, tmp_path, monkeypatch):
    """A WORLD_SIZE of 1 is one process: clusters set it everywhere."""
    asked = []
    monkeypatch.setattr(spreading, "spread", lambda words, processes: asked.append(processes) or 3)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world is not None:
        monkeypatch.setenv("WORLD_SIZE", world)
    given = ["evaluate", "--processes", "2", "--checkpoints", str(tmp_path), "--out", str(tmp_path / "out")]
    assert (CliRunner().invoke(main, given).exit_code == 3) == spreads
    assert asked == ([2] if spreads else [])


def runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("alone", [False, True], ids=["waited for", "by a shell that is left"])
def test_a_kill_of_the_one_that_started_them_leaves_none_at_work(alone, tmp_path):
    """SIGKILL cannot be passed on: those that share an evaluation notice by themselves, and the next call is alone.

    Those that nobody waits for, as a shell starts them for a night, work on.
    """
    there = f"open(r'{tmp_path}/' + str(rank), 'w').write(str(os.getpid()))\ntime.sleep(120)"
    first = f"del os.environ[{spreading.SPREAD!r}]\n" if alone else ""
    share = "from mldm_plugin.evaluation.processes import Processes\nassert Processes().number == 2\n"
    words = program(first + share + there)
    text = f"from mldm_plugin.evaluation.spreading import spread\nspread({words!r}, 2)"
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen([sys.executable, "-c", text], stderr=said)
    end = time.monotonic() + 120
    while not all((tmp_path / str(k)).is_file() and (tmp_path / str(k)).read_text() for k in range(2)):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    pids = [int((tmp_path / str(k)).read_text()) for k in range(2)]
    assert all(map(runs, pids))
    process.kill()
    process.wait()
    if alone:
        time.sleep(4 * LOOK)
        assert all(map(runs, pids))
        for pid in pids:
            psutil.Process(pid).kill()
    end = time.monotonic() + 30
    while any(map(runs, pids)):
        assert time.monotonic() < end, "they are still at work"
        time.sleep(0.05)
    assert ("for the one that started it" in (tmp_path / "said").read_text()) != alone
