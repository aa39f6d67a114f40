"""Face boxes: from the annotation, from keypoints, by MTCNN and by SCRFD, and the choice between them."""

import pickle
import subprocess
import sys
import time
from functools import partial

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from weights_entries import needs_weights, unreachable

from mldm_plugin.errors import DataError, WeightsError
from mldm_plugin.perceptual.mtcnn_networks import MTCNNNetworks
from mldm_plugin.perceptual.weights import tensors
from mldm_plugin.prepare import faces
from mldm_plugin.prepare.faces import scrfd
from mldm_plugin.prepare.faces.annotated import Annotated
from mldm_plugin.prepare.faces.boxes import Placement, tidied
from mldm_plugin.prepare.faces.keypoints import Keypoints, face_box
from mldm_plugin.prepare.faces.mtcnn import Mtcnn, load_network
from mldm_plugin.prepare.faces.scrfd import Scrfd
from mldm_plugin.prepare.source import Face, People, Source

SOURCE = Source(name="a", path="a.png", text="")
# What facenet-pytorch 2.6.0 says of scikit-image's astronaut
BOX = (181.05, 62.16, 267.75, 172.05)
LANDMARKS = ((205.01, 101.73), (246.76, 103.71), (224.67, 128.96), (201.72, 139.25), (245.27, 141.86))


def test_without_a_network_there_is_no_need_of_torch():
    program = (
        "import sys\nfrom mldm_plugin.prepare.faces import resolve\nresolve('annotated', True)\n"
        "assert not {'torch', 'torchvision', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


class Shown:
    """A picture that is in memory."""

    def __init__(self, picture):
        self.size = picture.size
        self.rgb = lambda: picture


def people(**known):
    return People(labels=np.zeros((4, 4), np.uint8), count=1, **known)


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b)]
    return common / (sum(areas) - common)


# Boxes


def test_boxes_are_clipped_rounded_and_sorted_and_none_is_without_area():
    found = [
        Face((1, 1, 3, 3), 0.123456),
        Face((-5, 2, 4.00499, 20), 0.9),
        Face((10, 0, 12, 5)),  # beyond the right border
        Face((2, 2, 2, 5)),
        Face((1, 1, 1.001, 5)),  # nothing is left of it
        Face((3, 3, 1, 1)),
    ]
    assert tidied(found, (10, 10)) == [Face((0, 2, 4.0, 10), 0.9), Face((1, 1, 3, 3), 0.1235)]
    assert tidied([Face(tuple(np.float32([0, 0, 0.1, 0.1])))], (9, 9)) == [Face((0, 0, 0.1, 0.1))]
    assert all(type(v) is float for v in tidied([Face((0, 0, 1, 1))], (9, 9))[0].box)


def test_annotated_gives_the_boxes_of_the_annotation():
    picture = Shown(Image.new("RGB", (20, 10)))
    given_boxes = [Face((1, 1, 2, 2)), Face((5, 5, 50, 9), 0.5)]
    assert Annotated()(SOURCE, picture, people(faces=given_boxes)) == [Face((5, 5, 20, 9), 0.5), Face((1, 1, 2, 2))]
    assert Annotated()(SOURCE, picture, people()) == []
    assert Annotated()(SOURCE, picture, None) == []


# Keypoints

# Nose, left eye (at the image's right), right eye, left ear, right ear, set by hand; None where it is hidden. Before
# them the face's box, made blind to the points: of scikit-image's astronaut and matplotlib's Grace Hopper drawn,
# of openpeople's pictures MTCNN's (people_mini/openpeople.json).
BY_HAND = [
    ((179, 74, 273, 181), [(225, 124), (247, 103), (203, 101), (273, 129), (177, 124)]),
    ((178, 128, 357, 334), [(268, 237), (305, 186), (222, 191), (360, 219), (169, 224)]),
    # studio_portrait of P001 and P007, amateur_selfie of P003 and P005; the profiles of P004 and P006
    ((612, 389, 1417, 1519), [(1022, 1069), (1205, 853), (832, 853), (1417, 1022), (635, 1022)]),
    ((664, 391, 1399, 1424), [(1029, 1025), (1207, 806), (861, 806), (1405, 981), (656, 981)]),
    ((715, 487, 1235, 1205), [(1009, 931), (1099, 779), (849, 779), (1230, 800), (660, 826)]),
    ((466, 592, 1282, 1699), [(948, 1265), (1108, 1035), (733, 1028), None, (450, 1064)]),
    ((889, 221, 1090, 520), [(1095, 401), None, (1035, 341), None, (878, 380)]),
    ((748, 243, 916, 476), [(753, 382), (811, 329), None, (955, 358), None]),
]


