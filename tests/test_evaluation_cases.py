"""Prompts from captions, files and names of pictures; what cannot be read is said in one line."""

import json
from dataclasses import asdict, replace

import pytest

from mldm_plugin.errors import DataError
from mldm_plugin.evaluation import cases
from mldm_plugin.evaluation.cases import (
    Case,
    cases_of_file,
    cases_of_photographs,
    cases_of_pictures,
    key_of,
    open_photographs,
    with_photographs,
)


def test_a_line_is_a_prompt_of_one_person_and_json_says_more(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(
        'a man\n\n{"text": "two women", "people": 2, "hands": 3}\n{"text": "a street", "people": null}\n', "utf-8"
    )
    assert cases_of_file(path, 9) == [
        Case(key_of(0, "a man", 1, None), "a man", 1),
        Case(key_of(2, "two women", 2, 3), "two women", 2, 3),
        Case(key_of(3, "a street", None, None), "a street", None),
    ]
    assert len(cases_of_file(path, 2)) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no prompts"),
        (b"\n \n", "holds no prompts"),
        (b"\xff\xfe", "cannot be read"),
        (b'{"text": "x"', "line 1: "),
        (b'{"text": 3}', "line 1: expected `text`"),
        (b'{"text": "x", "people": "two"}', "line 1: expected `text`"),
        (b'{"text": "x", "row": -1}', "line 1: expected `text`"),
        (b'{"text": "x", "key": "a"}\n{"text": "y", "key": "a"}', "2 prompts have the key 'a'"),
    ],
)
def test_bad_files_of_prompts_are_refused_in_one_line(tmp_path, content, said):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as error:
        cases_of_file(path, 9)
    assert "\n" not in str(error.value)


def test_the_set_that_ships_shows_people_in_many_ways():
    path = cases.shipped_prompts("people")
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    found = cases_of_file(path, 1000)
    assert len({case.text for case in found}) == len(found) == len(lines) >= 190
    views = {line["view"] for line in lines}
    assert views == {"portrait", "full body", "group", "hands", "far", "near", "action"}
    assert all(sum(line["view"] == view for line in lines) >= 15 for view in views)
    assert {case.people for case in found} == {1, 2, 3, 4, 5}


def test_captions_of_photographs_with_the_people_of_their_masks(tiny_data):
    photographs = open_photographs(tiny_data, 64)
    found = cases_of_photographs(photographs, 3, seed=0)
    assert [case.key for case in found] == [key_of(case.row, case.text, case.people, case.hands) for case in found]
    assert len(found) == 3
    assert found == cases_of_photographs(photographs, 3, seed=0)
    assert {c.row for c in found} <= {c.row for c in cases_of_photographs(photographs, 99, seed=0)}
    assert all(case.text == photographs.captions[case.row] for case in found)
    masked = photographs.look(found[0].row).person_mask
    assert found[0].people == len(masked.unique()) - 1


def test_photographs_of_a_split_that_nobody_trains_on(tiny_data, tmp_path, caplog):
    import shutil

    assert open_photographs(tiny_data, 64).split == "train"
    assert "held out" in caplog.text
    caplog.clear()
    for split in ("train", "validation"):
        shutil.copytree(tiny_data, tmp_path / "both" / split)
    assert open_photographs(tmp_path / "both", 64).split == "validation"
    assert not caplog.text


def test_pictures_are_cases_by_their_names(tmp_path):
    names = ("00007_1a2b3c-0", "00007_1a2b3c-1", "00008-0", "00008-11", "b", "c-x")
    paths = [tmp_path / f"{name}.png" for name in names]
    assert [case.key for case in cases_of_pictures(paths)] == ["00007_1a2b3c", "00008", "b", "c-x"]


def test_numbered_pictures_of_a_camera_are_cases_each(tmp_path):
    names = [f"img-{i}" for i in range(12)] + ["1-0", "000071-0", "00007_XYZ123-0"]
    assert [case.key for case in cases_of_pictures([tmp_path / f"{name}.jpg" for name in names])] == sorted(names)


def test_prompts_of_an_earlier_evaluation_find_their_photographs_again(tiny_data, tmp_path):
    """By row and caption: of another data set, or without one, they are prompts alone."""
    photographs = open_photographs(tiny_data, 64)
    known = cases_of_photographs(photographs, 4, seed=0)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(asdict(case)) + "\n" for case in known))
    read = cases_of_file(tmp_path / "prompts.jsonl", 9)
    assert with_photographs(read, photographs) == known
    alone = [replace(case, row=None) for case in known]
    assert with_photographs(read, None) == alone
    others = replace(photographs, captions=["another"] * len(photographs))
    assert with_photographs(read, others) == alone
    assert with_photographs([replace(read[0], row=10_000)], photographs) == alone[:1]
