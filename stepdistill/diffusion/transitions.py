"""A few-step sampler as a Markov chain: the Gaussian transition to the next state, and log-likelihood ratios.

| kernel | next state | stock scheduler |
|---|---|---|
| renoise | N(alpha_s x0, sigma_s^2): x0 with fresh noise | `LCMScheduler`; on flows `FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)` |
| ancestral | keeps part of the predicted noise, renews the rest | `EulerAncestralDiscreteScheduler` (SDXL-Turbo) |

The last step returns x0 itself and has no density; neither does any step of a deterministic sampler.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stepdistill.diffusion.choices import Kernel, Reduction
from stepdistill.diffusion.denoised import Denoised
from stepdistill.diffusion.schedules.base import DIVISOR_FLOOR, NoiseSchedule, at_least_float32, per_sample
from stepdistill.typing import Latents, Times


@dataclass(frozen=True, eq=False)
class Transition:
    """Distribution N(mean, std^2) of the next state, one std per sample."""

    mean: Latents
    std: Times

    def draw(self, noise: Latents) -> Latents:
        """Return mean + std noise, from standard normal noise."""
        return self.mean + per_sample(self.std, self.mean) * noise


def transition(out: Denoised, s: Times, schedule: NoiseSchedule, kernel: Kernel) -> Transition:
    """Return the distribution of the state at s, given the estimates at a noisier time t.

    "ancestral", with k = sigma / alpha: mean alpha_s (x0 + k_s^2 / k_t eps), std sigma_s sqrt(1 - (k_s / k_t)^2).
    That is DDPM's posterior q(x_s | x_t, x0) (https://arxiv.org/abs/2006.11239, eq. 6 and 7).

    >>> import torch
    >>> from types import SimpleNamespace
    >>> from stepdistill.diffusion.schedules.families import FlowSchedule
    >>> one = torch.ones(1, 1)
    >>> out = SimpleNamespace(x0=one, eps=one, t=torch.tensor([1.0]))
    >>> law = transition(out, torch.tensor([0.25]), FlowSchedule(), "ancestral")
    >>> law.mean, law.std
    (tensor([[0.7500]]), tensor([0.2500]))
    """
    alpha, sigma = schedule.level(s)
    if kernel == "renoise":
        return Transition(per_sample(alpha, out.x0) * out.x0, sigma)
    if kernel != "ancestral":
        raise ValueError(f"kernel must be renoise or ancestral, got {kernel!r}")
    alpha_t, sigma_t = schedule.level(out.t)
    # k_s / k_t, written without dividing by alpha_t, which may be zero
    ratio = sigma / alpha.clamp(min=DIVISOR_FLOOR) * alpha_t / sigma_t.clamp(min=DIVISOR_FLOOR)
    mean = per_sample(alpha, out.x0) * out.x0 + per_sample(sigma * ratio, out.eps) * out.eps
    return Transition(mean, sigma * (1 - ratio**2).clamp(min=0).sqrt())


def log_ratio(x_s: Latents, law: Transition, reference: Transition, *, reduction: Reduction) -> Times:
    """Return log p(x_s) - log p_ref(x_s) of two transitions with the same std, shape (B,).

    The difference of squares (x - m_ref)^2 - (x - m)^2 is computed as (m - m_ref) (2 x - m - m_ref), which
    avoids cancellation.

    >>> import torch
    >>> one = torch.ones(1, 2)
    >>> law, reference = Transition(one, torch.ones(1)), Transition(0 * one, torch.ones(1))
    >>> log_ratio(one, law, reference, reduction="sum"), log_ratio(one, law, reference, reduction="mean")
    (tensor([1.]), tensor([0.5000]))
    """
    mean, reference_mean, x_s = (at_least_float32(x) for x in (law.mean, reference.mean, x_s))
    product = ((mean - reference_mean) * (2 * x_s - mean - reference_mean)).flatten(1)
    return reduce_elements(product, reduction) / (2 * law.std**2)


def reduce_elements(values: Tensor, reduction: Reduction) -> Times:
    """Reduce over the elements of each sample, (B, *shape) -> (B,).

    >>> import torch
    >>> reduce_elements(torch.ones(1, 2, 2), "sum")
    tensor([4.])
    """
    flat = values.flatten(1)
    return flat.mean(1) if reduction == "mean" else flat.sum(1)
