"""Distribution matching: one score difference, its weights, the surrogate that injects it, the critic's loss.

All differences of two predictions at the same x_t are proportional, so there is one primitive, fake - real
in x0:
  kl = (alpha/sigma)^2 Dx0,  score = (alpha/sigma^2) Dx0,  eps = -(alpha/sigma) Dx0,  v = -Dx0 / sigma (VP),
  flow = -((alpha + sigma)/sigma) Dx0.
A descent step along +Dx0 moves samples from the fake score's estimate towards the teacher's.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from stepdistill.diffusion.denoised import Denoised
from stepdistill.diffusion.prediction import Prediction, from_x0_eps
from stepdistill.diffusion.schedules.base import DIVISOR_FLOOR, NoiseSchedule, at_least_float32, per_sample
from stepdistill.typing import Latents, Times

DifferenceSpace = Literal["x0", "eps", "v", "flow", "score", "kl"]
Normaliser = Literal["none", "mean_abs"]

_NORMALISER_FLOOR = 1e-5


def score_difference(
    real: Latents, fake: Latents, alpha: Tensor, sigma: Tensor, *, space: DifferenceSpace = "x0"
) -> Latents:
    """fake - real, both given as x0 estimates at one x_t, expressed in another space; float32 or better.

    "kl", alpha (score_fake - score_real), is the gradient in x0 of KL(fake || real) of the noised laws.

    >>> import torch
    >>> half = torch.tensor([0.5])
    >>> score_difference(torch.zeros(1, 1), torch.ones(1, 1), half, half, space="flow")
    tensor([[-2.]])
    """
    difference = at_least_float32(fake) - at_least_float32(real)
    if space == "x0":
        return difference
    alpha, sigma = at_least_float32(alpha), at_least_float32(sigma).clamp(min=DIVISOR_FLOOR)
    factors = {
        "eps": -alpha / sigma,
        "v": -(alpha**2 + sigma**2) / sigma,
        "flow": -(alpha + sigma) / sigma,
        "score": alpha / sigma**2,
        "kl": alpha**2 / sigma**2,
    }
    return per_sample(factors[space], difference) * difference


def dm_gradient(
    x0: Latents,
    real: Latents,
    fake: Latents,
    *,
    normaliser: Normaliser = "mean_abs",
    floor: float = _NORMALISER_FLOOR,
) -> Latents:
    """Distribution-matching direction (fake - real) / mean|x0 - real|, per sample.

    DMD, https://arxiv.org/abs/2311.18828, eq. 7-8. `x0` is the student's sample, `real` and `fake` the two
    estimates of it. Detached; formed in float32 or better.

    >>> import torch
    >>> x0 = torch.zeros(1, 2)
    >>> dm_gradient(x0, real=x0 + 1.0, fake=x0 + 3.0)
    tensor([[2., 2.]])
    """
    x0, real, fake = (at_least_float32(x.detach()) for x in (x0, real, fake))
    difference = fake - real
    if normaliser == "none":
        return difference
    if normaliser == "mean_abs":
        return difference / per_sample((x0 - real).abs().flatten(1).mean(1).clamp(min=floor), difference)
    raise ValueError(f"normaliser is none or mean_abs, got {normaliser!r}")


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


def denoising_error(
    schedule: NoiseSchedule, prediction: Prediction, estimate: Denoised, target: Latents
) -> Times:
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
