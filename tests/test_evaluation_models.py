"""What --model says: each kind of model by what lies there, and one line where nothing fits."""

import json
import shutil

import pytest
import torch
from diffusers import ConfigMixin
from PIL import Image

from mldm_plugin.errors import MldmError
from mldm_plugin.evaluation.checkpoints import models_of_run
from mldm_plugin.evaluation.judges import networks_of_losses
from mldm_plugin.evaluation.models import LORA, Run, load_pipeline, parse_models, side_of

CPU = ("cpu", torch.float32)


@pytest.fixture
def lora(tmp_path, tiny_pipeline):
    """A run folder of ours with a LoRA of the tiny pipeline."""
    from diffusers import StableDiffusionPipeline

    folder = tmp_path / "run"
    layers, generator = {}, torch.Generator().manual_seed(0)
    for name in ("to_q", "to_v"):
        place = f"mid_block.attentions.0.transformer_blocks.0.attn1.{name}"
        for part, shape in (("down", (2, 16)), ("up", (16, 2))):
            layers[f"{place}.lora.{part}.weight"] = torch.randn(shape, generator=generator)
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    (folder / "arguments.json").write_text(json.dumps({"pretrained_model_name_or_path": str(tiny_pipeline)}))
    return folder


@pytest.fixture
def controlnet(tmp_path, tiny_pipeline):
    from diffusers import ControlNetModel, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline, subfolder="unet")
    ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16)).save_pretrained(tmp_path / "control")
    return tmp_path / "control"


def weights(pipeline):
    return pipeline.unet.state_dict()


def test_a_pipeline_a_lora_a_controlnet_and_pictures(tiny_pipeline, lora, controlnet, tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "0.png")
    given = [f"base={tiny_pipeline}", f"lora={lora}", f"file={lora}/pytorch_lora_weights.safetensors"]
    given += [f"control={controlnet}", f"seen={tmp_path / 'pictures'}", "hub=runwayml/stable-diffusion-v1-5"]
    models = parse_models(given, str(tiny_pipeline))
    kinds = {model.name: model.runs[0].kind for model in models}
    assert kinds == {
        "base": "pipeline",
        "lora": "lora",
        "file": "lora",
        "control": "controlnet",
        "seen": "pictures",
        "hub": "pipeline",
    }


def test_a_run_knows_its_base(lora, tiny_pipeline):
    (model,) = parse_models([f"a={lora}"], None)
    assert model.runs[0].base == str(tiny_pipeline)
    checkpoint = lora / "checkpoint-3"
    checkpoint.mkdir()
    shutil.copy(lora / "pytorch_lora_weights.safetensors", checkpoint)
    (model,) = parse_models([f"a={checkpoint}"], None)
    assert model.runs[0].base == str(tiny_pipeline)


def test_a_pattern_or_the_same_name_again_adds_seeds(lora):
    for seed in (1, 2):
        shutil.copytree(lora, lora.parent / f"run-s{seed}")
    (model,) = parse_models([f"a={lora.parent}/run-s*", f"a={lora}"], None)
    assert [run.what for run in model.runs] == [str(lora.parent / n) for n in ("run-s1", "run-s2", "run")]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("sd", "expected NAME=WHAT"),
        ("a b=x", "expected NAME=WHAT"),
        ("../a=x", "expected NAME=WHAT"),
        ("a=", "expected NAME=WHAT"),
        ("a=runs/none-*", "nothing is called"),
        ("a=./nothing", "is not here. A model is a pipeline"),
        ("a={empty}", "none of what was looked for. A model is a pipeline"),
        ("a={odd}", "none of what was looked for. A model is a pipeline"),
        ("a={adapter}", "say with --base"),
    ],
)
def test_what_fits_nothing_is_said_in_one_line(given, said, tmp_path, lora):
    for name in ("empty", "odd"):
        (tmp_path / name).mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"_class_name": 3}')
    (lora / "arguments.json").unlink()
    with pytest.raises(MldmError, match=said) as error:
        parse_models([given.format(empty=tmp_path / "empty", odd=tmp_path / "odd", adapter=lora)], None)
    assert "\n" not in str(error.value)


