"""Every loss gives on a GPU what it gives on a CPU, in each precision that a host may train in."""

from dataclasses import replace

import pytest
import torch
from gpu_steps import LOSSES, SIDE, built, moved
from make_step import FaceLoss, LatentLoss, PictureLoss, arms, make_stack, make_step

from mldm_plugin.engine.term import Term


def value_and_gradient(stack, step):
    report = stack(replace(step, base_loss=None))
    (gradient,) = torch.autograd.grad(report.loss, step.model_pred)
    return report.loss.item(), gradient.float().cpu()


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_is_the_cpus(name, cuda, note):
    step = replace(make_step((50, 20), size=SIDE, latent_size=SIDE // 4), keypoints=arms(2))
    results = []
    for device in ("cpu", cuda):
        stack = make_stack(Term(name.replace(" ", "_"), built(name), 0.5))
        results.append(value_and_gradient(stack, moved(step, device)))
    (value, gradient), (other, other_gradient) = results
    note(f"{name}: value, relative to the CPU's", abs(other - value) / value, at_most=1e-4)
    cosine = torch.cosine_similarity(gradient.flatten(), other_gradient.flatten(), dim=0).item()
    note(f"{name}: cosine of the gradient with the CPU's", cosine, at_least=0.999)


@pytest.mark.parametrize("host", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bf16", "fp16"])
def test_the_mix_in_each_precision_of_the_host(host, cuda, note):
    """fp16 through a GradScaler, whose scale reaches the early gradients as any other."""
    step = make_step((50, 20, 900), size=SIDE, latent_size=SIDE // 4)
    terms = lambda: (Term("picture", PictureLoss(), 0.3), Term("face", FaceLoss(), 0.3), Term("z", LatentLoss(), 0.1))  # noqa: E731
    exact = value_and_gradient(make_stack(*terms()), step)
    there = moved(step, cuda)
    there = replace(there, **{n: getattr(there, n).to(host) for n in ("latents", "noise", "noisy_latents", "target")})
    weight = torch.nn.Parameter(torch.ones((), device=cuda))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scaler = torch.amp.GradScaler("cuda", enabled=host == torch.float16)
    output = (there.model_pred.detach() * weight).to(host)
    output.retain_grad()
    with torch.autocast("cuda", dtype=host, enabled=host != torch.float32):
        report = make_stack(*terms())(replace(there, model_pred=output, base_loss=None))
    scaler.scale(report.loss).backward()
    gradient = output.grad.float() / (scaler.get_scale() if scaler.is_enabled() else 1)
    scaler.unscale_(optimizer)
    name = str(host).removeprefix("torch.")
    expected = (exact[1].to(cuda) * there.model_pred.detach()).sum()
    note(f"mix on a {name} host: loss", abs(report.loss.item() - exact[0]) / exact[0], at_most=0.01)
    cosine = torch.cosine_similarity(gradient.flatten().cpu(), exact[1].flatten(), dim=0).item()
    note(f"mix on a {name} host: cosine of the gradient", cosine, at_least=0.995)
    note(
        f"mix on a {name} host: unscaled weight gradient",
        ((weight.grad - expected) / expected).abs().item(),
        at_most=0.05,
    )


def test_a_batch_is_its_images(cuda, note):
    step = moved(make_step((50, 20, 80), size=SIDE, latent_size=SIDE // 4), cuda)
    loss = built("masked_lpips spatial")
    together = make_stack(Term("m", loss, 0.5), decode_batch=4)(replace(step, base_loss=None)).loss
    alone = [make_stack(Term("m", loss, 0.5))(replace(step.select([i]), base_loss=None)).loss for i in range(3)]
    note("a batch against its images one by one", (together - torch.stack(alone).mean()).abs().item(), at_most=1e-4)
