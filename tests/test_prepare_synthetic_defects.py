"""What was drawn wrongly once: teal checks called grey, gaps at shoulders, mouths over chins, spikes beside skirts."""

import numpy as np
import pytest

from mldm_plugin.prepare.synthetic.canvas import Layer, Light
from mldm_plugin.prepare.synthetic.caption import clothing
from mldm_plugin.prepare.synthetic.clothes import Clothes
from mldm_plugin.prepare.synthetic.curve import encloses
from mldm_plugin.prepare.synthetic.face import Face
from mldm_plugin.prepare.synthetic.picture import draw_plan

SIZE = (700, 700)


@pytest.fixture(scope="module")
def people():
    plans = [draw_plan(np.random.default_rng([5, k]), 256) for k in range(250)]
    return [person for plan in plans for person in plan.people if not person.pose.back]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("checked", "a checked grey and teal shirt"),
        ("striped", "a striped grey and teal shirt"),
        ("dotted", "a dotted grey shirt"),
        ("plain", "a grey shirt"),
    ],
)
def test_a_caption_names_both_colours_where_a_pattern_shows_as_much_of_each(pattern, words):
    worn = {"pattern": pattern, "colour": "grey", "second_colour": "teal", "top": "shirt"}
    assert clothing({"clothing": worn}) == words


def test_mouths_lie_within_the_face(people):
    for person in people:
        face = Face(Layer((8, 8), Light(0.5, -0.8, (1, 1, 1), (0, 0, 0))), person.head)
        _, low = face.mouth_lines()
        lip = low + np.stack([0 * low[:, 0], 0.036 * face.look.lips * np.sqrt(1 - np.linspace(-1, 1, 17) ** 2)], 1)
        assert encloses(face.head.outline(), face.head.put(lip, 0.03)), person.look


def test_most_mouths_are_as_they_were_drawn(people):
    smaller = 0
    for person in people:
        face = Face(Layer((8, 8), Light(0.5, -0.8, (1, 1, 1), (0, 0, 0))), person.head)
        top, _ = face.mouth_lines()
        smaller += abs(top[-1, 0]) < face.mimic.width - 1e-9
    assert 0 < smaller < 0.15 * len(people)


def test_no_spike_stands_out_beside_a_skirt(people):
    skirted = [person for person in people if person.look.bottom == "skirt" or person.look.top == "dress"]
    assert len(skirted) > 20
    for person in skirted:
        clothes = Clothes(None, person.frame, person.look, person.pose)
        hip = 0.33 * person.look.hips * (0.6 + 0.4 * clothes.size) + 0.28 * clothes.girth
        trunk = clothes.trunk_curve(low=0.92)
        below = trunk[trunk[:, 1] > -0.3 * abs(clothes.joint("neck")[1])]
        assert np.abs(below[:, 0] - clothes.joint("neck")[0] * 0.2).max() < hip + 0.02


def test_there_is_no_gap_between_neck_and_shoulders(people):
    """From the neck outwards the line over the shoulders falls; a gap would make it rise again towards the arm."""
    for person in people[:30]:
        layer = Layer(SIZE, Light(0.5, -0.8, (1, 1, 1), (0, 0, 0)))
        frame = type(person.frame)(350.0, 600.0, 150.0)
        clothes = Clothes(layer, frame, person.look, person.pose)
        clothes.trunk()
        clothes.neck_over()
        for word in ("left", "right"):
            clothes.arm(word)
            (x0, _), (x1, _) = frame.point(*clothes.joint("neck")), frame.point(*clothes.joint(f"{word}_shoulder"))
            side = 1 if x1 > x0 else -1
            columns = range(int(x0 + side * 40), int(x1), side)
            tops = np.array([np.argmax(layer.cover[:, x] > 0.5) for x in columns])
            if "raised" in person.pose.arms or min(clothes.joint("left_elbow")[1], clothes.joint("right_elbow")[1]) < (
                clothes.joint("neck")[1] + 0.3
            ):
                continue
            assert (tops - np.minimum.accumulate(tops[::-1])[::-1]).max() <= 5, person.look
