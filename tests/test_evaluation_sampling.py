"""The same noise for every model, whatever is drawn before, beside and by how many; what is drawn stays drawn."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import build

from mldm_plugin.errors import MldmError
from mldm_plugin.evaluation.cases import Case, cases_of_photographs, open_photographs
from mldm_plugin.evaluation.models import Run, load_pipeline, set_sampler
from mldm_plugin.evaluation.sampling import Sampling, draw, noise_of, picture_name

# diffusers hands tensors to numpy in some of its schedulers
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CASES = [Case(f"{i:05d}", text, 1) for i, text in enumerate(["a man", "a woman", "a child", "two people"])]
FEW = Sampling(steps=2, guidance=2.0, resolution=64)


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline):
    pipeline = load_pipeline(Run(str(tiny_pipeline), "pipeline"), "cpu", torch.float32)
    set_sampler(pipeline, "dpm++")
    return pipeline


def pixels(folder, cases=CASES, repetition=0):
    return [np.asarray(Image.open(folder / picture_name(case, repetition))) for case in cases]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_noise_is_of_the_case_alone():
    def drawn(*of):
        return torch.randn(4, generator=noise_of(*of))

    assert torch.equal(drawn(0, CASES[0], 0), drawn(0, Case("00000", "other words", 3, row=7), 0))
    others = [drawn(0, CASES[1], 0), drawn(0, CASES[0], 1), drawn(1, CASES[0], 0)]
    assert not any(torch.equal(drawn(0, CASES[0], 0), other) for other in others)


@pytest.mark.parametrize("sampler", ["dpm++", "ddim", "EulerAncestralDiscreteScheduler"])
def test_batch_order_and_share_change_nothing(pipeline, tmp_path, sampler):
    """Also with a sampler that draws noise in every step."""
    set_sampler(pipeline, sampler)
    draw(pipeline, CASES, FEW, tmp_path / "one")
    draw(pipeline, CASES, FEW, tmp_path / "four", batch=4)
    draw(pipeline, CASES[::-1], FEW, tmp_path / "back", batch=3)
    for rank in (1, 0):
        draw(pipeline, CASES, FEW, tmp_path / "shared", share=(rank, 2))
    one = pixels(tmp_path / "one")
    assert all(same(one, pixels(tmp_path / other)) for other in ("four", "back", "shared"))
    assert not same(one[:1], one[1:2])


def test_a_controlnet_without_a_hint_draws_pictures_of_its_own_size(tiny_pipeline, pipeline, tmp_path):
    """diffusers takes the size from the hint, and a black one has any."""
    from diffusers import ControlNetModel

    ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(8, 8, 8, 16)).save_pretrained(
        tmp_path / "c"
    )
    controlled = load_pipeline(Run(str(tmp_path / "c"), "controlnet", str(tiny_pipeline)), "cpu", torch.float32)
    for name, one in (("own", pipeline), ("controlled", controlled)):
        draw(one, CASES[:1], Sampling(steps=1, guidance=1.0), tmp_path / name)
    [own], [other] = (pixels(tmp_path / name, CASES[:1]) for name in ("own", "controlled"))
    assert other.shape == own.shape
    draw(controlled, CASES[:1], FEW, tmp_path / "asked")
    assert pixels(tmp_path / "asked", CASES[:1])[0].shape == (64, 64, 3)


def test_a_controlnet_draws_from_the_hint_of_its_prompts_photograph(tiny_pipeline, tiny_data, pipeline, tmp_path):
    from diffusers import ControlNetModel

    network = ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(8, 8, 8, 16))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():  # what begins as 0 says nothing of a hint
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    network.save_pretrained(tmp_path / "c")
    controlled = load_pipeline(Run(str(tmp_path / "c"), "controlnet", str(tiny_pipeline)), "cpu", torch.float32)
    set_sampler(controlled, "dpm++")
    photographs = open_photographs(tiny_data, 64)
    cases = cases_of_photographs(photographs, 2, seed=0)
    draw(controlled, cases, FEW, tmp_path / "seen", photographs=photographs)
    draw(controlled, cases, FEW, tmp_path / "blind")
    for case, seen, blind in zip(
        cases, pixels(tmp_path / "seen", cases), pixels(tmp_path / "blind", cases), strict=True
    ):
        hint = photographs.look(case.row).conditioning_pixel_values[None]
        options = {"num_inference_steps": 2, "guidance_scale": 2.0, "height": 64, "width": 64}
        [wanted] = controlled([case.text], image=hint, generator=[noise_of(0, case, 0)], **options).images
        assert np.array_equal(seen, np.asarray(wanted))
        assert not np.array_equal(seen, blind)


def test_what_is_drawn_is_not_drawn_again(pipeline, tmp_path):
    draw(pipeline, CASES, FEW, tmp_path)
    (tmp_path / picture_name(CASES[1], 0)).unlink()
    kept = tmp_path / picture_name(CASES[0], 0)
    Image.new("RGB", (64, 64)).save(kept)
    draw(pipeline, CASES, FEW, tmp_path)
    assert (tmp_path / picture_name(CASES[1], 0)).is_file()
    assert not np.asarray(Image.open(kept)).any(), "a picture that was there was drawn again"


def test_a_progress_bar_counts_what_is_drawn(pipeline, tmp_path, capsys):
    draw(pipeline, CASES[:2], FEW, tmp_path, title="mldm")
    said = capsys.readouterr().err
    assert "mldm: 100%" in said
    assert "2/2" in said
    draw(pipeline, CASES[:2], FEW, tmp_path, title="mldm")
    assert capsys.readouterr().err == "", "nothing was left to draw"


def test_repetitions_are_of_other_noise(pipeline, tmp_path):
    draw(pipeline, CASES[:1], Sampling(steps=2, repetitions=2, resolution=64), tmp_path)
    assert not same(pixels(tmp_path, CASES[:1]), pixels(tmp_path, CASES[:1], 1))


def test_the_global_generators_stay_where_they_are(pipeline, tmp_path):
    before = torch.get_rng_state()
    draw(pipeline, CASES[:1], FEW, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_every_family_by_what_its_folder_says(family, tmp_path):
    """Its sampler, too: flow matching keeps its own."""
    folder = build(family, tmp_path / family)
    pipeline = load_pipeline(Run(str(folder), "pipeline"), "cpu", torch.float32)
    own = type(pipeline.scheduler).__name__
    sampler = set_sampler(pipeline, "ddim")
    assert sampler == ("DDIMScheduler" if family in ("sd", "sdxl") else own)
    draw(pipeline, CASES[:2], Sampling(steps=2, resolution=64), tmp_path / "1")
    draw(pipeline, CASES[1::-1], Sampling(steps=2, resolution=64), tmp_path / "2")
    assert same(pixels(tmp_path / "1", CASES[:2]), pixels(tmp_path / "2", CASES[:2]))


def test_an_unknown_sampler_is_named_with_its_neighbour(pipeline):
    with pytest.raises(MldmError, match="--sampler DDIMSheduler: .*DDIMScheduler"):
        set_sampler(pipeline, "DDIMSheduler")


class Hungry:
    """A pipeline on a device with memory for two pictures."""

    device = torch.device("cuda")

    def __init__(self, pipeline):
        self.pipeline, self.tried = pipeline, []

    def __call__(self, texts, **options):
        self.tried.append(len(texts))
        if len(texts) > 2:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return self.pipeline(texts, **options)


def test_the_batch_shrinks_until_it_fits(pipeline, tmp_path):
    hungry = Hungry(pipeline)
    draw(hungry, CASES, FEW, tmp_path, batch=4)
    assert hungry.tried == [4, 2, 2]
    assert len(list(tmp_path.glob("*.png"))) == 4


class Recorder:
    """A pipeline on a GPU that writes down whose noise each picture of a batch gets."""

    device = torch.device("cuda")

    def __init__(self):
        self.seen = []

    def __call__(self, texts, *, generator, **options):
        self.seen.append([(text, one.initial_seed()) for text, one in zip(texts, generator, strict=True)])
        return SimpleNamespace(images=[Image.new("RGB", (8, 8)) for _ in texts])


def test_every_picture_of_a_batch_has_the_noise_of_its_own_case(tmp_path):
    """A CPU draws one by one, so only a pipeline that says that it is elsewhere sees a batch."""
    recorder = Recorder()
    draw(recorder, CASES, Sampling(repetitions=2, seed=3), tmp_path, batch=3)
    assert [len(batch) for batch in recorder.seen] == [3, 3, 2]
    wanted = [(case.text, noise_of(3, case, r).initial_seed()) for r in (0, 1) for case in CASES]
    assert [one for batch in recorder.seen for one in batch] == wanted
    assert len({seed for _, seed in wanted}) == 8


class Elsewhere(Hungry):
    """A pipeline on a device with memory for any batch."""

    def __call__(self, texts, **options):
        self.tried.append(len(texts))
        return self.pipeline(texts, **options)


def test_a_batch_of_eight_draws_the_same_again_and_what_one_by_one_draws(pipeline, tmp_path):
    """To the bit where the batches are the same; else up to a grey level, as docs/evaluation.md says."""
    twice = Sampling(steps=2, guidance=2.0, resolution=64, repetitions=2)
    for name, batch in (("one", 8), ("two", 8), ("alone", 1)):
        elsewhere = Elsewhere(pipeline)
        draw(elsewhere, CASES, twice, tmp_path / name, batch=batch)
        assert elsewhere.tried == [batch] * (8 // batch)
    for repetition in (0, 1):
        one, two, alone = (pixels(tmp_path / name, CASES, repetition) for name in ("one", "two", "alone"))
        assert same(one, two)
        assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(one, alone, strict=True))
