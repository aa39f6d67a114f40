"""The paper's figures by a model of random weights: what is changed, what stays, and from which noise."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny_conditional import ATTRIBUTES, MASK, SIDE, make_conditional, write_conditional, write_faces

from mldm_plugin.cli import main
from mldm_plugin.conditions.celeba import ATTRIBUTES as NAMES
from mldm_plugin.conditions.celeba import COLOURS, PARTS
from mldm_plugin.errors import DataError, MldmError
from mldm_plugin.evaluation.cases import open_photographs
from mldm_plugin.faces.edits import BESIDE_MASK, CHANGED, edits_with, parts_of, turned
from mldm_plugin.faces.figures import Drawing, Figure
from mldm_plugin.faces.model import FacesModel, noise_for
from mldm_plugin.faces.sheet import GAP, MARGIN, Cell, Line, write_sheet

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
QUICK = Drawing(steps=2, samples=3)


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return write_faces(tmp_path_factory.mktemp("data"), 36)


@pytest.fixture(scope="module")
def model():
    return FacesModel("both", make_conditional())


@pytest.fixture(scope="module")
def held_out(faces, model):
    return open_photographs(faces, SIDE, conditions=model.encoders)


def figure(number, models, photographs, **options):
    return Figure(number, models, photographs, QUICK, **options)


def array(cell):
    return np.asarray(cell.picture)


def label(name):
    return PARTS.index(name) + 1


# Edits


def test_an_attribute_is_turned_over_and_a_head_has_one_hair():
    face = torch.zeros(len(NAMES))
    face[[NAMES.index(name) for name in ("Black_Hair", "Young", "Smiling")]] = 1
    blond, said = turned(face, NAMES, "Blond_Hair")
    assert said == "+ Blond Hair"
    assert {NAMES[k] for k in blond.nonzero()[:, 0].tolist()} == {"Blond_Hair", "Young", "Smiling"}
    sad, said = turned(face, NAMES, "Smiling")
    assert said == "- Smiling"
    assert {NAMES[k] for k in sad.nonzero()[:, 0].tolist()} == {"Black_Hair", "Young"}
    assert face.sum() == 3, "the face itself stays"
    with pytest.raises(MldmError, match="unknown attribute 'Smilling': did you mean 'Smiling'"):
        turned(face, NAMES, "Smilling")


def test_masks_edited_by_hand(model):
    encoder = model.encoders["semantic_mask"]
    skin, hair, mouth, eye, other_eye = map(label, ("skin", "hair", "mouth", "l_eye", "r_eye"))
    own = torch.zeros(1, 16, 16, dtype=torch.uint8)
    own[0, 4:12, 4:12] = skin
    own[0, 2:4, 4:12] = hair
    own[0, 9, 6:10] = mouth
    own[0, 6, 9] = eye
    donor = torch.zeros_like(own)
    donor[0, 8, 5:11] = mouth
    edits = edits_with(encoder, [own, donor], own)
    made = {said: edit(own)[0] for said, edit in edits.all().items()}
    assert list(made) == ["the mask", "mirrored", "more hair", "another's mouth"]
    assert torch.equal(made["the mask"], own[0])
    assert made["mirrored"][6, 6] == other_eye, "left and right change their names"
    assert made["mirrored"][6, 9] == skin
    expected = own[0].clone()
    expected[1, 3:13] = hair
    expected[2:5, [3, 12]] = hair
    assert torch.equal(made["more hair"], expected), "a sixteenth of the side further, and not over the face"
    expected = own[0].clone()
    expected[9, 6:10] = skin
    expected[8, 5:11] = mouth
    assert torch.equal(made["another's mouth"], expected)
    for hair_is, taken in ((0, False), (hair, True)):  # under a hat it is not whole, and that of another is taken
        under, bare = torch.zeros_like(own), torch.zeros_like(own)
        under[0, 2:9], under[0, :2], bare[0, 2:4] = hair, label("hat"), hair_is
        assert ("hair" in edits_with(encoder, [own, under, bare], own).donors) == taken
    assert parts_of(encoder) == list(PARTS)
    with pytest.raises(DataError, match="AttributesEncoder names no parts"):
        parts_of(model.encoders["attributes"])


# Figures


def test_figure_3_changes_one_attribute_at_a_time_from_the_same_noise(model, held_out):
    lines = figure(3, [model], held_out, rows=[1, 3]).lines()
    assert [line.title for line in lines] == ["noise 2", "noise 4"]
    face = held_out.look(1).conditions["attributes"]
    for cell, name in zip(lines[0].cells, (None, *CHANGED), strict=True):
        value, said = (face, "as it is") if name is None else turned(face, NAMES, name)
        assert cell.said == said
        alone = model.draw({"attributes": value}, noise_for(0, "1"), 2, 1.0)
        assert np.array_equal(array(cell), np.asarray(alone))
    assert all((array(cell) != array(lines[0].cells[0])).any() for cell in lines[0].cells[1:])
    chosen = figure(3, [model], held_out, rows=[1], attributes=["Young"]).lines()
    assert np.array_equal(array(chosen[0].cells[0]), array(lines[0].cells[0]))
    assert [cell.said for cell in chosen[0].cells] == ["as it is", turned(face, NAMES, "Young")[1]]


def test_figure_4_has_each_mask_over_the_face_that_is_drawn_of_it(model, held_out):
    masks, drawn = figure(4, [model], held_out, rows=[0]).lines()
    assert masks.cells[0].picture is None
    assert drawn.cells[0].said == "held-out face"
    said = [cell.said for cell in masks.cells[1:]]
    assert said[:4] == ["the mask", "mirrored", "more hair", "another's hair"]
    own = held_out.look(0).conditions["semantic_mask"]
    colours = {colour: number for number, colour in enumerate(COLOURS)}
    for cell, face in zip(masks.cells[1:], drawn.cells[1:], strict=True):
        pixels = array(cell).reshape(-1, 3)
        labels = torch.tensor([colours[tuple(pixel)] for pixel in pixels.tolist()], dtype=torch.uint8)
        labels = labels.reshape(1, SIDE, SIDE)
        assert torch.equal(labels, own) == (cell.said == "the mask")
        alone = model.draw({"semantic_mask": labels}, noise_for(0, "0"), 2, 1.0)
        assert np.array_equal(array(face), np.asarray(alone))


def test_figure_5_changes_both(model, held_out):
    masks, *drawn = figure(5, [model], held_out).lines()
    assert drawn[0].title == "as it is"
    assert len(drawn) == 4
    given = held_out.look(0).conditions
    changed = {
        "attributes": turned(given["attributes"], NAMES, BESIDE_MASK[0])[0],
        "semantic_mask": given["semantic_mask"],
    }
    alone = model.draw(changed, noise_for(0, "0"), 2, 1.0)
    assert masks.cells[1].said == "the mask"
    assert np.array_equal(array(drawn[1].cells[1]), np.asarray(alone))
    assert all(len(line.cells) == len(masks.cells) for line in drawn)


def test_figure_6_tells_more_of_the_face_from_line_to_line(model, held_out):
    made = figure(6, [model], held_out, rows=[2])
    lines = made.lines()
    assert [line.title for line in lines] == ["unconditional", "attributes", "mask", "attributes and mask"]
    given = held_out.look(2).conditions
    for line, names in zip(
        lines, ((), ("attributes",), ("semantic_mask",), ("attributes", "semantic_mask")), strict=True
    ):
        told = {name: given[name] for name in names}
        for sample, cell in enumerate(line.cells[1:]):
            alone = model.draw(told, noise_for(0, "2", sample), 2, 1.0, eta=1.0)
            assert np.array_equal(array(cell), np.asarray(alone))
        assert (array(line.cells[1]) != array(line.cells[2])).any()
    assert made.blind == set()


def test_several_models_stand_beside_each_other_each_with_all_that_it_knows(model, held_out):
    others = [FacesModel("nothing", make_conditional(())), FacesModel("mask", make_conditional((MASK,)), drops=False)]
    made = figure(6, [*others, model], held_out, rows=[0])
    lines = made.lines()
    assert [line.title for line in lines] == ["nothing", "mask", "both"]
    mask = {"semantic_mask": held_out.look(0).conditions["semantic_mask"]}
    assert np.array_equal(
        array(lines[1].cells[1]), np.asarray(others[1].draw(mask, noise_for(0, "0"), 2, 1.0, eta=1.0))
    )
    assert made.blind == set(), "each got all that it was trained with"


def test_who_never_learnt_to_do_without_is_named(held_out):
    made = figure(3, [FacesModel("stiff", make_conditional(), drops=False)], held_out, rows=[0], attributes=["Male"])
    made.lines()
    assert made.blind == {"stiff"}


def test_the_sheet_enlarges_small_pictures_by_whole_numbers(tmp_path):
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    blue.putpixel((0, 0), (255, 255, 255))
    lines = [
        Line("a title", [Cell(red, "words of a cell that go over two lines"), Cell()]),
        Line("", [Cell(), Cell(blue, "", True)]),
    ]
    write_sheet(lines, tmp_path / "new" / "sheet.png")
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    reds, blues = ((pixels == colour).all(-1).nonzero() for colour in ([255, 0, 0], [0, 0, 255]))
    tile = 64 * 4
    assert [int(np.ptp(axis)) + 1 for axis in (*reds, *blues)] == [tile] * 4
    assert len(blues[0]) == tile * tile - 16, "labels are not smoothed"
    assert blues[1].min() - reds[1].max() == GAP + 1
    assert reds[0].min() == MARGIN


# The command


def command(*words):
    return CliRunner().invoke(main, ["faces", "figure", *map(str, words)])


@pytest.fixture(scope="module")
def runs(faces, tmp_path_factory):
    top = tmp_path_factory.mktemp("runs")
    for name, conditions in {"both": (ATTRIBUTES, MASK), "mask": (MASK,)}.items():
        write_conditional(top / name, conditions)
        told = {"train_data_dir": str(faces), "condition_dropout": 0}
        (top / name / "arguments.json").write_text(json.dumps(told))
    return top


def test_the_command_draws_the_faces_of_the_runs_own_data(runs, tmp_path):
    out = tmp_path / "figure3.png"
    done = command(3, runs / "both", "--out", out, "--row", 0, "--attribute", "Smiling", "--steps", 2)
    assert done.exit_code == 0, done.output
    assert f"Look at {out}" in done.output
    assert "both was trained with all its conditions (--condition_dropout 0)" in done.output
    with Image.open(out) as sheet:
        assert sheet.width > 2 * 256


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((3, "{runs}/mask"), "figure 3 changes attributes, and mask draws from semantic_mask: give a run with"),
        ((5, "{runs}/mask"), "give a run with --condition attributes semantic_mask"),
        ((4, "{runs}/mask", "{runs}/both"), "figure 4 is of one RUN, 2 came"),
        ((3, "{runs}/both", "--row", 99), "--row 99: the held-out faces have numbers 0 to 5"),
        ((3, "{runs}/both", "--attribute", "Smile"), "unknown attribute 'Smile'"),
        ((3, "{runs}"), "is a folder with none of what was looked for"),
        ((3, "{runs}/both", "--data", "{runs}"), "{runs}"),
    ],
)
def test_what_the_command_refuses_is_one_line(runs, tmp_path, words, message):
    given = [str(word).format(runs=runs) for word in words]
    done = command(*given, "--steps", 2, "--out", tmp_path / "f.png")
    assert done.exit_code == 1
    assert message.format(runs=runs) in done.output
    assert not (tmp_path / "f.png").exists()


def test_only_png_is_written_and_data_has_to_be_known(runs, tmp_path):
    assert "expected a name that ends with .png" in command(3, runs / "both", "--out", tmp_path / "f.jpg").output
    lone = write_conditional(tmp_path / "lone")
    assert "does not say what it was trained on: give --data" in command(3, lone, "--out", tmp_path / "f.png").output