def test_an_adapter_changes_what_is_drawn(tiny_pipeline, lora, controlnet):
    generator = torch.Generator().manual_seed(1)
    noisy, text = (torch.randn(shape, generator=generator) for shape in ((1, 4, 8, 8), (1, 77, 16)))
    t = torch.tensor([9])

    def answer(run):
        with torch.no_grad():
            return load_pipeline(run, *CPU).unet(noisy, t, encoder_hidden_states=text).sample

    base = answer(Run(str(tiny_pipeline), "pipeline"))
    assert not torch.equal(answer(Run(str(lora), "lora", str(tiny_pipeline))), base)
    file = lora / "pytorch_lora_weights.safetensors"
    assert not torch.equal(answer(Run(str(file), "lora", str(tiny_pipeline))), base)
    pipeline = load_pipeline(Run(str(controlnet), "controlnet", str(tiny_pipeline)), *CPU)
    assert type(pipeline).__name__ == "StableDiffusionControlNetPipeline"


def test_a_lora_is_merged_and_draws_as_it_does_beside_the_weights(tiny_pipeline, lora):
    from diffusers import StableDiffusionPipeline

    merged = load_pipeline(Run(str(lora), "lora", str(tiny_pipeline)), *CPU).unet
    beside = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
    beside.load_lora_weights(lora)
    assert any("lora" in name for name, _ in beside.unet.named_parameters())
    assert not any("lora" in name for name, _ in merged.named_parameters())
    generator = torch.Generator().manual_seed(1)
    noisy, text = (torch.randn(shape, generator=generator) for shape in ((1, 4, 8, 8), (1, 77, 16)))
    with torch.no_grad():
        one, other = (u(noisy, torch.tensor([9]), encoder_hidden_states=text).sample for u in (merged, beside.unet))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_seeds_are_the_runs_own_and_arms_of_the_same_seeds_are_paired(lora):
    for seed in (1, 2):
        run = shutil.copytree(lora, lora.parent / f"run-s{seed}")
        (run / "arguments.json").write_text(json.dumps({"seed": seed, "pretrained_model_name_or_path": "x"}))
    one, two = (lora.parent / f"run-s{seed}" for seed in (1, 2))
    both, same, turned, unknown = parse_models(
        [
            f"{n}={r}"
            for n, runs in (("a", (one, two)), ("b", (one, two)), ("c", (two, one)), ("d", (one, lora)))
            for r in runs
        ],
        None,
    )
    assert [run.seed for run in both.runs] == [1, 2]
    assert same.has_seeds_of(both)
    assert not turned.has_seeds_of(both)
    assert not unknown.has_seeds_of(unknown), "a seed that nobody knows pairs nothing"


def test_a_controlnet_that_was_trained_without_hints_asks_for_none(controlnet, lora, tiny_pipeline):
    run = Run(str(controlnet), "controlnet", str(tiny_pipeline))
    assert run.takes_hints
    (controlnet / "arguments.json").write_text(json.dumps({"conditioning": "none"}))
    assert not run.takes_hints
    assert not Run(str(lora), "lora", str(tiny_pipeline)).takes_hints


def test_a_lora_that_fits_in_part_is_refused(tiny_pipeline, lora):
    from safetensors.torch import load_file, save_file

    file = lora / "pytorch_lora_weights.safetensors"
    known = load_file(file)
    foreign = {name.replace("mid_block", "middle"): value.clone() for name, value in known.items()}
    save_file({**known, **foreign}, file)
    with pytest.raises(MldmError, match="4 of its 8 tensors"):
        load_pipeline(Run(str(lora), "lora", str(tiny_pipeline)), *CPU)


