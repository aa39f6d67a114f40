"""Identity: whose face it is, with a bank of references, negatives and the log of copying."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_step import face_step, make_stack, make_step, pictures
from PIL import Image
from torch import nn
from torch.nn import functional as F

from mldm_plugin.engine.step import clip_boxes
from mldm_plugin.engine.term import Term
from mldm_plugin.errors import DataError, LossError
from mldm_plugin.hooks.identity import Identity, identity_distance
from mldm_plugin.perceptual.face_crops import FaceCrop
from mldm_plugin.perceptual.face_networks import FACE_NETWORKS, FaceNetwork
from mldm_plugin.perceptual.identity_bank import IdentityBank
from mldm_plugin.training.objective import Objective


class Tiny(nn.Module):
    """Two stages; the last one's mean over pixels is the embedding."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x):
        first = torch.tanh(self.first(x))
        return [first, self.last(first)]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(FACE_NETWORKS, "tiny", FaceNetwork(Tiny, FaceCrop(8, 1.3), lambda x: x, (1.0, 1.0), ()))


def tiny_loss(known=None, **options):
    loss = Identity(network="tiny", weights="random", **options)
    if known is not None:
        loss.bank, loss.logs = known, ("copying",)
    return loss


def unit(*angles):
    """Unit vectors of the plane, by degrees."""
    return torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles])


LEFT, RIGHT = [2, 4, 12, 16], [18, 6, 30, 20]
BANK = {"anna": unit(0, 10, 30), "ben": unit(90, 100)}


# The pure function


