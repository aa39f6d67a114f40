"""What a training prints: lines and bars that say something to a reader, and no others."""

import logging
from types import SimpleNamespace

import datasets
import pytest
from PIL import Image

from mldm_plugin.data.load import open_rows
from mldm_plugin.reproduce.commands import Training
from mldm_plugin.training.run import Run
from mldm_plugin.training.start import LOG_LINE, LogLine


def test_a_line_of_one_process_does_not_number_it():
    record = logging.makeLogRecord({"msg": "[RANK 0] checking 10 pictures", "levelname": "INFO", "name": "a"})
    assert LogLine(LOG_LINE).format(record).endswith(" INFO a: checking 10 pictures")
    assert "[RANK 0]" in logging.Formatter(LOG_LINE).format(record)


@pytest.mark.parametrize("shown", [True, False])
def test_a_folder_is_read_without_bars(tmp_path, capfd, shown):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()
    try:
        assert len(open_rows(None, folder=str(tmp_path), cache=str(tmp_path / "cache"))) == 1
        assert datasets.are_progress_bars_disabled() != shown
    finally:
        datasets.enable_progress_bars()
    assert capfd.readouterr().err == ""


def test_the_bar_shows_losses_and_the_file_everything():
    written, shown = [], []
    run = SimpleNamespace(
        lr_scheduler=SimpleNamespace(get_last_lr=lambda: [0.1]),
        accelerator=SimpleNamespace(is_main_process=True, log=lambda *_, **__: None),
        files=SimpleNamespace(add=lambda record, proof: written.append(record)),
        objective=SimpleNamespace(proof=""),
        steps_done=7,
    )
    bar = SimpleNamespace(update=lambda _: None, set_postfix=shown.append)
    numbers = {"loss": 1.0, "ldm": 2.0, "face": 3.0, "face/gated": 0.0, "evaluate/one_step_error": 4.0}
    Run.log(run, numbers, bar)
    assert shown == [{"loss": 1.0, "lr": 0.1, "ldm": 2.0, "face": 3.0}]
    assert written[0].keys() >= numbers.keys()


def test_bars_in_a_log_are_rare(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr("subprocess.Popen", lambda words, **options: started.append(options["env"]))
    training = Training("a", tmp_path, "controlnet", 3, ())
    with (tmp_path / "log").open("wb") as out:
        training.start(1, out)
    training.start(1)
    in_a_log, on_a_terminal = started
    assert in_a_log["TQDM_MININTERVAL"] == "30"
    assert "TQDM_MININTERVAL" not in on_a_terminal
