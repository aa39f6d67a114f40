"""A pipeline asked for one prediction answers what its network answers, for every family."""

import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_families import build

from mldm_plugin.data.batch import Example
from mldm_plugin.errors import CheckError
from mldm_plugin.evaluation.judges import Judges
from mldm_plugin.evaluation.models import Run, load_pipeline
from mldm_plugin.evaluation.one_step import TIMESTEPS, OneStep, detail
from mldm_plugin.evaluation.predicting import Asker
from mldm_plugin.evaluation.quantities import QUANTITIES

JUDGES = Judges("dlib_resnet", "alex")
PHOTO = Example(
    pixel_values=torch.linspace(-1, 1, 3 * 64 * 64).view(3, 64, 64),
    person_mask=torch.zeros(1, 64, 64, dtype=torch.uint8).index_fill_(1, torch.arange(16, 48), 1),
    face_boxes=torch.tensor([[20.0, 20.0, 44.0, 44.0]]),
)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    def loaded(family, **options):
        folder = build(family, tmp_path_factory.mktemp(family), **options)
        return load_pipeline(Run(str(folder), "pipeline"), "cpu", torch.float32)

    return loaded


@pytest.mark.parametrize("t", [20, 400])
def test_stable_diffusions_answer_is_its_unets(load, t):
    pipeline = load("sd")
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    tokens = pipeline.tokenizer("a man", padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        text = pipeline.text_encoder(tokens.input_ids)[0]
        wanted = pipeline.unet(noisy, torch.tensor([t]), encoder_hidden_states=text).sample
    scheduler = pipeline.scheduler
    assert torch.equal(Asker(pipeline)(noisy, t, "a man", PHOTO), wanted)
    assert pipeline.scheduler is scheduler


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_every_family_answers_in_the_shape_of_its_latents_and_looks_at_them(load, family):
    pipeline = load(family)
    channels = pipeline.vae.config.latent_channels
    noisy = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    ask = Asker(pipeline)
    one, again, other, later = (
        ask(z, t, "a man", PHOTO) for z, t in ((noisy, 400), (noisy, 400), (-noisy, 400), (noisy, 900))
    )
    assert one.shape == noisy.shape
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, later)


class Oracle:
    """A network that knows the answer, but for a share of it."""

    def __init__(self, one_step, share):
        self.schedule, self.share = one_step.schedule, share
        self.latents = one_step.decoder.encode(PHOTO.pixel_values[None])[0]

    def __call__(self, noisy, t, caption, example):
        alpha, sigma = (x.view(1, 1, 1, 1) for x in self.schedule.coefficients(torch.tensor([t])))
        noise = (noisy - alpha * self.latents) / sigma
        return self.share * self.schedule.target(self.latents, noise, alpha, sigma)


@pytest.fixture
def random_judges(monkeypatch):
    """Judges with seeded random weights, so that nothing is fetched."""
    from mldm_plugin.evaluation import one_step

    faces, lpips = one_step.FaceFeatures, one_step.LPIPSNetwork
    monkeypatch.setattr(one_step, "FaceFeatures", lambda name: faces(name, "random"))
    monkeypatch.setattr(one_step, "LPIPSNetwork", lambda name: lpips(name, "random"))


class Shows:
    """A decoder that shows one picture whatever it is given."""

    def __init__(self, picture):
        self.picture = picture

    def encode(self, picture):
        return picture, None

    def __call__(self, latents):
        return self.picture


@pytest.mark.parametrize(
    ("family", "options"),
    [("sd", {}), ("sd", {"prediction_type": "v_prediction"}), ("sdxl", {}), ("sd3", {}), ("flux", {})],
)
def test_a_network_that_knows_the_answer_has_no_error_in_any_parametrisation(load, random_judges, family, options):
    pipeline = load(family, **options)
    one_step = OneStep(pipeline.vae, pipeline.scheduler, JUDGES)
    right = list(one_step(Oracle(one_step, 1.0), PHOTO, "a man", "00000"))
    wrong = list(one_step(Oracle(one_step, 0.5), PHOTO, "a man", "00000"))
    assert len(right) == len(TIMESTEPS)
    for quantity in QUANTITIES:
        values = [at_t[quantity.name] for at_t in right]
        assert max(values) < 1e-3, (quantity.name, values)
        more = sum(at_t[quantity.name] for at_t in wrong)
        assert more > 3 * sum(values) or quantity.name == "one_step_blur_person", quantity.name  # noise is no blur


def test_detail_is_that_of_the_mask_and_what_a_blur_takes_is_lost(load, random_judges):
    stripes = torch.ones(1, 3, 16, 16)
    stripes[..., ::2] = -1  # the Laplacian of columns −1, 1, −1 is ±4
    left = torch.zeros(1, 1, 16, 16)
    left[..., 1:8] = 1
    half = stripes.clone()
    half[..., 9:] = 0
    assert detail(stripes, torch.ones(1, 1, 16, 16)) > 10
    assert detail(half, left).item() == pytest.approx(16)
    assert detail(half, 1 - left) < 10
    pipeline = load("sd")
    one_step = OneStep(pipeline.vae, pipeline.scheduler, JUDGES)
    decoded = one_step.floor(PHOTO).picture
    blurred = F.avg_pool2d(F.pad(decoded, (1, 1, 1, 1), mode="replicate"), 3, 1)
    known = replace(PHOTO, pixel_values=decoded[0])
    for shown, lost in ((decoded, False), (blurred, True)):
        one_step.decoder = Shows(shown)
        assert (one_step.floor(known).values["one_step_blur_person"] > 1) == lost


def test_noise_is_of_the_photograph_and_t_alone(load, random_judges):
    pipeline, seen = load("sd"), []
    one_step = OneStep(pipeline.vae, pipeline.scheduler, JUDGES)

    def note(noisy, t, caption, example):
        seen.append(noisy)
        return torch.zeros_like(noisy)

    for name in ("00000", "00000", "00001"):
        list(one_step(note, PHOTO, "a man", name))
    first, again, other = (seen[i * len(TIMESTEPS) : (i + 1) * len(TIMESTEPS)] for i in range(3))
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


def test_without_mask_and_faces_the_whole_picture_is_looked_at(load, random_judges):
    pipeline = load("sd")
    one_step = OneStep(pipeline.vae, pipeline.scheduler, JUDGES)
    found = next(iter(one_step(Asker(pipeline), Example(PHOTO.pixel_values), "a man", "00000")))
    assert found["one_step_error"] > 0
    assert found["one_step_lpips_outside"] > 0
    assert found["one_step_face"] is found["one_step_lpips_person"] is found["one_step_error_person"] is None


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "PNDMScheduler"])
def test_a_network_is_asked_at_the_timesteps_that_it_was_trained_at(load, random_judges, name):
    """SDXL ships with Euler's sampler, whose own steps are σ."""
    import diffusers

    pipeline, seen = load("sdxl"), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # diffusers hands tensors to numpy
        sampler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    one_step = OneStep(pipeline.vae, sampler, JUDGES)

    def note(noisy, t, caption, example):
        seen.append((t, float(noisy.std())))
        return torch.zeros_like(noisy)

    list(one_step(note, PHOTO, "a man", "00000"))
    assert [t for t, _ in seen] == list(TIMESTEPS)
    assert max(spread for _, spread in seen) < 2


def test_edm_is_refused_not_guessed(load):
    import diffusers

    with pytest.raises(CheckError, match="EDMEulerScheduler"):
        OneStep(load("sd").vae, diffusers.EDMEulerScheduler(), JUDGES)