def test_by_hand():
    """s = .6 with negatives .1 and .5, one of them not counted; τ = .2, c = 2."""
    others = torch.tensor([[0.1, 0.5], [0.1, 0.5], [0.1, 0.5]])
    negative = torch.tensor([[True, True], [False, True], [False, False]])
    found = identity_distance(torch.tensor([0.6, 0.6, 0.6]), others, negative, 0.2, 2.0)
    a, b, c = (math.exp(x / 0.2) for x in (0.6, 0.1, 0.5))
    expected = [0.4 + 2 * math.log((a + b + c) / a), 0.4 + 2 * math.log((a + c) / a), 0.4]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_gradcheck():
    g = torch.Generator().manual_seed(0)
    likeness = torch.rand(3, generator=g, dtype=torch.float64, requires_grad=True)
    others = torch.rand(3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    negative = torch.rand(3, 4, generator=g) > 0.5
    negative[1] = False
    assert torch.autograd.gradcheck(lambda *x: identity_distance(*x, negative, 0.3, 0.7), (likeness, others))


@pytest.mark.parametrize("bank", [False, True])
def test_gradcheck_of_the_whole_loss(bank):
    pred, target = pictures(2, 1, 12).double().requires_grad_(), pictures(2, 2, 12).double()
    boxes = [[[1, 1, 5, 7], [6, 4, 11, 9]], [[0, 0, 6, 5]]]
    people = {n: F.normalize(torch.randn(3, 6, generator=torch.Generator().manual_seed(i))) for i, n in enumerate("ab")}
    loss = tiny_loss(IdentityBank(people) if bank else None)
    if bank:
        loss.bank.least[:] = -1  # everybody is somebody
    value = (lambda p: loss(face_step(boxes, p, target))[0]) if bank else lambda p: loss(face_step(boxes, p, target))
    assert torch.autograd.gradcheck(value, pred, fast_mode=True)


def test_a_likeness_is_0_for_two_people_as_alike_as_the_network_finds_them_on_average():
    loss = Identity(weights="random")
    assert loss._likeness(torch.tensor([1.0, 1 - 0.128])).tolist() == pytest.approx([1, 0], abs=1e-6)
    assert tiny_loss()._likeness(torch.tensor([0.3])).item() == pytest.approx(0.3)


# The bank


def test_what_a_bank_knows_by_hand():
    bank = IdentityBank(BANK)
    assert bank.names == ("anna", "ben")
    torch.testing.assert_close(bank.means, torch.stack([BANK["anna"].mean(0), BANK["ben"].mean(0)]))
    cos = lambda degrees: math.cos(math.radians(degrees))  # noqa: E731
    torch.testing.assert_close(bank.reach, torch.tensor([cos(10), cos(10)]))
    torch.testing.assert_close(bank.least, torch.tensor([(cos(30) + cos(20)) / 2, cos(10)]))
    assert bank.owner.tolist() == [0, 0, 0, 1, 1]


def test_who_a_face_is():
    bank = IdentityBank(BANK)
    faces = unit(12, 97, 200, 14, 16)
    assert bank.recognised(faces, torch.tensor([0, 0, 0, 1, 2])).tolist() == [0, 1, -1, 0, 0]
    # twice in one image: 12° is nearer to Anna's 13.3° than 20°, and of two equal ones the first is she
    assert bank.recognised(unit(20, 12), torch.tensor([0, 0])).tolist() == [-1, 0]
    assert bank.recognised(unit(12, 12), torch.tensor([0, 0])).tolist() == [0, -1]
    assert bank.recognised(unit(12, 12), torch.tensor([0, 1])).tolist() == [0, 0]
    assert bank.recognised(torch.zeros(0, 2), torch.tensor([], dtype=torch.long)).tolist() == []


def write_bank(folder, people, size=40):
    rows = []
    for name, count in people.items():
        (folder / "images" / name).mkdir(parents=True)
        for i in range(count):
            file = f"images/{name}/{i}.png"
            pixels = ((pictures(1, hash_of(name) + i, size)[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / file)
            rows.append({"file_name": file, "text": name, "face_boxes": [[1, 1, 4, 4], [5, 6, 25, 30]]})
    rows.append({"file_name": rows[0]["file_name"], "text": "nobody to be seen", "face_boxes": []})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def hash_of(name):
    return sum(map(ord, name))


def test_a_bank_is_read_from_a_folder_of_mldm_data_the_largest_face_of_each(tmp_path):
    loss = tiny_loss(bank=str(write_bank(tmp_path, {"anna": 3, "ben": 2})))
    assert loss.bank.names == ("anna", "ben")
    with Image.open(tmp_path / "images" / "ben" / "1.png") as opened:
        pixels = torch.from_numpy(np.array(opened, dtype=np.float32)).permute(2, 0, 1)
    own = loss.embedded.of((pixels / 127.5 - 1)[None], [torch.tensor([[5.0, 6, 25, 30]])])[0]
    torch.testing.assert_close(loss.bank.references[4], own, atol=1e-5, rtol=0)
    assert loss.logs == ("copying",)


def test_photographs_in_no_persons_folder_are_nobodys(tmp_path):
    for name in ("images/1.png", "1.png"):
        (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": name, "face_boxes": [[0, 0, 4, 4]]}) + "\n")
        with pytest.raises(
            DataError, match=rf"{name} of the identity bank .* lies in no person.s folder.*expected images/anna"
        ):
            tiny_loss(bank=str(tmp_path))


@pytest.mark.parametrize(
    "boxes", [[[0, 0, 4, 4], [1, 2]], [[0, 0, 4]], [0, 0, 4, 4], [["a", 0, 4, 4]], [[0, 0, 4, None]], {"a": 1}]
)
def test_boxes_of_a_bank_that_are_none_are_told(tmp_path, boxes):
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "images/anna/1.png", "face_boxes": boxes}) + "\n")
    with pytest.raises(
        DataError, match=r"face_boxes of .*1\.png of the identity bank are .*expected a list of \[x0, y0"
    ):
        tiny_loss(bank=str(tmp_path))


def test_bad_banks_are_one_error_that_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read.*mldm data folder PHOTOS --out BANK"):
        tiny_loss(bank=str(tmp_path))
    (tmp_path / "metadata.jsonl").write_text('{"text": "no name"}\n')
    with pytest.raises(DataError, match="cannot be read"):
        tiny_loss(bank=str(tmp_path))
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(DataError, match="has no face"):
        tiny_loss(bank=str(tmp_path))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "anna/1.png", "face_boxes": [[0, 0, 1, 1]]}\n')
    with pytest.raises(DataError, match=r"1\.png of the identity bank cannot be read as a picture"):
        tiny_loss(bank=str(tmp_path))
    one = write_bank(tmp_path / "one", {"anna": 1})
    with pytest.raises(DataError, match="one photograph of anna, expected two or more"):
        tiny_loss(bank=str(one))