def coco(points, rest=12):
    """Five points, or fewer and None, as COCO's flat list, with the other keypoints unknown."""
    return [float(v) for p in points for v in ((0, 0, 0) if p is None else (*p, 2))] + [0.0] * 3 * rest


def test_boxes_from_keypoints_are_close_to_those_of_somebody_else():
    """Without any constant fitted to them: mean IoU 0.82, least 0.66, of a profile."""
    ious = [iou(face_box(coco(points)), box) for box, points in BY_HAND]
    assert np.mean(ious) > 0.75
    assert min(ious) > 0.6


def test_a_frontal_face_by_hand():
    """Eyes 45 pixels apart: a face of breadth 100, its middle 13 pixels below them, 135 pixels high."""
    assert face_box(coco([None, (122.5, 50), (77.5, 50), None, None])) == pytest.approx((50, -4.5, 150, 130.5))


def test_a_head_that_lies_on_its_side_is_wider_than_high():
    """The face above turned by 90 degrees about the middle between its eyes: down is now to the left."""
    assert face_box(coco([None, (100, 72.5), (100, 27.5), None, None])) == pytest.approx((19.5, 0, 154.5, 100))


def test_a_profile_is_as_large_as_a_frontal_face():
    """From the side nose and ear are 0.82 breadths apart across and 0.18 along; that line gives the size."""
    front = face_box(coco([(100, 119), (122.5, 87), (77.5, 87), None, None]))
    side = face_box(coco([(118, 119), (100, 87), None, (36, 101), None]))
    height = [box[3] - box[1] for box in (front, side)]
    assert 0.75 < height[1] / height[0] < 1.05
    assert iou(side, (30, 32, 130, 168)) > 0.6


def test_nothing_is_said_by_fewer_than_two_points_or_by_one_spot():
    assert face_box(coco([(5, 5), None, None, None, None])) is None
    assert face_box([0.0] * 51) is None
    assert face_box(coco([(5, 5)] * 5)) is None
    unknown = coco([(5, 5), (90, 90), None, None, None])
    unknown[5] = 0.0  # v of the second
    assert face_box(unknown) is None


POINTS = st.lists(
    st.one_of(st.none(), st.tuples(*[st.integers(0, 2000).map(lambda v: v / 2)] * 2)), min_size=5, max_size=5
)


@settings(deadline=None)
@given(POINTS, st.integers(-500, 500), st.integers(-500, 500), st.sampled_from([0.5, 2, 3]))
def test_the_box_holds_the_points_and_moves_scales_and_mirrors_with_them(points, dx, dy, factor):
    box = face_box(coco(points))
    if box is None:
        assert sum(p is not None for p in points) < 2 or np.ptp([p for p in points if p], axis=0).max() < 4
        return
    x0, y0, x1, y1 = box
    assert all(p is None or (x0 - 1e-9 <= p[0] <= x1 + 1e-9 and y0 - 1e-9 <= p[1] <= y1 + 1e-9) for p in points)
    moved = [p and (p[0] + dx, p[1] + dy) for p in points]
    assert face_box(coco(moved)) == pytest.approx((x0 + dx, y0 + dy, x1 + dx, y1 + dy), abs=1e-6)
    scaled = face_box(coco([p and (p[0] * factor, p[1] * factor) for p in points]))
    if scaled is not None:  # a small one may be too small once it is halved
        assert scaled == pytest.approx([v * factor for v in box], abs=1e-6)
    mirrored = [p and (2000 - p[0], p[1]) for p in points]
    nose, *pairs = mirrored
    swapped = [nose, pairs[1], pairs[0], pairs[3], pairs[2]]
    assert face_box(coco(swapped)) == pytest.approx((2000 - x1, y0, 2000 - x0, y1), abs=1e-6)


def test_each_person_with_points_gets_a_box():
    known = people(keypoints=[coco(BY_HAND[0][1]), [0.0] * 51, coco(BY_HAND[1][1])])
    found = Keypoints()(SOURCE, Shown(Image.new("RGB", (300, 512))), known)
    assert len(found) == 2
    assert found[0].box[2] == 300
    assert [f.score for f in found] == [None, None]
    assert Keypoints()(SOURCE, Shown(Image.new("RGB", (300, 512))), people()) == []
    assert Keypoints()(SOURCE, Shown(Image.new("RGB", (300, 512))), None) == []


# MTCNN


