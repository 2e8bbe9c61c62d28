"""Two ways to the likelihood ratio of a few-step student: by its own transitions, or by its denoising errors.

A sampler that renoises is a Gaussian Markov chain, so its transitions have exact densities. Where it is deterministic, or only clean
samples are at hand, the difference of two networks' denoising errors stands for the ratio (https://arxiv.org/abs/2311.12908).
"""

from __future__ import annotations

from typing import Literal

import torch

from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.transitions import Kernel, Reduction, log_ratio, transition
from stepdistill.losses.score import denoising_error
from stepdistill.typing import Latents, Times

ErrorWeight = Literal["inverse_variance", "snr"]
"""inverse_variance: the error of x0 over sigma^2, that of v (VP) or of the flow. snr: alpha^2 times that, the error of eps."""


def transition_log_ratio(
    student: Denoiser,
    reference: Denoiser,
    states: tuple[Latents, Latents],
    times: tuple[float, float],
    cond: Conditioning,
    *,
    kernel: Kernel,
    reduction: Reduction,
) -> Times:
    """log p_student(x_s | x_t) - log p_reference(x_s | x_t), shape (B,); gradients flow into the student.

    Args:
        student: the policy.
        reference: what it is measured against; called first, so that the student is the last to have run.
        states: x_t and x_s.
        times: t and s.
        cond: the conditioning of both.
        kernel: of the sampler.
        reduction: over the elements of a sample.
    """
    x_t, x_s = states
    t, s = (torch.full((len(x_t),), time, device=x_t.device) for time in times)
    with torch.no_grad():
        base = transition(reference(x_t, t, cond), s, reference.schedule, kernel)
    law = transition(student(x_t, t, cond), s, student.schedule, kernel)
    return log_ratio(x_s, law, base, reduction=reduction)


def denoising_errors(
    network: Denoiser,
    x0: Latents,
    eps: Latents,
    t: Times,
    cond: Conditioning,
    *,
    weight: ErrorWeight,
    reduction: Reduction,
) -> Times:
    """A network's weighted denoising error of each sample, shape (B,)."""
    out = network(network.schedule.add_noise(x0, eps, t), t, cond)
    alpha, sigma = network.schedule.level(t)
    scale = (1.0 if weight == "inverse_variance" else alpha**2) / sigma**2
    size = x0[0].numel() if reduction == "sum" else 1
    return size * scale * denoising_error(network.schedule, "x0", out, x0)
