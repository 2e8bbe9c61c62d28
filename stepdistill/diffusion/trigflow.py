"""Reparameterise any schedule as TrigFlow (https://arxiv.org/abs/2410.11081): equal SNR, state scaled to unit norm.

With the angle a = atan(sigma / alpha) and the scaled state x = cos a x0 + sin a eps, the probability-flow ODE is
  dx/da = F,  F = cos a eps - sin a x0,
and the consistency function f = cos a x - sin a F equals the estimate x0. A network of any family thus
acts as a TrigFlow network while keeping its own schedule and prediction type.
"""

from __future__ import annotations

import torch

from stepdistill.diffusion.denoised import Denoised
from stepdistill.diffusion.prediction import Prediction, divisor, from_x0_eps
from stepdistill.diffusion.schedules.base import NoiseSchedule, per_sample
from stepdistill.diffusion.solver import velocity
from stepdistill.typing import Latents, Times


def trig_level(schedule: NoiseSchedule, t: Times) -> tuple[Times, Times]:
    """Return (cos a, sin a) at time t of the schedule.

    >>> from stepdistill.diffusion.schedules.families import FlowSchedule
    >>> trig_level(FlowSchedule(), torch.tensor([0.5]))
    (tensor([0.7071]), tensor([0.7071]))
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    norm = torch.hypot(alpha, sigma)
    return alpha / norm, sigma / norm


def trig_state(x_t: Latents, t: Times, schedule: NoiseSchedule) -> Latents:
    """Scale the state to cos a x0 + sin a eps."""
    return x_t / per_sample(torch.hypot(schedule.alpha(t), schedule.sigma(t)), x_t)


def trig_field(out: Denoised, schedule: NoiseSchedule) -> Latents:
    """Return F = cos a eps - sin a x0: the teacher's dx/da, or the student's output in TrigFlow terms."""
    # F is the v prediction of the unit-norm schedule (cos a, sin a).
    return from_x0_eps("v", out.x0, out.eps, *trig_level(schedule, out.t))


def field_gain(prediction: Prediction, schedule: NoiseSchedule, t: Times) -> Times:
    """Return |dF / d output|, the sensitivity of the field F to the network output, per sample.

    1 for v, 1 / cos a for eps: more than 10 at the first step of an eps network.

    >>> from stepdistill.diffusion.schedules.families import TrigSchedule
    >>> field_gain("eps", TrigSchedule(), torch.tensor([0.0, 2 / 3]))
    tensor([1.0000, 2.0000])
    """
    alpha, sigma = schedule.level(t)
    # F = cos eps - sin x0, with d eps = alpha / d and d x0 = -sigma / d: (alpha^2 + sigma^2) / (|(alpha, sigma)| d)
    return torch.hypot(alpha, sigma) / divisor(prediction, alpha, sigma).abs()


def trig_x0(F: Latents, x_t: Latents, t: Times, schedule: NoiseSchedule) -> Latents:
    """Return the consistency function cos a x - sin a F, i.e. the x0 estimate of an output F."""
    cos, sin = (per_sample(level, F) for level in trig_level(schedule, t))
    return cos * trig_state(x_t, t, schedule) - sin * F


def noise_direction(out: Denoised, schedule: NoiseSchedule) -> tuple[Latents, Times]:
    """Return d(x_t, t) / d log(sigma / alpha) along the ODE.

    This is cos a sin a times the derivative in the angle and, unlike that, bounded at both ends of every
    schedule. In TrigFlow terms it is the rearranged tangent (cos sin dx/da, cos sin) ("JVP rearrangement").
    """
    # log_snr = -2 log(sigma / alpha)
    dt = -2 / schedule.d_log_snr(out.t)
    return per_sample(dt, out.x0) * velocity(out, schedule), dt
