"""The metrics of what a face was drawn from: worked out by hand, with judges that see colours."""

import pytest
import torch
from tiny_conditional import write_judges
from weights_entries import needs_weights

from mldm_plugin.conditions import judges as judging
from mldm_plugin.conditions.celeba import ATTRIBUTES
from mldm_plugin.data.batch import Example
from mldm_plugin.errors import DataError
from mldm_plugin.evaluation.cases import Case
from mldm_plugin.evaluation.measuring import make_metrics
from mldm_plugin.evaluation.picture import Picture
from mldm_plugin.perceptual.lpips_network import lpips_model
from mldm_plugin.plugins import load_plugins

SIDE = 64
METRICS = load_plugins().metrics


@pytest.fixture
def folder(tmp_path):
    return write_judges(tmp_path / "judges")


@pytest.fixture
def seeing(folder, monkeypatch):
    """Judges that see attribute k where pixel (0, k) is red, and part k where green is k/18."""
    metrics = {name: METRICS[name](judges=folder) for name in ("attribute_accuracy", "mask_accuracy", "mask_miou")}
    for name, metric in metrics.items():
        metric.judge = _attributes if name == "attribute_accuracy" else _parts
    return metrics


def _attributes(pixels):
    return pixels[:, 0, 0, :40]


def _parts(pixels):
    labels = ((pixels[:, 1] + 1) * 9).round().long()
    return torch.nn.functional.one_hot(labels, 19).permute(0, 3, 1, 2)


def picture(red=(), parts=None, *, wanted=(), mask=None, of_photograph=False):
    """One that shows attributes and parts, and was asked for others."""
    image = torch.full((3, SIDE, SIDE), -1.0)
    image[0, 0, list(red)] = 1
    if parts is not None:
        image[1] = parts / 9 - 1
    asked = {"attributes": torch.tensor([float(k in wanted) for k in range(40)])}
    if mask is not None:
        asked["semantic_mask"] = mask.to(torch.uint8)[None]
    example = Example(image, conditions=asked)
    case = Case("00000", "", 1, row=0)
    if of_photograph:
        return Picture(image, case, known=example)
    return Picture(image, case, photo=lambda: Picture(torch.zeros(3, SIDE, SIDE), case, known=example))


def rows(metric, *pictures):
    return torch.cat([metric.features(one) for one in pictures])


def test_attributes_by_hand(seeing):
    """0 and 1 vary in the photographs, 2 is always so and 3 never: of them nothing is asked."""
    metric = seeing["attribute_accuracy"]
    real = rows(metric, picture(wanted=(0, 2), of_photograph=True), picture(wanted=(1, 2), of_photograph=True))
    made = rows(metric, picture((0, 3), wanted=(0, 2)), picture((0, 1, 2), wanted=(1, 2)))
    assert metric.distance(made, real) == 0.75
    assert metric.parts(made, real) == {ATTRIBUTES[0].replace("_", " "): 0.5, "Arched Eyebrows": 1.0}
    with pytest.raises(DataError, match="have the same attributes"):
        metric.distance(made, real[:1])
    with pytest.raises(DataError, match="no case has attributes"):
        metric.distance(made[:0], real)


def test_masks_by_hand(seeing):
    wanted = torch.zeros(SIDE, SIDE)
    wanted[:, : SIDE // 2] = 1  # skin on the left
    shown = wanted.clone()
    shown[: SIDE // 2] = 13  # hair above, where nobody asked for it
    made = {name: rows(seeing[name], picture(parts=shown, mask=wanted)) for name in ("mask_accuracy", "mask_miou")}
    assert seeing["mask_accuracy"].distance(made["mask_accuracy"], None) == 0.5
    assert seeing["mask_miou"].parts(made["mask_miou"], None) == {"background": 0.5, "skin": 0.5, "hair": 0.0}
    assert seeing["mask_miou"].distance(made["mask_miou"], None) == pytest.approx(1 / 3)
    same = rows(seeing["mask_miou"], picture(parts=wanted, mask=wanted))
    assert seeing["mask_miou"].distance(same, None) == 1
    both = torch.cat([same, made["mask_miou"]])
    assert seeing["mask_miou"].parts(both, None)["skin"] == 0.75, "over all pictures at once"
    with pytest.raises(DataError, match="no case has a mask"):
        seeing["mask_miou"].distance(rows(seeing["mask_miou"], picture()), None)


def test_a_picture_is_parsed_once_and_at_the_judges_side(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(judging.PartsJudge, "forward", lambda self, pixels: seen.append(pixels.shape) or _parts(pixels))
    accuracy, miou = (METRICS[name](judges=folder) for name in ("mask_accuracy", "mask_miou"))
    large = torch.zeros(2 * SIDE, 2 * SIDE, dtype=torch.uint8)[None]
    one = Picture(
        torch.zeros(3, 2 * SIDE, 2 * SIDE), Case("0", ""), known=Example(None, conditions={"semantic_mask": large})
    )
    assert torch.equal(accuracy.features(one), miou.features(one))
    assert seen == [(1, 3, SIDE, SIDE)]


def test_what_was_never_asked_for_is_not_judged(seeing):
    alone = Picture(torch.zeros(3, SIDE, SIDE), Case("0", ""))
    assert all(len(metric.features(alone)) == 0 for metric in seeing.values())


def test_without_judges_it_is_said(tmp_path):
    names = ["attribute_accuracy", "mask_miou"]
    metrics = make_metrics(load_plugins(), names, {"judges": None})
    assert all("it needs --judges" in metrics.missing[name] for name in names)
    metrics = make_metrics(load_plugins(), names, {"judges": tmp_path})
    assert all("train it: mldm faces judges" in metrics.missing[name] for name in names)


def test_another_judge_is_another_measurement(folder, tmp_path):
    """So that what one judge said is not taken for what another says."""
    torch.manual_seed(1)
    other = write_judges(tmp_path / "other")
    judging.write_judge(judging.AttributeJudge((8, 8, 8, 8)), other, SIDE)
    labels = [
        make_metrics(load_plugins(), ["attribute_accuracy"], {"judges": one}).label("attribute_accuracy")
        for one in (folder, other)
    ]
    assert labels[0] != labels[1]


# Diversity


def pictures_of_a_case(images):
    made = [Picture(image, Case("0", ""), repetition=r) for r, image in enumerate(images)]
    for one in made:
        one._repetitions = [lambda other=other: other for other in made]
    return made


def test_diversity_is_the_mean_lpips_over_pairs():
    metric = METRICS["condition_diversity"](weights="random")
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first, *others = pictures_of_a_case(images)
    value = metric(first)
    network = _lpips_of(metric)
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert value == pytest.approx(
        sum(float(network(images[a : a + 1], images[b : b + 1])) for a, b in pairs) / 3, rel=1e-4
    )
    assert [metric(one) for one in others] == [None, None], "a case is counted once"
    assert metric(pictures_of_a_case(images[:1])[0]) is None
    assert metric(pictures_of_a_case(images[[0, 0]])[0]) == pytest.approx(0, abs=1e-9)


def _lpips_of(metric):
    network = lpips_model("alex")
    network.net.load_state_dict(metric.lpips.trunk.state_dict())
    return network.requires_grad_(False)


@needs_weights("alexnet")
def test_diversity_looks_with_the_published_network():
    metric = METRICS["condition_diversity"]()
    assert metric.networks[0].startswith("alexnet")