@pytest.fixture(scope="module")
def astronaut():
    return Image.fromarray(pytest.importorskip("skimage.data").astronaut())


@needs_weights("mtcnn")
def test_mtcnn_finds_a_face_and_its_points(astronaut):
    """The numbers are facenet-pytorch's own for this picture."""
    [face] = Mtcnn()(SOURCE, Shown(astronaut), None)
    assert face.box == pytest.approx(BOX, abs=0.1)
    assert face.score > 0.9999
    np.testing.assert_allclose(face.points, LANDMARKS, atol=0.1)
    (left, _), (right, _), (_, nose), (_, mouth), _ = face.points
    assert left < right
    assert nose < mouth


@needs_weights("mtcnn")
def test_mtcnns_faces_are_in_pixels_of_the_picture_whatever_its_size(astronaut):
    [small] = Mtcnn()(SOURCE, Shown(astronaut), None)
    started = time.process_time()
    [large] = Mtcnn()(SOURCE, Shown(astronaut.resize((4096, 4096))), None)
    assert time.process_time() - started < 30  # unreduced it is minutes
    assert iou([v / 8 for v in large.box], small.box) > 0.8
    np.testing.assert_allclose(np.array(large.points) / 8, small.points, atol=4)
    for size in ((2000, 40), (40, 2000), (11, 11), (1, 1)):
        assert Mtcnn()(SOURCE, Shown(Image.new("RGB", size)), None) == []


@needs_weights("mtcnn")
def test_mtcnn_finds_each_of_several_faces(astronaut):
    row = Image.new("RGB", (900, 300), (120, 140, 160))
    corners = ((10, 40), (330, 60), (650, 90))
    for corner, side in zip(corners, (220, 180, 150), strict=True):
        row.paste(astronaut.crop((110, 0, 340, 230)).resize((side, side)), corner)
    found = Mtcnn()(SOURCE, Shown(row), None)
    assert len(found) == 3
    assert [face.box[0] for face in found] == sorted(face.box[0] for face in found)  # the largest is at the left
    assert Mtcnn(least_score=1.0)(SOURCE, Shown(row), None) == []


@needs_weights("mtcnn")
def test_the_cascade_is_facenet_pytorchs(astronaut):
    theirs = pytest.importorskip("facenet_pytorch", reason="pip install --no-deps facenet-pytorch==2.6.0")
    cascade = theirs.MTCNN(keep_all=True, select_largest=False)
    pixels = torch.from_numpy(np.array(astronaut))
    boxes, scores, points = cascade.detect(np.array(astronaut), landmarks=True)
    own = load_network()(pixels.permute(2, 0, 1).float(), 20)
    for mine, his in zip(own, (boxes, scores, points), strict=True):
        np.testing.assert_allclose(mine.squeeze(0), np.array(his, dtype=float).squeeze(0), atol=1e-2)


def test_mtcnn_can_be_sent_to_a_process_and_says_what_it_gives():
    assert pickle.loads(pickle.dumps(Mtcnn(side=640))) == Mtcnn(side=640)
    assert (Mtcnn.name, Mtcnn.scored, Mtcnn.pointed) == ("mtcnn", True, True)


# Boxes of one size and place


def test_a_box_is_brought_to_another_size_and_place():
    moved = Placement(extent=0.5, down=0.1)((10.0, 20.0, 30.0, 60.0))
    assert moved == pytest.approx((15.0, 34.0, 25.0, 54.0))
    assert Placement(extent=1, down=0)((1.0, 2.0, 3.0, 4.0)) == (1, 2, 3, 4)


@needs_weights("mtcnn")
def test_boxes_from_keypoints_are_those_of_mtcnn(astronaut):
    [face] = Mtcnn()(SOURCE, Shown(astronaut), None)
    left, right, nose = face.points[:3]
    known = [*nose, 2, *right, 2, *left, 2, *[0] * 6]  # a person's left eye is at the picture's right
    [found] = Keypoints()(SOURCE, Shown(astronaut), people(keypoints=[[*known, *[0] * 36]]))
    side, expected = (max(b[2] - b[0], b[3] - b[1]) for b in (found.box, face.box))
    assert side == pytest.approx(expected, rel=0.15)
    for axis in (0, 1):
        assert (found.box[axis] + found.box[axis + 2]) / 2 == pytest.approx(
            (face.box[axis] + face.box[axis + 2]) / 2, abs=0.06 * expected
        )


# SCRFD


