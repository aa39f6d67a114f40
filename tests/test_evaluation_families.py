"""LoRAs and ControlNets of the families beside Stable Diffusion 1.x: loaded, drawn with, asked in one step."""

import diffusers
import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from tiny_families import build

from mldm_plugin.data.batch import Example
from mldm_plugin.evaluation.cases import Case
from mldm_plugin.evaluation.models import load_pipeline, parse_models, set_sampler
from mldm_plugin.evaluation.predicting import Asker
from mldm_plugin.evaluation.sampling import Sampling, draw, picture_name

pytestmark = pytest.mark.filterwarnings(
    "ignore:`FluxPosEmbed` is deprecated:FutureWarning"
)  # in diffusers' own ControlNet
CASE = Case("0", "a person")
LATENTS = {"sdxl": 4, "sd3": 16, "flux": 16}


@pytest.fixture(scope="module", params=LATENTS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def base(family, tmp_path_factory):
    return build(family, tmp_path_factory.mktemp(family) / "base")


def trained(network):
    """The same with weights that a training would have moved: what begins at zero says something now."""
    with torch.no_grad():
        for place, weight in enumerate(network.parameters()):
            if not weight.any():
                weight.copy_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(place)))
    return network


def lora_of(base, folder):
    pipeline = diffusers.DiffusionPipeline.from_pretrained(base)
    part = "unet" if hasattr(pipeline, "unet") else "transformer"
    network = getattr(pipeline, part)
    network.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian"))
    trained(network)
    pipeline.save_lora_weights(folder, **{f"{part}_lora_layers": get_peft_model_state_dict(network)})
    return folder


def controlnet_of(family, base, folder):
    pipeline = diffusers.DiffusionPipeline.from_pretrained(base)
    if family == "sdxl":
        network = diffusers.ControlNetModel.from_unet(pipeline.unet)
    elif family == "sd3":
        network = diffusers.SD3ControlNetModel.from_transformer(pipeline.transformer, num_extra_conditioning_channels=0)
    else:
        network = diffusers.FluxControlNetModel.from_config(pipeline.transformer.config)
    trained(network).save_pretrained(folder)
    return folder


def loaded(base, **models):
    runs = [model.runs[0] for model in parse_models([f"{name}={what}" for name, what in models.items()], str(base))]
    return [load_pipeline(run, "cpu", torch.float32) for run in runs]


def drawn(pipeline, folder):
    set_sampler(pipeline, "ddim")
    draw(pipeline, [CASE], Sampling(steps=2, resolution=64), folder)
    with Image.open(folder / picture_name(CASE, 0)) as picture:
        return np.asarray(picture)


def answer(family, pipeline, hint=None):
    noisy = torch.randn((1, LATENTS[family], 8, 8), generator=torch.Generator().manual_seed(1))
    example = Example(torch.zeros(3, 64, 64), conditioning_pixel_values=hint)
    return Asker(pipeline)(noisy, 300, CASE.text, example)


def test_a_lora_is_drawn_with_and_asked(family, base, tmp_path):
    plain, adapted = loaded(base, plain=base, adapted=lora_of(base, tmp_path / "lora"))
    assert not np.array_equal(drawn(plain, tmp_path / "plain"), drawn(adapted, tmp_path / "adapted"))
    assert not torch.equal(answer(family, plain), answer(family, adapted))


def test_a_controlnet_is_drawn_with_and_asked_with_the_hint(family, base, tmp_path):
    plain, steered = loaded(base, plain=base, steered=controlnet_of(family, base, tmp_path / "controlnet"))
    assert "ControlNet" in type(steered).__name__
    assert not np.array_equal(drawn(plain, tmp_path / "plain"), drawn(steered, tmp_path / "steered"))
    hint = torch.rand((3, 64, 64), generator=torch.Generator().manual_seed(2))
    black, shown = answer(family, steered), answer(family, steered, hint)
    assert black.shape == shown.shape
    assert not torch.equal(black, answer(family, plain))
    assert not torch.equal(black, shown)
