"""kohya's description of a data set, written for a training set of ours, and read."""

import json
import sys
from pathlib import Path

import pytest

from mldm_plugin.errors import DataError
from mldm_plugin.prepare.kohya_dataset import read_dataset, write_dataset

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")


def test_kohyas_data_set_is_written_and_read(tmp_path):
    photos = tmp_path / 'pe\'ople "x"'
    (photos / "train").mkdir(parents=True)
    rows = (json.dumps({"file_name": f"images/{name}.jpg"}) + "\n" for name in "ab")
    (photos / "train" / "metadata.jsonl").write_text("".join(rows), encoding="utf-8")
    out = tmp_path / "dataset.toml"
    assert write_dataset(photos, out, resolution=512, batch=2, repeats=3) == 2
    told = tomllib.loads(out.read_text(encoding="utf-8"))
    [one] = told["datasets"]
    [subset] = one["subsets"]
    assert (one["resolution"], one["batch_size"], subset["num_repeats"]) == (512, 2, 3)
    captions = json.loads(Path(subset["metadata_file"]).read_text(encoding="utf-8"))
    assert set(captions) == {str(photos.resolve() / "train" / "images" / f"{name}.jpg") for name in "ab"}
    assert read_dataset(out) == (photos.resolve(), None)
    with pytest.raises(DataError, match="lists no pictures"):
        write_dataset(tmp_path / "none", out, resolution=512, batch=2, repeats=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[datasets]", "cannot be read as TOML"),
        ("[[datasets]]\n", "names 0 folders"),
        ("datasets = 3", "datasets is 3, expected tables"),
        ("datasets = ['a']", "datasets is \\['a'\\], expected tables"),
        ("[[datasets]]\nsubsets = 'a'", "subsets is a, expected tables"),
        (
            "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nmetadata_file = 'captions.json'",
            "captions in captions.json, which is not read: write each into NAME.txt",
        ),
        (
            "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n[[datasets.subsets]]\nimage_dir = 'b'",
            "names 2 folders",
        ),
    ],
)
def test_a_data_set_of_kohyas_that_cannot_be_taken(tmp_path, text, message):
    (tmp_path / "d.toml").write_text(text)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path / "d.toml")


def test_kohyas_words_for_a_person_are_who_it_is(tmp_path):
    (tmp_path / "d.toml").write_text(
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'photos'\nclass_tokens = 'ana woman'\n"
    )
    assert read_dataset(tmp_path / "d.toml") == (tmp_path / "photos", "ana woman")


def test_regularisation_pictures_of_kohyas_are_passed_over_which_is_told(tmp_path, capsys):
    (tmp_path / "d.toml").write_text(
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'photos'\n"
        "[[datasets.subsets]]\nimage_dir = 'women'\nis_reg = true\n"
    )
    assert read_dataset(tmp_path / "d.toml") == (tmp_path / "photos", None)
    assert capsys.readouterr().err == "note: regularisation pictures are not trained on here: women\n"