# The loss


@pytest.mark.parametrize("network", ["dlib_resnet", "vggface2_inception"])
def test_smoke(network):
    step = face_step([[LEFT], [RIGHT]])
    value = Identity(network=network, weights="random")(step)
    assert value.shape == (2,)
    assert ((value > 0) & (value < 2)).all()
    value.sum().backward()
    assert torch.isfinite(step.pred_images.grad).all()
    assert step.pred_images.grad.abs().sum() > 0


def test_a_step_without_pictures_is_refused():
    with pytest.raises(DataError, match="pred_images"):
        tiny_loss()(replace(face_step([[LEFT]]), pred_images=None))


def test_parity_with_a_loop_over_faces():
    loss, step = tiny_loss(contrast=0.5, temperature=0.2), face_step([[LEFT, RIGHT], [LEFT]])
    expected = []
    for i, boxes in enumerate(step.face_boxes):
        pred = [loss.embedded(step.pred_images[i : i + 1], [b[None]], None)[0] for b in boxes]
        true = [loss.embedded(step.target_images[i : i + 1], [b[None]], None)[0] for b in boxes]
        values = []
        for k, e in enumerate(pred):
            s = [torch.dot(e, t) for t in true]
            values.append(1 - s[k] + 0.5 * (torch.stack(s).div(0.2).exp().sum().log() - s[k] / 0.2))
        expected.append(sum(values) / len(values))
    torch.testing.assert_close(loss(step), torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_equal_pictures_are_0_but_for_how_alike_their_people_are():
    same = pictures(2, 3)
    step = face_step([[LEFT], [LEFT, RIGHT]], same.clone().requires_grad_(), same)
    value = tiny_loss()(step)
    assert value[0].item() == pytest.approx(0, abs=1e-6)
    assert 0 < value[1].item() <= math.log(2) + 1e-6
    assert tiny_loss(contrast=0)(step)[1].item() == pytest.approx(0, abs=1e-6)
    value.sum().backward()
    assert torch.isfinite(step.pred_images.grad).all()


def test_no_face_is_0_with_finite_gradient():
    for bank in (None, IdentityBank({"a": F.normalize(torch.eye(6)[:2]), "b": F.normalize(torch.eye(6)[2:4])})):
        step = face_step([[], [LEFT]])
        found = tiny_loss(bank)(step)
        value = found if bank is None else found[0]
        assert value[0] == 0
        (gradient,) = torch.autograd.grad(value.sum(), step.pred_images)
        assert torch.isfinite(gradient).all()
        assert gradient[0].abs().max() == 0
        nobody = tiny_loss(bank)(face_step([[], []]))
        assert (nobody if bank is None else nobody[0]).tolist() == [0, 0]


def test_nothing_outside_the_squares_has_effect_or_gradient():
    step = face_step([[[8, 8, 16, 16]]])
    (gradient,) = torch.autograd.grad(tiny_loss()(step).sum(), step.pred_images)
    seen = torch.zeros(32, 32, dtype=torch.bool)
    seen[6:18, 6:18] = True  # 1.3 times the box, and what its border pixels are interpolated from
    assert gradient[..., ~seen].abs().max() == 0
    assert gradient[..., 8:16, 8:16].abs().min() > 0


def test_a_batch_equals_its_images_with_and_without_a_bank():
    boxes = [[LEFT, RIGHT], [RIGHT], [LEFT, RIGHT]]
    people = {n: F.normalize(torch.randn(3, 6, generator=torch.Generator().manual_seed(i))) for i, n in enumerate("ab")}
    for bank in (None, IdentityBank(people)):
        if bank is not None:
            bank.least[:] = -1
        loss, step = tiny_loss(bank), face_step(boxes)
        tell = (lambda s, loss=loss: (loss(s), None)) if bank is None else lambda s, loss=loss: loss(s)
        together, logs = tell(step)
        alone = [tell(step.select([i])) for i in range(3)]
        torch.testing.assert_close(together, torch.cat([value for value, _ in alone]), rtol=1e-5, atol=1e-6)
        if bank is not None:
            torch.testing.assert_close(
                logs["copying"], torch.cat([log["copying"] for _, log in alone]), atol=1e-6, rtol=0
            )


class Planar:
    """A network that says these embeddings, in the order in which it is asked: true, then predicted."""

    def __init__(self, embeddings):
        self.answers = iter(embeddings)

    def place(self, photographs, boxes):
        return None

    def __call__(self, images, boxes, placed):
        return next(self.answers)


def planar(loss, embeddings):
    loss.embedded = Planar(embeddings)
    return loss


def test_a_known_face_is_pulled_to_the_references_and_away_from_all_others_by_hand():
    """Anna (at 12°, predicted at 40°) and a stranger (200°, predicted 180°) in one picture; Ben is in the bank."""
    bank = IdentityBank(BANK)
    loss = planar(tiny_loss(bank, bank_share=0.25, temperature=0.5, contrast=2.0), [unit(12, 200), unit(40, 180)])
    value, logs = loss(face_step([[LEFT, RIGHT]]))
    cos = lambda *degrees: sum(math.cos(math.radians(d)) for d in degrees) / len(degrees)  # noqa: E731
    anna = 0.75 * cos(28) + 0.25 * cos(40, 30, 10)
    against = [cos(160), cos(50, 60)]  # the stranger's true face, Ben
    nce = math.log(sum(math.exp(x / 0.5) for x in [anna, *against])) - anna / 0.5
    stranger = cos(20)
    other = math.log(math.exp(stranger / 0.5) + math.exp(cos(168) / 0.5)) - stranger / 0.5  # Anna's true face
    expected = (1 - anna + 2 * nce + 1 - stranger + 2 * other) / 2
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert logs["copying"].item() == 0  # 40° is 10° from her nearest reference: as near as two of hers


@pytest.mark.parametrize(
    ("true", "predicted", "excess"),
    [
        (20, 29, math.cos(math.radians(1)) - math.cos(math.radians(10))),  # a reference, where the photograph is none
        (20, 20, 0),  # the photograph itself
        (30, 30, 0),  # the photograph, which is in the bank
        (10.5, 10, 1 - math.cos(math.radians(0.5))),  # nearly in the bank
    ],
)
def test_copying_is_what_no_real_picture_reaches(true, predicted, excess):
    loss = planar(tiny_loss(IdentityBank(BANK)), [unit(true), unit(predicted)])
    assert loss(face_step([[LEFT]]))[1]["copying"].item() == pytest.approx(excess, abs=1e-6)


def test_a_stranger_copies_nobody_and_is_kept_away_from_nobody_of_the_bank():
    loss = planar(tiny_loss(IdentityBank(BANK)), [unit(200), unit(0)])
    value, logs = loss(face_step([[LEFT]]))
    assert value.item() == pytest.approx(1 - math.cos(math.radians(200)))
    assert logs["copying"].item() == 0


# By landmarks


def sure(loss):
    """The loss's random network of landmarks, sure of a face turned to the right in each box."""
    head = loss.embedded.landmarks.frozen.network.onet
    head.dense6_1.bias.data = torch.tensor([-50.0, 50.0])
    head.dense6_3.weight.data.zero_()
    points = torch.tensor([[0.45, 0.3], [0.75, 0.5], [0.5, 0.6], [0.25, 0.65], [0.5, 0.85]])
    head.dense6_3.bias.data = points.T.flatten().clone()
    return loss


def test_without_landmarks_the_box_stands_in_and_is_counted():
    step = face_step([[LEFT, RIGHT], [], [RIGHT]])
    value, logs = tiny_loss(align="landmarks")(step)
    torch.testing.assert_close(value, tiny_loss()(step), rtol=1e-4, atol=1e-5)
    assert logs["by_box"].tolist() == [1, 0, 1]
    assert tiny_loss(align="landmarks").logs == ("by_box",)


def test_by_landmarks_both_faces_are_turned_alike_and_nothing_is_counted():
    step = face_step([[LEFT, RIGHT], [LEFT]])
    loss = sure(tiny_loss(align="landmarks"))
    value, logs = loss(step)
    assert logs["by_box"].tolist() == [0, 0]
    assert not torch.allclose(value, tiny_loss()(step), rtol=1e-3)
    value.sum().backward()
    assert step.pred_images.grad.isfinite().all()
    assert step.pred_images.grad.flatten(1).abs().sum(1).min() > 0
    same = pictures(2, 3)
    still = face_step([[LEFT], [RIGHT]], same.clone().requires_grad_(), same)
    assert loss(still)[0].abs().max() < 1e-6
    alone = torch.cat([loss(step.select([i]))[0] for i in range(2)])
    torch.testing.assert_close(value, alone, rtol=1e-5, atol=1e-6)


def test_gradcheck_by_landmarks():
    pred, target = pictures(1, 1, 12).double().requires_grad_(), pictures(1, 2, 12).double()
    loss = sure(tiny_loss(align="landmarks"))
    step = lambda p: face_step([[[1, 1, 5, 7], [5, 4, 11, 9]]], p, target)  # noqa: E731
    assert torch.autograd.gradcheck(lambda p: loss(step(p))[0], pred, fast_mode=True)


def test_by_landmarks_with_a_bank_both_are_logged(tmp_path):
    loss = tiny_loss(bank=str(write_bank(tmp_path, {"anna": 3, "ben": 2})), align="landmarks")
    announced = []
    stack = make_stack(Term("identity", loss, 0.5), announce=announced.append, decode_batch=1)
    logs = stack(make_step((50, 20, 900))).logs()
    assert "reaches the network" in announced[0]
    assert logs["identity/by_box"] == 1
    assert logs["identity/copying"] >= 0


def test_at_most_so_many_faces_the_largest_in_both_pictures():
    both, one = face_step([[LEFT, RIGHT]]), face_step([[RIGHT]])
    torch.testing.assert_close(tiny_loss(max_faces=1)(both), tiny_loss()(one))


corner, side = st.floats(-40, 60, width=32), st.floats(0, 60, width=32)


@settings(max_examples=20, deadline=None)
@given(per_image=st.lists(st.lists(st.tuples(corner, corner, side, side), max_size=3), min_size=1, max_size=3))
def test_any_boxes_give_finite_values_and_gradients(per_image):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FACE_NETWORKS, "tiny", FaceNetwork(Tiny, FaceCrop(8, 1.3), lambda x: x, (1.0, 1.0), ()))
        loss = tiny_loss()
    raw = [torch.tensor([[x, y, x + w, y + h] for x, y, w, h in b]).reshape(-1, 4) for b in per_image]
    step = face_step([clip_boxes(b, 32, 32).tolist() for b in raw])
    value = loss(step)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert (value > -1e-6).all()
    assert torch.isfinite(step.pred_images.grad).all()


