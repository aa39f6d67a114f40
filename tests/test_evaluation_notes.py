"""What was measured stays written: through kills, several processes and other ways of making it."""

import json

import numpy as np
import pytest

from mldm_plugin.errors import DataError
from mldm_plugin.evaluation.claims import MARK, claim, stamp
from mldm_plugin.evaluation.notes import Notes, read_notes


def test_numbers_nothing_and_arrays_come_back(tmp_path):
    rows = np.arange(6, dtype=np.float32).reshape(2, 3) / 7
    notes = Notes(tmp_path)
    notes.add(("a", 0), {"x": 1 / 3, "none": None, "rows": rows, "empty": np.zeros((0, 3), np.float32)})
    for values in (notes.known[("a", 0)], read_notes(tmp_path)[("a", 0)]):
        assert values["x"] == 1 / 3
        assert values["none"] is None
        assert np.array_equal(values["rows"], rows)
        assert len(values["empty"]) == 0


def test_what_is_known_is_not_lacking(tmp_path):
    Notes(tmp_path, 0).add(("a", 0), {"x": 1.0})
    Notes(tmp_path, 1).add(("a", 0), {"y": 2.0})
    notes = Notes(tmp_path)
    assert notes.lacks(("a", 0), ["x", "y", "z"]) == ["z"]
    assert notes.lacks(("a", 1), ["x"]) == ["x"]


def test_a_line_that_a_kill_tore_is_measured_again_and_hurts_no_other(tmp_path):
    """Cut at every byte, whatever is written next is read."""
    notes = Notes(tmp_path)
    notes.add(("a", 0), {"x": 1.0})
    file = tmp_path / "000.jsonl"
    whole = file.read_bytes()
    for cut in range(len(whole)):
        file.write_bytes(whole[:cut])
        Notes(tmp_path).add(("b", 0), {"x": 2.0})
        assert read_notes(tmp_path)[("b", 0)] == {"x": 2.0}


def test_a_folder_made_in_another_way_is_made_anew(tmp_path, caplog):
    folder = claim(tmp_path / "pictures", {"digest": "1"})
    (folder / "0.png").write_bytes(b"x")
    claim(folder, {"digest": "1"})
    assert (folder / "0.png").exists()
    claim(folder, {"digest": "2"})
    assert not (folder / "0.png").exists()
    assert "made anew" in caplog.text
    assert json.loads((folder / MARK).read_text()) == {"digest": "2"}


def test_what_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "holiday.png").write_bytes(b"x")
    with pytest.raises(DataError, match="choose another --out"):
        claim(tmp_path, {"digest": "1"})
    assert (tmp_path / "holiday.png").exists()


def test_a_stamp_sees_another_file_and_another_content(tmp_path):
    assert stamp(None) is None
    (tmp_path / "a").write_text("1")
    first = stamp(tmp_path)
    (tmp_path / "b").write_text("1")
    assert stamp(tmp_path) != first
    (tmp_path / "b").unlink()
    assert stamp(tmp_path) == first
    (tmp_path / "a").write_text("22")
    assert stamp(tmp_path) != first
    assert stamp(tmp_path).startswith("1 files ")
    assert len(stamp(tmp_path)) < 40, "it stands in a file beside each run's pictures, whatever the data set's size"