def test_a_base_that_was_trained_on_changes_the_digest(lora, tiny_pipeline, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_pipeline, base)
    before = Run(str(lora), "lora", str(base)).digest
    file = next((base / "unet").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert Run(str(lora), "lora", str(base)).digest != before


def test_a_lora_that_fits_nothing_is_refused(tiny_pipeline, tmp_path):
    from safetensors.torch import save_file

    save_file({"lora_te1_nothing.alpha": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(MldmError) as error:
        load_pipeline(Run(str(tmp_path / "other.safetensors"), "lora", str(tiny_pipeline)), *CPU)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not weights", b"\xff" * 64])
def test_damaged_weights_are_one_line(tiny_pipeline, tmp_path, content):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(MldmError, match=r"bad.safetensors does not load") as error:
        load_pipeline(Run(str(path), "lora", str(tiny_pipeline)), *CPU)
    assert "\n" not in str(error.value)


def test_a_digest_is_of_the_contents(lora, tiny_pipeline):
    def digest():
        return Run(str(lora), "lora", str(tiny_pipeline)).digest

    before = digest()
    assert before == digest() != Run(str(tiny_pipeline), "pipeline").digest
    (lora / "metrics.jsonl").write_text("{}")
    assert digest() == before, "logs are not weights"
    file = lora / "pytorch_lora_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert digest() != before
    assert Run("name/on-the-hub", "pipeline").digest == ""
    (lora / "conditions").mkdir()
    for what in (lora, file):
        before = Run(str(what), "lora", str(tiny_pipeline)).digest
        (lora / "conditions" / "diffusion_pytorch_model.safetensors").write_bytes(str(what).encode())
        assert Run(str(what), "lora", str(tiny_pipeline)).digest != before, "it draws otherwise"


def configs(index, **parts):
    """The files of a pipeline that are configurations: part → the file's content."""
    return {"model_index.json": index, **{f"{part}/config.json": content for part, content in parts.items()}}


FOUR, SD = {"block_out_channels": [1, 2, 4, 4]}, {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "x"]}
SIZES = [
    (configs(SD, unet={"sample_size": 64}, vae=FOUR), 512),
    (configs(SD, unet={"sample_size": 128}, vae=FOUR), 1024),
    (configs(SD, unet={"sample_size": 32}, vae={"block_out_channels": [1, 2]}), 64),
    (configs({"_class_name": "StableDiffusion3Pipeline"}, transformer={"sample_size": 128}, vae=FOUR), 1024),
    (configs({"_class_name": "FluxPipeline"}, transformer={"in_channels": 64}, vae=FOUR), 1024),
    (configs({"_class_name": "QwenImagePipeline"}, transformer={}, vae={"z_dim": 16}), 1024),
]


@pytest.mark.parametrize("on_hub", [False, True])
@pytest.mark.parametrize(("files", "side"), SIZES)
def test_a_pipeline_is_drawn_at_the_size_of_its_configurations(files, side, on_hub, tmp_path, monkeypatch):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    if on_hub:  # what diffusers fetches from there lies in a folder
        own = ConfigMixin.load_config.__func__
        monkeypatch.setattr(ConfigMixin, "load_config", classmethod(lambda cls, _, **more: own(cls, tmp_path, **more)))
    assert side_of("somebody/something" if on_hub else str(tmp_path)) == side


@pytest.mark.parametrize("content", ["{", "[]", '"x"'])
def test_a_pipeline_that_says_nothing_is_told_of(content, tmp_path, caplog):
    assert side_of(str(tmp_path)) == 512
    assert "--resolution" in caplog.text
    (tmp_path / "model_index.json").write_text(content)
    assert side_of(str(tmp_path)) == 512


def test_the_run_folder_of_somebody_elses_script_has_its_checkpoints_ranked(lora, tiny_pipeline):
    """As attached runs leave it: checkpoints of the script's own, our preset in mldm/, and no arguments.json."""
    (lora / "arguments.json").unlink()
    (lora / "mldm").mkdir()
    (lora / "mldm" / "preset.yaml").write_text("losses: {face: {weight: 1, network: dlib_resnet}}")
    for step in (200, 1000):
        (lora / f"checkpoint-{step}").mkdir()
        shutil.copy(lora / "pytorch_lora_weights.safetensors", lora / f"checkpoint-{step}")
    given = models_of_run(lora)
    assert [text.partition("=")[0] for text in given] == ["final", "step-200", "step-1000"]
    models = parse_models(given, str(tiny_pipeline))
    assert [(model.runs[0].kind, model.runs[0].base) for model in models] == [("lora", str(tiny_pipeline))] * 3
    assert all(networks_of_losses(model) == {"dlib_resnet"} for model in models), "which do not judge, then"
    with pytest.raises(MldmError, match="say with --base"):
        parse_models(given, None)


def test_the_runs_of_a_folder_and_a_name_like_it_are_offered(tmp_path):
    for name in ("plain-s0", "mldm-s0"):
        (tmp_path / "anna" / "runs" / name).mkdir(parents=True)
        (tmp_path / "anna" / "runs" / name / LORA).touch()
    with pytest.raises(
        MldmError, match=rf"Did you mean {tmp_path}/anna/runs/mldm-s0 or {tmp_path}/anna/runs/plain-s0\?"
    ):
        parse_models([f"a={tmp_path / 'anna'}"], "base")
    with pytest.raises(MldmError, match=rf"Did you mean {tmp_path}/anna\?"):
        parse_models([f"a={tmp_path / 'ana'}"], "base")


def of_kohya(lora):
    """The tensors of diffusers' LoRA under the names that sd-scripts gives them, with its alpha."""
    from safetensors.torch import load_file

    found = {}
    for name, value in load_file(lora / LORA).items():
        module, _, part = name.removeprefix("unet.").partition(".lora.")
        place = f"lora_unet_{module.replace('.', '_')}"
        found[f"{place}.lora_{part}"] = value.contiguous()
        found[f"{place}.alpha"] = torch.tensor(2.0)  # of rank 2: the factor is 1
    return found


def test_a_lora_of_kohyas_draws_as_the_same_one_of_diffusers(tiny_pipeline, lora, tmp_path):
    from safetensors.torch import save_file

    save_file(of_kohya(lora), tmp_path / "anna.safetensors", metadata={"ss_network_module": "networks.lora"})
    (model,) = parse_models([f"a={tmp_path / 'anna.safetensors'}"], str(tiny_pipeline))
    assert model.runs[0].kind == "lora"
    theirs, ours = (load_pipeline(run, *CPU) for run in (model.runs[0], Run(str(lora), "lora", str(tiny_pipeline))))
    plain = load_pipeline(Run(str(tiny_pipeline), "pipeline"), *CPU)
    place = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(weights(theirs)[place], weights(ours)[place])
    assert not torch.equal(weights(theirs)[place], weights(plain)[place])
    halved = {name: value / 2 if name.endswith("alpha") else value for name, value in of_kohya(lora).items()}
    save_file(halved, tmp_path / "half.safetensors")
    half = load_pipeline(Run(str(tmp_path / "half.safetensors"), "lora", str(tiny_pipeline)), *CPU)
    gaps = [weights(of)[place] - weights(plain)[place] for of in (half, theirs)]
    torch.testing.assert_close(2 * gaps[0], gaps[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("names", [("out", "out", "out"), ("last", "at", "epoch")], ids=["named", "unnamed"])
def test_the_output_folder_of_sd_scripts_has_its_epochs_and_steps_ranked(lora, tiny_pipeline, tmp_path, names):
    """By the names that it gives files, with --output_name and without."""
    from safetensors.torch import save_file

    folder = tmp_path / "out"
    (folder / "mldm").mkdir(parents=True)
    (folder / "mldm" / "preset.yaml").write_text("losses: {face: {weight: 1, network: dlib_resnet}}")
    final, at, epoch = names
    for stem in (f"{epoch}-000010", f"{epoch}-000002", final, f"{at}-step00000100"):
        save_file(of_kohya(lora), folder / f"{stem}.safetensors")
    given = models_of_run(folder)
    assert given == [
        f"final={folder}/{final}.safetensors",
        f"step-100={folder}/{at}-step00000100.safetensors",
        f"epoch-2={folder}/{epoch}-000002.safetensors",
        f"epoch-10={folder}/{epoch}-000010.safetensors",
    ]
    models = parse_models(given, str(tiny_pipeline))
    assert {model.runs[0].kind for model in models} == {"lora"}
    assert all(networks_of_losses(model) == {"dlib_resnet"} for model in models)
    save_file(of_kohya(lora), folder / "another.safetensors")
    with pytest.raises(MldmError, match=r"holds LoRAs of .* \(another.*ranks those of one training") as error:
        models_of_run(folder)
    assert "\n" not in str(error.value)
