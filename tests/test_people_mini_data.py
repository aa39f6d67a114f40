"""people-mini's data: what may be seen, captions and attributes, archives, squares out of photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mldm_plugin.errors import DataError
from mldm_plugin.people_mini.archive import join_archives, read_archive, write_archive
from mldm_plugin.people_mini.attributes import attributes_of, caption, mirrored, partial_captions
from mldm_plugin.people_mini.draw_many import draw_many
from mldm_plugin.people_mini.drawn import draw_sample, flat, is_wanted, plan_of
from mldm_plugin.people_mini.photos import photo_captions, photo_rows, photo_samples, view_of
from mldm_plugin.people_mini.pictures import load_pictures, tokenized, with_mirrored_drawings
from mldm_plugin.people_mini.record import SIDE, Record, Sample
from mldm_plugin.people_mini.split import TEST_PEOPLE, TRAINED_PEOPLE, TUNING_PEOPLE, is_drawing_held_out
from mldm_plugin.people_mini.split import is_person_held_out as held_out
from mldm_plugin.people_mini.who import PEOPLE
from mldm_plugin.people_mini.words import read_tokenizer, tokens_of, words


def wanted(count: int, *, held: bool = False, start: int = 0) -> list[int]:
    """Numbers of the first drawings that are wanted."""
    numbers = (i for i in range(start, start + 1000) if is_drawing_held_out(i) == held and is_wanted(plan_of(i)))
    return [next(numbers) for _ in range(count)]


def grey(name: str, size: tuple[int, int] = (SIDE, SIDE), **row: object) -> Sample:
    return Sample(Record(name, **row), Image.new("RGB", size, (90, 120, 150)))  # type: ignore[arg-type]


def attributes(seed: int) -> dict[str, str]:
    """Those of a drawn person at random, without painting anybody."""
    from mldm_plugin.prepare.synthetic.annotation import attributes_seen
    from mldm_plugin.prepare.synthetic.picture import draw_plan

    plan = draw_plan(np.random.default_rng(seed), 64)
    made = attributes_seen(plan.people[0], plan.shot, not plan.people[0].pose.back, (True, True))
    return flat(made, plan.scene.name, "bust")


def test_who_is_held_out() -> None:
    assert [p for p in (f"P{i:03d}" for i in range(1, 11)) if held_out(p)] == [*TUNING_PEOPLE, *TEST_PEOPLE]
    assert held_out("P011")
    assert held_out("")
    assert set(PEOPLE) == set(TRAINED_PEOPLE)
    tenth = [i for i in range(1000) if is_drawing_held_out(i)]
    assert tenth == list(range(9, 1000, 10))


@pytest.mark.parametrize(
    "sample",
    [grey("drawn/0000019", index=19), *(grey(f"photo/{p}/x", person=p) for p in (*TUNING_PEOPLE, *TEST_PEOPLE))],
    ids=lambda sample: sample.record.name,
)
def test_training_refuses_what_is_held_out(tmp_path: Path, sample: Sample) -> None:
    write_archive(tmp_path / "a.zip", [grey("drawn/0000018", index=18, attributes=attributes(0)), sample])
    with pytest.raises(DataError, match="held out"):
        load_pictures([tmp_path / "a.zip"])


def test_drawing_passes_the_held_out_tenth_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mldm_plugin.people_mini.draw_many.SHARD", 10)
    [number] = wanted(1, held=True)
    start = number // 10 * 10
    seen: dict[bool, list[int]] = {}
    for held in (False, True):
        shards = draw_many(tmp_path / str(held), start, start + 10, held_out=held, quality=60, workers=1)
        before = shards[0].stat().st_mtime_ns
        draw_many(tmp_path / str(held), start, start + 10, held_out=held, quality=60, workers=1)
        assert shards[0].stat().st_mtime_ns == before  # kept
        seen[held] = [s.record.index for s in read_archive(shards[0])]
    assert seen[False]
    assert all(i % 10 != 9 for i in seen[False])
    assert seen[True] == [number]
    assert set(seen[False]) <= {i for i in range(start, start + 10) if is_wanted(plan_of(i))}


def test_a_drawing_depends_on_its_number_alone() -> None:
    [number] = wanted(1)
    first, second = draw_sample(number), draw_sample(number)
    assert first is not None
    assert second is not None
    assert first.record == second.record
    assert first.picture.size == (SIDE, SIDE)
    assert first.picture.tobytes() == second.picture.tobytes()
    unwanted = next(i for i in range(1000) if not is_wanted(plan_of(i)))
    assert draw_sample(unwanted) is None


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32 - 1))
def test_captions_say_the_attributes(seed: int) -> None:
    a = attributes(seed)
    said = attributes_of(caption(a))
    assert said == {name: a[name] for name in said}
    always = {"kind", "skin", "hair", "hair_colour", "top", "top_colour", "pattern", "scene", "view"}
    assert always <= set(said)
    for name in ("expression", "glasses", "beard", "hat", "gaze", "eye_colour"):
        assert (name in said) == (a[name] not in ("none", "unseen"))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_partial_captions_say_less_and_nothing_else(seed: int) -> None:
    a = attributes(seed)
    full, *partial = partial_captions(a, np.random.default_rng(seed).random, 3)
    assert full == caption(a)
    for text in partial:
        assert attributes_of(text).items() <= attributes_of(full).items()
    assert caption(a, []) == f"drawing of a {a['kind']}"


def test_left_and_right_change_places() -> None:
    assert (
        mirrored("a man looking to the left, in a leftover, right.")
        == "a man looking to the right, in a leftover, left."
    )
    assert mirrored(mirrored("left right")) == "left right"


def test_an_archive_comes_back(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    made = [
        Sample(
            Record(f"drawn/{i:07d}", i, attributes={"kind": "man"}, texts=["ä", "b"], face=[1.0, 2.0, 3.5, 4.0]),
            Image.fromarray(random.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)),
        )
        for i in range(3)
    ]
    assert write_archive(tmp_path / "a.zip", made[:2]) == 2
    assert write_archive(tmp_path / "b.zip", made[2:]) == 1
    assert join_archives(tmp_path / "c.zip", [tmp_path / "a.zip", tmp_path / "b.zip"]) == 3
    read = list(read_archive(tmp_path / "c.zip"))
    assert [s.record for s in read] == [s.record for s in made]
    assert [s.picture.tobytes() for s in read] == [s.picture.tobytes() for s in made]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "b.zip", "c.zip"]


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.zip"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="archive of pictures"):
        list(read_archive(path))


def test_a_write_that_fails_leaves_nothing_of_its_name(tmp_path: Path) -> None:
    def failing() -> object:
        yield grey("a")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_archive(tmp_path / "a.zip", failing())  # type: ignore[arg-type]
    assert not (tmp_path / "a.zip").exists()


def test_rows_of_openpeople_lie_in_their_pictures() -> None:
    rows = photo_rows()
    assert len(rows) == 10 * 28
    for _, picture, panel, (x0, y0, x1, y1), face in rows:
        assert 0 <= x0 < x1
        assert 0 <= y0 < y1
        assert (face is None) == (panel.split()[-1:] == ["back"])
        if face:
            assert x0 < (face[0] + face[2]) / 2 < x1
            assert y0 < (face[1] + face[3]) / 2 < y1
        assert bool(panel) == picture.endswith("sheet")


def test_only_people_of_the_training_are_read(tmp_path: Path) -> None:
    grey("a", (280, 280)).picture.save(tmp_path / "grey.jpg")
    for person in (*TRAINED_PEOPLE, *TUNING_PEOPLE, *TEST_PEOPLE):
        (tmp_path / person / "assets").mkdir(parents=True)
        for picture in {row[1] for row in photo_rows()}:
            (tmp_path / person / "assets" / f"{picture}.jpg").hardlink_to(tmp_path / "grey.jpg")
    samples = list(photo_samples(tmp_path))
    assert {s.record.person for s in samples} == set(TRAINED_PEOPLE)
    assert len(samples) == 7 * 28
    assert max(max(s.picture.size) for s in samples) == 768


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1), st.sampled_from([row for row in photo_rows() if row[0] == "P003"]))
def test_squares_out_of_photographs(seed: int, row: list) -> None:
    person, picture, panel, box, face = row
    scale = 200 / max(box[2] - box[0], box[3] - box[1])
    size = (round((box[2] - box[0]) * scale), round((box[3] - box[1]) * scale))
    inside = [(v - c) * scale for v, c in zip(face or [], box[:2] * 2, strict=False)]
    sample = grey("photo/P003/x", size, person=person, texts=[picture, panel], face=inside)
    view = view_of(sample, np.random.default_rng(seed))
    assert view.picture.size == (SIDE, SIDE)
    assert np.asarray(view.picture).std((0, 1)).max() < 2  # nothing from outside the picture
    assert len(view.record.texts) == 3
    assert view.record.texts[0].startswith("photo of cerwen, ")
    assert "cerwen" not in view.record.texts[2]


def test_captions_of_a_photograph() -> None:
    record = Record("photo/P005/x", person="P005", texts=["emotions_sheet", "happy"])
    assert photo_captions(record, "bust") == [
        "photo of emrik, smiling, bust, in a studio",
        "photo of emrik, a smiling man, fair skin, black hair in a bun, full beard, white shirt, bust, in a studio",
        "photo of a smiling man, fair skin, black hair in a bun, full beard, white shirt, bust, in a studio",
    ]


def test_every_word_of_a_caption_is_one_token(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(tmp_path)
    said = words().split()
    assert {who.name for who in PEOPLE.values()} < set(said)
    for word in said:
        assert len(tokenizer(word).input_ids) == 3, word
    for seed in range(20):
        for word in caption(attributes(seed)).replace(",", "").replace("-", " ").split():
            assert word in said
    tokens = tokens_of(tokenizer, ["photo of emrik", ""])
    padded = tokenizer(["photo of emrik", ""], padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert torch.equal(tokens, padded)


def test_pictures_in_memory(tmp_path: Path) -> None:
    drawn = [grey(f"drawn/{i:07d}", index=i, attributes=attributes(i), texts=["A man to the left."]) for i in range(4)]
    photo = grey("photo/P001/x", (300, 300), person="P001", texts=["studio_portrait", ""], face=[100, 90, 160, 170])
    write_archive(tmp_path / "a.zip", [photo, *drawn], 80)
    pictures = load_pictures([tmp_path / "a.zip"], scale=0.05)
    assert (pictures.drawings, len(pictures)) == (4, 4 + 5)
    assert pictures.pixels.shape == (9, 3, SIDE, SIDE)
    numbers = pictures.draw(4000, 0.25, torch.Generator().manual_seed(0))
    assert set(numbers.tolist()) == set(range(9))
    assert float((numbers >= 4).float().mean()) == pytest.approx(0.25, abs=0.03)
    both = with_mirrored_drawings(pictures)
    assert (both.drawings, len(both)) == (8, 13)
    assert torch.equal(both.pixels[0], pictures.pixels[0].flip(-1))
    assert torch.equal(both.pixels[4:], pictures.pixels)
    assert both.texts[0][-1] == "drawing, a man to the right."

    captions = tokenized(both.texts, lambda texts: torch.arange(len(texts))[:, None])
    unique = {text for some in both.texts for text in some}
    assert captions.empty == len(unique)
    assert captions.rows.shape == (13, 5)