# Through the engine


def test_it_reaches_the_network_and_what_it_logs_reaches_the_record(tmp_path):
    loss = tiny_loss(bank=str(write_bank(tmp_path, {"anna": 3, "ben": 2})))
    tables = []
    stack = make_stack(Term("identity", loss, 0.5), announce=tables.append, decode_batch=1)
    report = stack(make_step((50, 20, 900)))
    assert "reaches the network" in tables[0]
    assert report.terms["identity"].logs["copying"].shape == (2,)
    logs = report.logs()
    assert logs["identity/gated"] == 2
    assert logs["identity/copying"] >= 0
    assert Objective(stack).names == ["identity", "identity/copying"]  # what our trainers' meter asks for
    closed = stack(make_step((900, 900))).logs()
    assert closed["identity/copying"] is None
    assert closed.keys() >= {"identity", "identity/gated", "identity/copying"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda v: v, "logged nothing, its `logs` are"),
        (lambda v: (v, {"other": v}), "logged other, its `logs` are"),
        (lambda v: (v, {"much": v.mean()}), "returned torch.float32 .*expected a float tensor"),
    ],
)
def test_a_loss_that_logs_something_else_than_it_says_is_refused(given, message):
    class Telling:
        needs = frozenset({"pred_images"})
        logs = ("much",)

        def __call__(self, step):
            return given(step.pred_images.flatten(1).mean(1))

    with pytest.raises(LossError, match=message):
        make_stack(Term("telling", Telling(), 0.5))(make_step())
