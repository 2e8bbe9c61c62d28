"""Likelihood ratios of a few-step student: from its transitions, or from its denoising errors.

A sampler that renoises is a Gaussian Markov chain, so its transitions have exact densities. For a deterministic sampler, or if only
clean samples are available, the difference of two networks' denoising errors approximates the log ratio
(Diffusion-DPO, https://arxiv.org/abs/2311.12908, eq. 14).
"""

from __future__ import annotations

import torch

from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.choices import Kernel, Reduction
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.transitions import log_ratio, transition
from stepdistill.distillers.preference.config import ErrorWeight
from stepdistill.losses.score import denoising_error
from stepdistill.typing import Latents, Times


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
        reference: the frozen policy; called first, so that the student's adapter stays active.
        states: x_t and x_s, (B, *shape) each.
        times: t and s.
        cond: conditioning of both networks.
        kernel: the sampler's transition kernel.
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