def red_detector(path):
    """An ONNX network of SCRFD's layout that finds red squares of 64 pixels.

    Its input is (RGB - 127.5) / 128. The score of a cell is twice the mean redness of the 64 pixels around its corner,
    less 1; its box reaches 32 pixels from the corner to each side. There are scores, boxes and keypoints for the
    strides 8, 16 and 32, of two anchors a cell; only those of stride 16 score.
    """
    colour = np.array([0.5, -0.25, -0.25], np.float32).reshape(1, 3, 1, 1)  # 1 for red, 0 for greys
    constants = [numpy_helper.from_array(colour, "colour")]
    nodes = [helper.make_node("Conv", ["input", "colour"], ["red"])]
    for stride in (8, 16, 32):

        def constant(name, values, kind=np.float32, stride=stride):
            constants.append(numpy_helper.from_array(np.array(values, kind), f"{name}{stride}"))

        def add(operator, inputs, output, stride=stride, **attributes):
            named = [i if i == "red" else f"{i}{stride}" for i in inputs]
            nodes.append(helper.make_node(operator, named, [f"{output}{stride}"], **attributes))

        constant("gain", [2 if stride == 16 else 0])
        constant("less", [-1])
        constant("column", [-1, 1], np.int64)
        constant("zero", [0])
        constant("reach", [[32 / stride] * 4])
        constant("points", [[0] * 10])
        end = 32 - stride
        pool = {"kernel_shape": [64, 64], "strides": [stride, stride], "pads": [32, 32, end, end]}
        add("AveragePool", ["red"], "mean", count_include_pad=1, **pool)
        add("Concat", ["mean", "mean"], "anchors", axis=1)
        add("Transpose", ["anchors"], "last", perm=[0, 2, 3, 1])
        add("Reshape", ["last", "column"], "flat")
        add("Mul", ["flat", "gain"], "gained")
        add("Add", ["gained", "less"], "score")
        add("Mul", ["flat", "zero"], "nothing")
        add("Add", ["nothing", "reach"], "box")
        add("Add", ["nothing", "points"], "kps")
    outputs = [
        helper.make_tensor_value_info(f"{kind}{stride}", TensorProto.FLOAT, [f"n{stride}", width])
        for kind, width in (("score", 1), ("box", 4), ("kps", 10))
        for stride in (8, 16, 32)
    ]
    given_input = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "h", "w"])
    graph = helper.make_graph(nodes, "red", [given_input], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """An empty cache, nobody's home, and an address that cannot be reached."""
    monkeypatch.setenv("MLDM_WEIGHTS", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    unreachable(monkeypatch, "scrfd_10g")
    unreachable(monkeypatch, "mtcnn")
    scrfd.load_network.cache_clear()
    yield tmp_path
    scrfd.load_network.cache_clear()


@pytest.fixture
def detector(no_network):
    red_detector(no_network / "cache" / "det_10g.onnx")
    return Scrfd()


def squares(size, *corners, side=64):
    picture = Image.new("RGB", size, (90, 90, 90))
    for corner in corners:
        picture.paste((255, 0, 0), (*corner, corner[0] + side, corner[1] + side))
    return Shown(picture)


def test_scrfd_finds_what_its_network_scores(detector):
    """The middle of a square lies on a cell's corner, so its box is the square; insightface's own code decodes it."""
    found = detector(SOURCE, squares((640, 640), (64, 96), (320, 480)), None)
    assert [face.box for face in found] == [(64, 96, 128, 160), (320, 480, 384, 544)]
    assert [face.score for face in found] == pytest.approx([0.992, 0.992], abs=1e-3)
    assert detector(SOURCE, squares((640, 640)), None) == []
    assert detector(SOURCE, squares((1000, 1)), None) == []


def test_boxes_are_in_pixels_of_the_picture_whatever_its_size(detector):
    [face] = detector(SOURCE, squares((1280, 960), (256, 128), side=128), None)
    assert face.box == (256, 128, 384, 256)
    [larger] = Scrfd(side=1280)(SOURCE, squares((1280, 960), (256, 128)), None)
    assert larger.box == (256, 128, 320, 192)


def test_the_network_sees_red_green_and_blue_in_their_order(detector):
    for colour in ((0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)):
        shown = squares((640, 640))
        shown.rgb().paste(colour, (64, 64, 128, 128))
        assert detector(SOURCE, shown, None) == []


def test_the_least_score_is_an_option(detector):
    dull = squares((640, 640))
    dull.rgb().paste((220, 40, 40), (64, 96, 128, 160))
    assert detector(SOURCE, dull, None) == []
    [face] = Scrfd(least_score=0.3)(SOURCE, dull, None)
    assert face.score == pytest.approx(0.406, abs=1e-3)


def test_the_network_is_loaded_once_and_the_detector_can_be_sent_to_a_process(detector):
    sent = pickle.loads(pickle.dumps(detector))
    assert sent == detector
    shown = squares((640, 640), (64, 96))
    assert sent(SOURCE, shown, None) == detector(SOURCE, shown, None)
    assert scrfd.load_network.cache_info().misses == 1


def test_a_pack_of_insightface_itself_is_taken(no_network):
    red_detector(no_network / "home" / ".insightface" / "models" / "buffalo_l" / "det_10g.onnx")
    assert scrfd.is_here()
    assert len(Scrfd()(SOURCE, squares((640, 640), (64, 96)), None)) == 1


def test_a_network_of_another_kind_is_refused(no_network):
    path = no_network / "cache" / "det_10g.onnx"
    path.parent.mkdir()
    information = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT, shape=[1, 3, 112, 112])
    graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "g", [information("a")], [information("b")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    with pytest.raises(WeightsError, match=r"det_10g\.onnx is not a face detector"):
        Scrfd()(SOURCE, squares((640, 640)), None)


def test_without_the_network_the_error_names_file_address_and_place(no_network):
    with pytest.raises(WeightsError) as caught:
        Scrfd()(SOURCE, squares((640, 640)), None)
    for part in ("det_10g.onnx", "file:///nowhere/x", str(no_network / "cache"), "`--faces keypoints`"):
        assert part in str(caught.value)


# The choice


@pytest.mark.parametrize(("name", "kind"), [("annotated", Annotated), ("keypoints", Keypoints), ("none", type(None))])
def test_a_detector_is_chosen_by_name(name, kind):
    chosen, line = faces.resolve(name, annotated=True)
    assert isinstance(chosen, kind)
    assert line == f"faces: {name}, as asked"
    if chosen is not None:
        assert (chosen.name, chosen.scored) == (name, False)
        assert pickle.loads(pickle.dumps(chosen)) == chosen


def test_insightface_is_fetched_when_it_is_chosen(detector, no_network):
    assert (detector.name, detector.scored) == ("insightface", True)
    assert faces.resolve("insightface", annotated=False) == (detector, "faces: insightface, as asked")
    (no_network / "cache" / "det_10g.onnx").unlink()
    with pytest.raises(WeightsError, match="Cannot fetch the weights 'scrfd_10g'"):
        faces.resolve("insightface", annotated=False)


def test_mtcnn_is_fetched_when_it_is_chosen(no_network):
    with pytest.raises(WeightsError, match="Cannot fetch the weights 'mtcnn'"):
        faces.resolve("mtcnn", annotated=False)
    weights_of_mtcnn(no_network / "cache")
    assert faces.resolve("mtcnn", annotated=False) == (Mtcnn(), "faces: mtcnn, as asked")


def test_auto_takes_the_best_that_is_there_and_says_so(no_network):
    assert faces.resolve("auto", annotated=True) == (Annotated(), "faces: annotated, the annotation names them")
    with pytest.raises(WeightsError, match="`--faces none` need none"):
        faces.resolve("auto", annotated=False)
    red_detector(no_network / "cache" / "det_10g.onnx")
    chosen, line = faces.resolve("auto", annotated=False)
    assert chosen == Scrfd()
    assert line == "faces: insightface, since mtcnn's weights cannot be had and its detector is on this machine"
    weights_of_mtcnn(no_network / "cache")
    assert faces.resolve("auto", annotated=False) == (Mtcnn(), "faces: mtcnn, its weights are on this machine")


def weights_of_mtcnn(cache):
    tensors.write(MTCNNNetworks().state_dict(), cache / "mtcnn.safetensors", {})


def test_a_choice_that_cannot_be_met_is_refused(monkeypatch, no_network):
    with pytest.raises(DataError, match=r"no detector is called so; did you mean 'insightface'\?"):
        faces.resolve("insigthface", annotated=False)
    with pytest.raises(DataError, match="the annotation names no faces"):
        faces.resolve("annotated", annotated=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"needs insightface and onnxruntime: pip install 'insightface>="):
        faces.resolve("insightface", annotated=False)


def test_every_detector_is_documented():
    rows = [line.split("|")[1].strip() for line in faces.__doc__.splitlines() if line.startswith("| ")]
    assert sorted(rows[1:]) == sorted({*faces.NAMES} - {"auto"})
