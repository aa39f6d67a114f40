"""What our trainers measure of each loss's gradient: in the log, over kills, and without a trace in the weights."""

from __future__ import annotations

import signal

import pytest
from run_trainer import command, records, same_weights, start


def flags_of(preset, *overrides):
    flags = ["--loss-plugin", "mldm", "--preset", preset, "--max_train_steps", 6, "--checkpointing_steps", 2]
    return [*flags, *(word for override in overrides for word in ("--set", override))]


def test_measuring_leaves_the_trained_weights_as_they_are_to_the_bit(train, random_preset, tmp_path, capfd):
    runs = {}
    for every in (1, 0):
        assert train(tmp_path / str(every), *flags_of(random_preset, f"audit_steps={every}")) == 0
        runs[every] = records(tmp_path / str(every))
        assert ("Was each loss heard?" in capfd.readouterr().out) == (every == 1)
    assert same_weights(tmp_path / "0", tmp_path / "1")
    audited = {k for r in runs[1] for k in r} - {k for r in runs[0] for k in r}
    assert {"masked_lpips/pictures", "masked_lpips/faces"} <= audited
    assert any(k.startswith("masked_lpips/share/t") for k in audited)
    kept = [{k: v for k, v in r.items() if k not in audited} for r in runs[1]]
    assert kept == runs[0]
    assert [r["masked_lpips/pictures"] for r in runs[1]] == [r["masked_lpips/gated"] for r in runs[1]]


@pytest.mark.parametrize("balance", ["null", "gradient"])
def test_killed_and_resumed_it_is_the_same_run(balance, train, random_preset, tiny_pipeline, tiny_data, tmp_path):
    """Readings of gradients and losses every third step, a checkpoint every second: what was measured between them is
    in the checkpoint."""
    flags = [*flags_of(random_preset, "audit_steps=3", f"losses.masked_lpips.balance={balance}"), "--panel_steps", 0]
    flags += ["--curve_steps", 3]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(whole, *flags) == 0
    argv = command(killed, tiny_pipeline, tiny_data, *flags, "--resume_from_checkpoint", "latest")
    for step in (3, 5):
        assert start(argv, step) == -signal.SIGKILL
    assert start(argv) == 0
    assert (killed / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert same_weights(killed, whole)
    log = records(whole)
    assert [n for n, r in enumerate(log, 1) if "masked_lpips/pictures" in r] == [1, 3, 6]
    assert [n for n, r in enumerate(log, 1) if any(k.startswith("ldm/t") for k in r)] == [3, 6]
    if balance == "gradient":
        factors = [r["masked_lpips/balance"] for r in log if "masked_lpips/balance" in r]
        assert len(set(factors)) > 1
        assert any(r["loss"] != r["ldm"] for r in log)
