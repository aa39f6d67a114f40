"""Generators, synchronisations, determinism, compiled hosts and NCCL: what a CPU cannot show."""

import os
import warnings
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from gpu_steps import built, moved
from make_step import FaceLoss, PictureLoss, ddpm, make_stack, make_step
from run_trainer import command, run_here, weights_of
from tiny_data import write_data, write_pipeline, write_preset

from mldm_plugin.engine.term import Term
from mldm_plugin.training.controlnet import main


def published_terms():
    """The two losses of the paper, with random networks."""
    return [
        Term("masked_lpips", built("masked_lpips spatial"), 0.2),
        Term("face", built("face vggface2_resnet50"), 0.5),
    ]


def settled(stack, step):
    """A stack whose start-up is over."""
    stack.prove(step)
    stack.start_up = None
    return stack


def test_no_generator_moves(cuda, note):
    torch.cuda.manual_seed(7)
    before, before_cpu = torch.cuda.get_rng_state(), torch.get_rng_state()
    step = moved(make_step((50, 20), size=64, latent_size=16), cuda)
    for _ in range(2):
        make_stack(*published_terms())(step).loss.backward(retain_graph=True)
    same = torch.equal(torch.cuda.get_rng_state(), before) and torch.equal(torch.get_rng_state(), before_cpu)
    note("generators of CPU and GPU untouched", float(same), at_least=1)


@pytest.mark.parametrize(("timesteps", "expected"), [((900, 800), 1), ((50, 800), 2)], ids=["closed", "open"])
def test_synchronisations_of_a_step(timesteps, expected, cuda, note):
    """Counted by CUDA itself; what is logged comes after the optimizer's step."""
    step = moved(make_step(timesteps, size=64, latent_size=16), cuda)
    step = replace(step, base_loss=F.mse_loss(step.model_pred, step.target))
    stack = settled(make_stack(*published_terms()), step)
    stack(step)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            report = stack(step)
            report.numbers()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
    gate = "open" if timesteps[0] < 100 else "closed"
    print(waits)  # noqa: T201, for where they are
    note(f"synchronisations of a step, gate {gate}", len(waits), at_most=expected)


def test_runs_are_equal_to_the_bit_under_deterministic_algorithms(cuda, note):
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    step = moved(make_step((50, 20), size=64, latent_size=16), cuda)
    stack = settled(make_stack(*published_terms()), step)
    torch.use_deterministic_algorithms(True)
    try:
        grads = [torch.autograd.grad(stack(replace(step, base_loss=None)).loss, step.model_pred)[0] for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    same = all(torch.equal(g, grads[0]) for g in grads)
    note("three runs equal to the bit, deterministic algorithms", float(same), at_least=1)
    grads = [torch.autograd.grad(stack(replace(step, base_loss=None)).loss, step.model_pred)[0] for _ in range(3)]
    note("three runs equal to the bit, without", float(all(torch.equal(g, grads[0]) for g in grads)))


class Host(torch.nn.Module):
    """A small U-Net of Stable Diffusion's kind as a trainer has it."""

    def __init__(self):
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(32, 64),
            layers_per_block=1,
            cross_attention_dim=32,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=8,
            norm_num_groups=8,
        )

    def forward(self, noisy, timesteps, text):
        return self.unet(noisy, timesteps, text, return_dict=False)[0]


def gradients(model, step, stack):
    """Of the host's weights after one step."""
    text = torch.zeros(len(step), 4, 32, device=step.latents.device)
    model.zero_grad()
    output = model(step.noisy_latents, step.timesteps, text)
    report = stack(replace(step, model_pred=output, base_loss=F.mse_loss(output, step.target)))
    report.loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def terms():
    return Term("picture", PictureLoss(), 0.3), Term("face", FaceLoss(), 0.3)


def host_and_step(cuda):
    torch.manual_seed(0)
    step = moved(make_step((50, 20, 900), size=64, latent_size=16, scheduler=ddpm()), cuda)
    return Host().to(cuda), step


def test_ddp_over_nccl_on_one_rank(cuda, note, tmp_path):
    model, step = host_and_step(cuda)
    plain = gradients(model, step, make_stack(*terms()))
    dist.init_process_group("nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(model, device_ids=[cuda.index])
        got = gradients(parallel, step, make_stack(*terms()))
    finally:
        dist.destroy_process_group()
    note("DDP over NCCL, one rank: gradient", ((got - plain).norm() / plain.norm()).item(), at_most=1e-5)


def test_checkpoints_resume_exactly(cuda, deterministic, note, tmp_path):
    """Our ControlNet trainer in bf16 with the losses: four steps, and two and two."""
    pipeline, data = write_pipeline(tmp_path / "pipeline"), write_data(tmp_path / "data")
    preset = write_preset(tmp_path / "preset.yaml")

    def train(output, *flags):
        given = ["--preset", preset, "--mixed_precision", "bf16", "--checkpointing_steps", 2, *flags]
        assert run_here(main, command(output, pipeline, data, *given), cpu=False) == 0
        return weights_of(output)

    whole, again = (train(tmp_path / name, "--max_train_steps", 4) for name in ("whole", "again"))
    train(tmp_path / "parts", "--max_train_steps", 2)
    parts = train(tmp_path / "parts", "--max_train_steps", 4, "--resume_from_checkpoint", "latest")
    by_chance, off = (max((whole[k] - made[k]).abs().max().item() for k in whole) for made in (again, parts))
    note("a run against the same run: weights", by_chance)
    note("resumed run against an uninterrupted one: weights", off, at_most=1e-6)


def test_a_compiled_host(cuda, note):
    model, step = host_and_step(cuda)
    plain = gradients(model, step, make_stack(*terms()))
    compiled = gradients(torch.compile(model), step, make_stack(*terms()))
    note("torch.compile of the host: gradient", ((compiled - plain).norm() / plain.norm()).item(), at_most=1e-3)
