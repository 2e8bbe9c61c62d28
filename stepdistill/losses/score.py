"""Distribution matching: the score difference, the surrogate loss that injects a gradient, and the fake score's loss.

Differences of two predictions at the same x_t are proportional to each other. With Dx0 = fake - real in x0:

    score: alpha / sigma^2 Dx0    eps: -alpha / sigma Dx0    v (VP): -Dx0 / sigma    flow: -(alpha + sigma) / sigma Dx0

So every method of the family is Dx0 times a weight, and a descent step along +Dx0 moves samples from the fake score's
estimate towards the teacher's.
"""

from __future__ import annotations

from torch import Tensor

from stepdistill.diffusion.denoised import Denoised
from stepdistill.diffusion.prediction import Prediction, from_x0_eps
from stepdistill.diffusion.schedules.base import NoiseSchedule, at_least_float32, per_sample
from stepdistill.typing import Latents, Times

_NORMALISER_FLOOR = 1e-5
"""Least mean |x0 - real| to divide by: far below that of any latent, so it acts only where student and teacher agree."""


def score_difference(real: Latents, fake: Latents) -> Latents:
    """fake - real, two x0 estimates at one x_t; detached, in float32 or better.

    >>> import torch
    >>> score_difference(torch.zeros(1, 1), torch.ones(1, 1))
    tensor([[1.]])
    """
    return at_least_float32(fake.detach()) - at_least_float32(real.detach())


def dm_gradient(x0: Latents, real: Latents, fake: Latents) -> Latents:
    """The distribution-matching gradient (fake - real) / mean|x0 - real|, per sample (DMD, https://arxiv.org/abs/2311.18828).

    Equation 7 with the weight of equation 8, in the form of the released code: without the factor alpha_t of the paper's text.
    Detached, in float32 or better.

    Args:
        x0: the student's samples, (B, *shape).
        real: the teacher's x0 at the renoised samples.
        fake: the fake score's x0 there.

    >>> import torch
    >>> x0 = torch.zeros(1, 2)
    >>> dm_gradient(x0, real=x0 + 1.0, fake=x0 + 3.0)
    tensor([[2., 2.]])
    """
    # Eq. 8: one scale per sample, C S / ||x0 - real||_1, the inverse of the mean absolute error.
    error = (at_least_float32(x0.detach()) - at_least_float32(real.detach())).abs().flatten(1).mean(1)
    difference = score_difference(real, fake)
    return difference / per_sample(error.clamp(min=_NORMALISER_FLOOR), difference)


def surrogate_loss(x: Latents, gradient: Latents) -> Tensor:
    """0.5 mean ||x - sg(x - g)||^2: its gradient in x is exactly g / x.numel(), its value 0.5 mean g^2.

    The difference is written x - sg(x) + g, the same number without the rounding of x - g.

    >>> import torch
    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> surrogate_loss(x, torch.tensor([[1.0, -3.0]])).backward()
    >>> x.grad
    tensor([[ 0.5000, -1.5000]])
    """
    x = at_least_float32(x)
    return 0.5 * (x - x.detach() + gradient.detach()).square().mean()


def denoising_error(schedule: NoiseSchedule, prediction: Prediction, estimate: Denoised, target: Latents) -> Times:
    """Squared error of a denoiser in a prediction's space, averaged over each sample.

    `target` is `conditional_target(schedule, x_s, eps, s, t, prediction)`; s = None for generated or real
    data.

    >>> import torch
    >>> from types import SimpleNamespace
    >>> from stepdistill.diffusion.schedules.families import FlowSchedule
    >>> estimate = SimpleNamespace(x0=torch.zeros(1, 2), eps=torch.ones(1, 2), t=torch.tensor([0.5]))
    >>> denoising_error(FlowSchedule(), "flow", estimate, target=torch.full((1, 2), 3.0))
    tensor([4.])
    """
    alpha, sigma = schedule.alpha(estimate.t), schedule.sigma(estimate.t)
    output = from_x0_eps(prediction, estimate.x0, estimate.eps, alpha, sigma)
    return (output - at_least_float32(target).detach()).square().flatten(1).mean(1)


def denoising_loss(
    schedule: NoiseSchedule,
    prediction: Prediction,
    estimate: Denoised,
    target: Latents,
    *,
    weight: Times | None = None,
) -> Tensor:
    """The critic's loss: the mean of `denoising_error` over the batch, with an optional weight per sample."""
    error = denoising_error(schedule, prediction, estimate, target)
    return error.mean() if weight is None else (weight * error).mean()
