"""Prediction types, and the closed form that converts any of them to (x0, eps) and back.

Every prediction is a linear combination p x0 + q eps. Together with x_t = alpha x0 + sigma eps this gives a
2x2 system with the solution
  x0 = (q x_t - sigma out) / d,   eps = (alpha out - p x_t) / d,   d = alpha q - sigma p.
The result stays in float32 or wider: distillation relies on small differences between estimates.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from stepdistill.diffusion.schedules.base import DIVISOR_FLOOR, NoiseSchedule, at_least_float32, per_sample
from stepdistill.typing import Latents, Times

Prediction = Literal["x0", "eps", "v", "flow"]
"""x0: the data. eps: the noise. v: alpha eps - sigma x0 (https://arxiv.org/abs/2202.00512). flow: eps - x0."""


def coefficients(prediction: Prediction, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return (p, q) of prediction = p x0 + q eps."""
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    if prediction == "x0":
        return one, zero
    if prediction == "eps":
        return zero, one
    if prediction == "v":
        return -sigma, alpha
    if prediction == "flow":
        return -one, one
    raise ValueError(f"prediction must be x0, eps, v or flow, got {prediction!r}")


def divisor(prediction: Prediction, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return d = alpha q - sigma p, the divisor of the conversion to (x0, eps), floored away from zero.

    d = sigma for x0 (up to sign), alpha for eps, alpha^2 + sigma^2 for v, alpha + sigma for flow. Only x0 and
    eps have a zero: the output then determines just one of the two quantities.

    >>> divisor("eps", torch.tensor([0.8]), torch.tensor([0.6]))
    tensor([0.8000])
    """
    p, q = coefficients(prediction, alpha, sigma)
    d = alpha * q - sigma * p
    return torch.where(d < 0, d.clamp(max=-DIVISOR_FLOOR), d.clamp(min=DIVISOR_FLOOR))


def to_x0_eps(
    prediction: Prediction, output: Latents, x_t: Latents, alpha: Tensor, sigma: Tensor
) -> tuple[Latents, Latents]:
    """Convert a network output at x_t to (x0, eps); the predicted quantity itself passes through unchanged.

    Where the output does not determine the other quantity (eps at alpha = 0, x0 at sigma = 0) the divisor is
    floored.

    >>> one = torch.ones(1, 2)
    >>> to_x0_eps("flow", output=2 * one, x_t=one, alpha=torch.tensor([0.5]), sigma=torch.tensor([0.5]))
    (tensor([[0., 0.]]), tensor([[2., 2.]]))
    """
    output, x_t = at_least_float32(output), at_least_float32(x_t)
    alpha, sigma = per_sample(at_least_float32(alpha), x_t), per_sample(at_least_float32(sigma), x_t)
    p, q = coefficients(prediction, alpha, sigma)
    d = divisor(prediction, alpha, sigma)
    x0 = output if prediction == "x0" else (q * x_t - sigma * output) / d
    eps = output if prediction == "eps" else (alpha * output - p * x_t) / d
    return x0, eps


def from_x0_eps(prediction: Prediction, x0: Latents, eps: Latents, alpha: Tensor, sigma: Tensor) -> Latents:
    """Convert (x0, eps) to a network output, in float32 or wider.

    >>> from_x0_eps("v", torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([0.8]), torch.tensor([0.6]))
    tensor([[-0.6000, -0.6000]])
    """
    x0, eps = at_least_float32(x0), at_least_float32(eps)
    if prediction == "x0":
        return x0
    if prediction == "eps":
        return eps
    alpha, sigma = per_sample(at_least_float32(alpha), x0), per_sample(at_least_float32(sigma), x0)
    p, q = coefficients(prediction, alpha, sigma)
    return p * x0 + q * eps


def jump_gain(prediction: Prediction, schedule: NoiseSchedule, t: Times, s: Times) -> Times:
    """Return |d jump / d output|, the sensitivity of a DDIM jump from t to s to the network output, per sample.

    (alpha_s sigma_t - sigma_s alpha_t) / |d| with d from `divisor`: sigma_t / alpha_t for an eps network and
    s = 0, t - s for flow. Floored, so that it can serve as a divisor.

    >>> from stepdistill.diffusion.schedules.families import FlowSchedule
    >>> jump_gain("flow", FlowSchedule(), torch.tensor([0.75]), torch.tensor([0.25]))
    tensor([0.5000])
    """
    (alpha, sigma), (alpha_s, sigma_s) = schedule.level(t), schedule.level(s)
    # jump = alpha_s x0 + sigma_s eps, with d x0 / d out = -sigma / d and d eps / d out = alpha / d
    gain = (alpha_s * sigma - sigma_s * alpha) / divisor(prediction, alpha, sigma).abs()
    return gain.clamp(min=DIVISOR_FLOOR)


def conditional_target(
    schedule: NoiseSchedule, x_s: Latents, eps: Latents, s: Times | None, t: Times, prediction: Prediction
) -> Latents:
    """Return the regression target at x_t = schedule.renoise(x_s, eps, s, t), given a sample x_s at time s.

    Phased DMD (https://arxiv.org/abs/2510.27684). By denoising score matching on q(x_t | x_s), regressing on
      eps* = (sigma_t / g) eps,
      x0* = (x_t - sigma_t eps*) / alpha_t = x_s / alpha_s - alpha_t sigma_s^2 / (alpha_s^2 g) eps
    yields the score of the distribution of x_s diffused to t. With s = 0 or None, x_s is data and the target
    is the ordinary (x0, eps).

    >>> from stepdistill.diffusion.schedules.families import FlowSchedule
    >>> x0, eps, t = torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([0.5])
    >>> conditional_target(FlowSchedule(), x0, eps, None, t, "flow")
    tensor([[-1., -1.]])
    """
    s = torch.zeros_like(t) if s is None else s
    x_s, eps = at_least_float32(x_s), at_least_float32(eps)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.level(s), schedule.level(t)
    # score of q(x_t | x_s) = -eps / g = -eps* / sigma_t
    g = schedule.transition(s, t)[1].clamp(min=DIVISOR_FLOOR)
    eps_gain = torch.where(s <= 0, torch.ones_like(g), sigma_t / g)
    shift = alpha_t * sigma_s**2 / (alpha_s.clamp(min=DIVISOR_FLOOR) ** 2 * g)
    x0_target = x_s / per_sample(alpha_s.clamp(min=DIVISOR_FLOOR), x_s) - per_sample(shift, x_s) * eps
    return from_x0_eps(prediction, x0_target, per_sample(eps_gain, eps) * eps, alpha_t, sigma_t)
