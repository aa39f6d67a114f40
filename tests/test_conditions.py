"""Condition encoders: what they read, what they make of it, what they do without it, and the pipeline around them."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image

from mldm_plugin import load_plugins
from mldm_plugin.conditions.celeba import ATTRIBUTES, PARTS
from mldm_plugin.conditions.conditions import Conditions
from mldm_plugin.conditions.pipeline import ConditionalLDMPipeline
from mldm_plugin.errors import DataError, MldmError, PluginError

SIDE = 64
ENCODERS = load_plugins().condition_encoders
MASKED = {"resolution": SIDE, "channels": [8, 8, 16, 16]}
SMALL = [("attributes", {"hidden": 16}), ("semantic_mask", MASKED)]


@pytest.fixture
def both():
    torch.manual_seed(0)
    return Conditions(width=32, conditions=SMALL).eval()


def values(count=3, seed=0):
    random = torch.Generator().manual_seed(seed)
    attributes = torch.randint(0, 2, (count, 40), generator=random).float()
    mask = torch.randint(0, 19, (count, 1, SIDE, SIDE), generator=random).to(torch.uint8)
    return {"attributes": attributes, "semantic_mask": mask}


# The papers' shapes


def test_shapes_are_those_of_the_paper():
    attributes, mask = ENCODERS["attributes"](512), ENCODERS["semantic_mask"](512)
    assert (attributes.tokens, mask.tokens) == (1, 64)
    labels = torch.zeros(1, 1, 256, 256, dtype=torch.uint8)
    with torch.no_grad():
        assert mask(labels).shape == (1, 64, 512)
        assert attributes(torch.zeros(1, 40)).shape == (1, 1, 512)
        assert ENCODERS["semantic_mask"](512, pooled=True)(labels).shape == (1, 1, 512)
    assert mask.network.embedder.embedder.convolution.weight.shape[1] == 18
    # torchvision's ResNet-18 has 11.18 million without its classifier, for three channels
    assert sum(p.numel() for p in mask.parameters()) == 11_176_512 + (18 - 3) * 64 * 7 * 7


def test_every_attribute_and_every_part_reaches_the_tokens(both):
    given = values(1)
    with torch.no_grad():
        before = both(given)
        for number in range(40):
            other = given["attributes"].clone()
            other[0, number] = 1 - other[0, number]
            assert not torch.equal(both({**given, "attributes": other}), before)
        for label in range(1, 19):
            other = torch.where(given["semantic_mask"] == label, 0, given["semantic_mask"])
            assert not torch.equal(both({**given, "semantic_mask": other}), before)


def test_a_token_of_the_mask_sees_its_place_most():
    torch.manual_seed(1)
    encoder = ENCODERS["semantic_mask"](16, resolution=128, channels=[8, 8, 16, 16]).eval()
    blank, corner = torch.zeros(2, 1, 1, 128, 128, dtype=torch.uint8)
    corner[..., 96:, 96:] = 13
    with torch.no_grad():
        moved = (encoder(corner) - encoder(blank))[0].norm(dim=1)
    assert len(moved) == 16
    assert int(moved.argmax()) == 15, "row by row, the last is the lower right"


def test_a_batch_equals_its_samples(both):
    given = values(3)
    with torch.no_grad():
        whole = both(given)
        for number in range(3):
            alone = both({name: value[number : number + 1] for name, value in given.items()})
            torch.testing.assert_close(alone[0], whole[number], rtol=1e-4, atol=1e-5)


# What is absent


def test_absent_is_the_same_whether_dropped_or_never_there(both):
    given, keep = values(3), torch.tensor([True, False, True])
    with torch.no_grad():
        dropped = both(given, {"attributes": keep})
        without, whole = both({"semantic_mask": given["semantic_mask"]}), both(given)
    assert torch.equal(dropped[1], without[1])
    assert torch.equal(dropped[[0, 2]], whole[[0, 2]])
    assert both({}, count=2).shape == (2, both.tokens, 32)
    assert torch.equal(both({}, count=2)[0], both({}, count=2)[1])


def test_the_token_for_absent_is_learnt_where_something_is_absent(both):
    both.train()
    both(values(2), {"attributes": torch.tensor([True, False])}).square().sum().backward()
    assert both.absent["attributes"].grad.abs().sum() > 0
    assert both.absent["semantic_mask"].grad.abs().sum() == 0


def test_without_conditions_there_is_one_token():
    nothing = Conditions(width=8, conditions=[])
    assert nothing({}, count=3).shape == (3, 1, 8)
    with pytest.raises(DataError, match="knows no condition 'attributes'"):
        nothing({"attributes": torch.zeros(1, 40)})


# What is refused


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0, 1], "attributes are 2 values, expected 40"),
        ("smiling", "attributes are 'smiling'"),
        (None, "attributes are None"),
        ([0] * 39 + [-1], r"attribute Young is -1, expected true or false, 1 or 0 \(CelebA's -1 is 0\)"),
        ([0] * 39 + [0.5], "attribute Young is 0.5"),
        ([0] * 39 + ["yes"], "attribute Young is 'yes'"),
        (torch.zeros(40, 2), r"attribute 5_o_Clock_Shadow is \[0.0, 0.0\], expected"),
        (torch.tensor(1.0), "attributes are 1.0, expected 40"),
        (np.array([0] * 39 + [np.nan]), "attribute Young is nan"),
        (dict.fromkeys([*ATTRIBUTES, "Smilling"], True), "unknown attribute 'Smilling'"),
        (dict.fromkeys(ATTRIBUTES[1:], True), "attribute 5_o_Clock_Shadow is missing, and 0 more"),
    ],
)
def test_attributes_that_cannot_be_read(value, message):
    with pytest.raises(DataError, match=message):
        ENCODERS["attributes"](8).read(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((32, 32), np.uint8), r"the mask is \(1, 32, 32\), expected \(1, 64, 64\)"),
        (np.full((64, 64), 19, np.uint8), "labels 19 to 19, expected whole ones, 0 to 18: skin, nose"),
        (np.full((64, 64), -1), "labels -1 to -1"),
        (np.zeros((64, 64), np.float32), "expected whole ones"),
        (np.full((64, 64), 30, np.uint16), "labels 30 to 30, expected whole ones"),
        (np.zeros((64, 64), complex), "expected whole ones"),
        (None, r"the mask is \(\), expected \(1, 64, 64\)"),
        (Image.new("RGB", (64, 64)), "mode RGB, expected labels"),
    ],
)
def test_masks_that_cannot_be_read(value, message):
    with pytest.raises(DataError, match=message):
        ENCODERS["semantic_mask"](8, **MASKED).read(value)


def test_options_and_names_that_do_not_fit():
    with pytest.raises(DataError, match="resolution is 100, expected a multiple of 32, as 4 stages halve it"):
        ENCODERS["semantic_mask"](8, resolution=100)
    two = ENCODERS["semantic_mask"](16, resolution=64, channels=[8, 16])
    assert two(torch.zeros(1, 1, 64, 64, dtype=torch.uint8)).shape == (1, two.tokens, 16) == (1, 64, 16)
    with pytest.raises(MldmError, match="condition attributes: .*unexpected keyword argument 'pooled'"):
        Conditions(width=8, conditions=[("attributes", {"pooled": True})])
    with pytest.raises(PluginError, match="unknown condition 'attribute'.*attributes"):
        Conditions(width=8, conditions=[("attribute", {})])


def test_in_the_mirror_left_and_right_parts_change_names():
    encoder = ENCODERS["semantic_mask"](8, **MASKED)
    label = {part: number for number, part in enumerate(PARTS, 1)}
    names = ["l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "nose", "l_lip", "u_lip", "hair"]
    mirrored = encoder.mirrored(torch.tensor([0, *(label[name] for name in names)], dtype=torch.uint8))
    wanted = ["r_eye", "l_eye", "r_brow", "l_brow", "r_ear", "l_ear", "nose", "l_lip", "u_lip", "hair"]
    assert mirrored.tolist() == [0, *(label[name] for name in wanted)], "the lower lip has no partner"


# A third party's, in one file


def test_an_encoder_of_a_plugin_is_joined_too(tmp_path, monkeypatch):
    (tmp_path / "age.py").write_text(
        "import torch\n"
        "from mldm_plugin import hookimpl\n"
        "from mldm_plugin.conditions.encoder import ConditionEncoder\n"
        "class Age(ConditionEncoder):\n"
        "    column, tokens = 'age', 1\n"
        "    def __init__(self, width):\n"
        "        super().__init__(); self.layer = torch.nn.Linear(1, width)\n"
        "    def read(self, value): return torch.tensor([float(value) / 100])\n"
        "    def forward(self, values): return self.layer(values)[:, None]\n"
        "@hookimpl\n"
        "def register_condition_encoders(register): register('age', Age)\n"
    )
    table = load_plugins([str(tmp_path / "age.py")]).condition_encoders
    assert table["age"](4)(torch.tensor([[0.3]])).shape == (1, 1, 4)
    monkeypatch.setattr("mldm_plugin.conditions.conditions.installed_plugins", lambda: {str(tmp_path / "age.py"): ""})
    joined = Conditions(width=32, conditions=[*SMALL, ("age", {})]).eval()
    assert joined.tokens == 1 + 4 + 1
    given = {**values(1), "age": torch.tensor([[0.3]])}
    joined.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        torch.testing.assert_close(Conditions.from_pretrained(tmp_path / "saved")(given), joined(given))
        own = joined.encoders["age"](given["age"])
        assert torch.equal(joined(given)[:, -1:], own), "in the order in which they were asked for"


# The pipeline


def make_pipeline(conditions):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    vae = AutoencoderKL(block_out_channels=(8, 8, 8), latent_channels=4, norm_num_groups=4, **blocks)
    pipeline = ConditionalLDMPipeline(vae, unet, DDIMScheduler(clip_sample=False), conditions)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline(both):
    return make_pipeline(both)


def draw(pipeline, *args, **options):
    given = {"num_inference_steps": 2, "output_type": "pt", "generator": torch.Generator().manual_seed(5), **options}
    return pipeline(*args, **given).images


SMILING = {name: name == "Smiling" for name in ATTRIBUTES}
MASK = np.zeros((SIDE, SIDE), np.uint8)


def test_what_is_saved_draws_the_same(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "ConditionalLDMPipeline"
    loaded = ConditionalLDMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(draw(loaded, SMILING, MASK), draw(pipeline, SMILING, MASK), rtol=1e-4, atol=1e-5)
    assert not torch.equal(draw(pipeline, SMILING), draw(pipeline, {**SMILING, "Male": True}))


def test_one_picture_or_several_in_every_form(pipeline):
    numbers = [int(SMILING[name]) for name in ATTRIBUTES]
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    one = draw(pipeline, SMILING, MASK, latents=latents)
    assert torch.equal(draw(pipeline, numbers, Image.fromarray(MASK), latents=latents), one)
    assert torch.equal(draw(pipeline, torch.tensor(numbers), torch.from_numpy(MASK), latents=latents), one)
    for form in (np.array(numbers), list(np.array(numbers)), {n: np.bool_(so) for n, so in SMILING.items()}):
        assert torch.equal(draw(pipeline, form, MASK.astype(np.uint16), latents=latents), one), "as numpy has it"
    assert len(draw(pipeline, np.array([numbers, numbers]))) == 2
    two = draw(pipeline, [SMILING, numbers], [MASK, MASK], latents=latents.expand(2, -1, -1, -1))
    torch.testing.assert_close(two[1:], one, rtol=1e-4, atol=1e-4)
    assert len(draw(pipeline, batch_size=3)) == 3
    assert draw(pipeline, SMILING, output_type="pil")[0].size == (SIDE, SIDE)


def test_guidance_leads_away_from_what_is_absent(pipeline):
    """ε = ε(absent) + s · (ε(asked) − ε(absent)): linear in s for one step from the same noise."""
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    one_step = {"num_inference_steps": 1, "output_type": "latent", "latents": latents}
    absent, asked, twice = (
        draw(pipeline, **one_step),
        draw(pipeline, SMILING, **one_step),
        draw(pipeline, SMILING, guidance_scale=2.0, **one_step),
    )
    gap = asked - absent
    assert gap.abs().max() > 1e-4
    torch.testing.assert_close(twice - absent, 2 * gap, rtol=0, atol=0.02 * float(gap.abs().max()))


def test_eta_draws_noise_and_its_generator_decides(pipeline):
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    first, again = (draw(pipeline, SMILING, eta=1.0, latents=latents) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, draw(pipeline, SMILING, eta=0.0, latents=latents))


def test_what_the_pipeline_refuses(pipeline):
    with pytest.raises(DataError, match="unequal numbers of conditions: 2 of attributes, 1 of semantic_mask"):
        draw(pipeline, [SMILING, SMILING], MASK)
    with pytest.raises(DataError, match=r"no condition 'text'; it knows attributes, semantic_mask"):
        draw(pipeline, conditions={"text": ["a"]})
    with pytest.raises(DataError, match=r"latents are \(1, 4, 8, 8\), expected \(1, 4, 16, 16\)"):
        draw(pipeline, SMILING, latents=torch.zeros(1, 4, 8, 8))
    alone = make_pipeline(Conditions(width=32, conditions=[]))
    with pytest.raises(DataError, match="it knows none: it is unconditional"):
        draw(alone, SMILING)
