import pytest
import torch

from mldm_plugin.prepare.inspection import Findings, placed
from mldm_plugin.prepare.remarks import Remarks, face_sizes_at, said_of, verdict


def row(name="a", size=(640, 512), areas=(0.25,), faces=(40.0,), **more):
    people = {"people": len(areas), "people_areas": list(areas), "person_area": sum(areas)}
    return Findings(name, size=size, face_sizes=list(faces), **people, **more)


def said(rows, faulty=0, rejected=0, thrown_out=0, resolution=512):
    remarks = Remarks(resolution)
    for one in rows:
        remarks.add(one)
    return remarks.of(faulty, len(rows), rejected, thrown_out)


def texts(remarks, grade):
    return [remark.text for remark in remarks if remark.grade == grade]


def test_a_good_set_is_fine_and_says_why():
    remarks = said([row("a"), row("b", areas=(0.2, 0.1), faces=(32.0, 50.0))])
    assert verdict(remarks) == "Nothing is wrong."
    assert texts(remarks, "fine") == [
        "Every row can be read, and its columns fit each other.",
        "Every picture has the 512 px of training.",
        "3 people in 2 pictures with a mask, nobody lost.",
        "Every face has 32 px or more at 512 px.",
    ]


def test_what_was_found_on_the_first_day_is_said_in_words():
    rows = [row(str(k), size=(300, 400), faces=(15.0,)) for k in range(9)]
    rows += [row(str(k), size=(300, 400)) for k in range(9, 19)]
    remarks = said(rows)
    assert texts(remarks, "worth a look") == [
        "All 19 pictures are smaller than the 512 px of training: enlarged, they teach blur.",
        "9 of 19 faces are less than 32 px wide at 512 px: too small for the face loss.",
    ]
    assert verdict(remarks) == "Nothing is wrong, and 2 things are worth a look."
    assert remarks[1].names == tuple(str(k) for k in range(9))
    assert not texts(said(rows, resolution=256), "worth a look")[0].startswith("All 19 pictures")


def test_a_face_is_as_wide_as_in_training():
    """A photograph of a phone has a face of 200 pixels that is one of 25 at 512 px; a thumbnail's grows."""
    phone, thumbnail = row(size=(4096, 6144), faces=(200.0,)), row(size=(256, 256), faces=(20.0,))
    assert face_sizes_at(phone, 512) == [25]
    assert any("less than 32 px wide at 512 px" in text for text in texts(said([phone]), "worth a look"))
    assert not any("px wide" in text for text in texts(said([phone], resolution=1024), "worth a look"))
    assert "Every face has 32 px or more at 512 px." in texts(said([thumbnail]), "fine")


@pytest.mark.parametrize(
    ("rows", "counts", "text"),
    [
        ([row(areas=(), faces=())], {}, "The mask shows nobody."),
        ([row(hidden=2)], {}, "Besides the 1 person in the masks, 2 more have no pixel: hidden by others, or lost."),
        ([row(areas=(0.3, 0.001), faces=(40.0, 40.0))], {}, "1 of 2 people is less than 0.5% of the picture."),
        ([row(areas=(0.3, 0.3))], {}, "1 of 2 people has no face box: turned away, or not found."),
        ([row()], {"rejected": 1}, "1 picture was rejected when the set was made (rejected.jsonl says why)."),
        ([Findings("a", size=(512, 512))], {}, "No picture has a mask: losses on people have nothing to look at."),
        ([Findings("a", size=(512, 512))], {}, "No row has face boxes: the face loss has nothing to look at."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_people_and_faces_that_are_lost_are_worth_a_look(rows, counts, text):
    assert text in texts(said(rows, **counts), "worth a look")


def test_pictures_without_a_mask_among_others_are_named():
    remarks = said([row("a"), row("b"), Findings("c", size=(512, 512))])
    (found,) = [remark for remark in remarks if "no mask" in remark.text]
    assert found.grade == "worth a look"
    assert found.text == "1 of 3 pictures has no mask: losses on people pass over them."
    assert found.names == ("c",)


def test_a_mask_that_is_everything_is_as_good_as_none():
    assert "1 of 2 masks is people from edge to edge: as if there were no mask." in texts(
        said([row(areas=(0.995,), on_border=0.99, in_middle=1.0), row()]), "worth a look"
    )


@pytest.mark.parametrize(
    ("inverted", "upright", "grade"), [(1, 0, "worth a look"), (4, 4, "wrong"), (4, 5, "worth a look"), (0, 9, None)]
)
def test_masks_that_look_inverted_are_wrong_where_they_are_many(inverted, upright, grade):
    rows = [row(on_border=0.8, in_middle=0.1)] * inverted + [row(on_border=0.4, in_middle=0.3)] * upright
    assert [remark.grade for remark in said(rows) if "inverted" in remark.text] == ([grade] if grade else [])


def test_border_and_middle_by_hand():
    """Of 16 x 32 the border is 1 and 2 pixels wide, 16·32 − 14·28 = 120 pixels; the middle is 8 x 16."""
    people = torch.zeros(16, 32, dtype=torch.bool)
    people[0], people[4:8, 8:24] = True, True
    assert placed(people) == pytest.approx((32 / 120, 64 / 128))
    assert placed(~people) == pytest.approx((88 / 120, 64 / 128))
    assert placed(torch.ones(1, 1, dtype=torch.bool)) == (1.0, 1.0)


def test_faults_come_first():
    remarks = said([row(size=(64, 64)), row()], faulty=1, thrown_out=3)
    assert remarks[0].text == "1 of 2 rows has faults: a trainer would stop at them."
    assert verdict(remarks) == "Something is wrong, and 1 thing is worth a look."
    assert "3 pictures thrown out in a review." in texts(remarks, "fine")


def test_a_crowd_is_named_and_is_nobody():
    assert "1 crowd: masked, not counted as people." in texts(said([row(crowds=1)]), "fine")


def test_one_row_by_itself():
    assert texts(said_of(row(size=(100, 100))), "worth a look") == [
        "The picture is smaller than the 512 px of training: enlarged, they teach blur."
    ]
