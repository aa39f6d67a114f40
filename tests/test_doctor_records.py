"""What `mldm doctor` says of a run's records: of each loss, and of how many images were seen."""

import pytest

from mldm_plugin.doctor.losses import Log, images_of, remarks


def log_of(steps=100, images=100, settings=None, **numbers):
    line = {"step": 1, "loss": 0.1, "lr": 0.01, "ldm": 0.1, "face": 0.5, "face/gated": 1} | numbers
    losses = {"face": {"weight": 0.5, "max_timestep": 400} | (settings or {})}
    return Log([line] * steps, images, losses, {})


QUIET = {"face/pictures": 1, "face/measured/t0-99": 1, "face/share/t0-99": 0.002, "face/share/t100-199": 0.009}


@pytest.mark.parametrize(
    ("log", "grade", "text"),
    [
        (
            log_of(),
            "fine",
            "face was applied to 100 of about 100 pictures (100%) in 100 steps; its T = 400 lets through",
        ),
        (log_of(images=None), "fine", "face was applied to 100 pictures in 100 steps; its T"),
        (log_of(**{"face/gated": 0}), "wrong", "face was applied to no picture in 100 steps: no picture had"),
        (log_of(50, 50, **{"face/gated": 0}), "worth a look", "its T lets through 40% of all timesteps"),
        (log_of(**{"face/nonfinite": 1}), "wrong", "face or its gradient was NaN or infinite each time"),
        (log_of(settings={"detach": True}), "worth a look", "face is detached by the preset"),
        (log_of(face=0.0), "worth a look", "face was 0 whenever it was applied"),
        (log_of(**{"face/balance": 0.0}), "wrong", "none was ever measured: the run trained without it."),
        (log_of(**{"face/balance": 3.0} | QUIET), "fine", "face was applied to 100"),
        (log_of(**QUIET), "worth a look", "face is hardly heard: its gradient was at most 0.90% of that of the"),
        (log_of(**QUIET | {"face/share/t200-399": 0.5}), "fine", "face was applied to 100"),
        (log_of(steps=3, images=3, **QUIET), "fine", "face was applied to 3"),
        (log_of(settings={"max_timestep": "x"}), "fine", "face was applied to 100"),
        (log_of(lr=0.0), "wrong", "The learning rate was 0 in all of the 100 steps"),
        (log_of(loss=None), "wrong", "The loss was NaN or infinite in 100 of 100 steps."),
        (log_of(steps=0), "wrong", "metrics.jsonl has no line"),
    ],
    ids=lambda value: None if isinstance(value, Log) else value,
)
def test_what_the_records_say(log, grade, text):
    assert [r.grade for r in remarks(log) if text in r.text] == [grade]


@pytest.mark.parametrize(
    ("steps", "batch", "accumulated", "processes", "rows", "images"),
    [
        (120, 4, 1, 1, 10, 400),  # 4, 4, 2
        (4, 2, 2, 1, 7, 14),  # (2, 2), (2, 1), twice
        (3, 2, 4, 1, 7, 21),  # a pass is one step
        (4, 2, 1, 2, 7, 16),  # 4 and 4 of two processes, one row twice
        (5, 2, 3, 2, None, 60),
    ],
)
def test_how_many_images_a_run_has_seen(steps, batch, accumulated, processes, rows, images):
    flags = {"train_batch_size": batch, "gradient_accumulation_steps": accumulated, "num_processes": processes}
    assert images_of(steps, flags, rows) == images
    assert images_of(steps, flags | {"max_train_samples": 3}, 1000) == images_of(steps, flags, 3)
    assert images_of(steps, {}, rows) is None
