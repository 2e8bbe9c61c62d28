"""Any schedule seen as TrigFlow (https://arxiv.org/abs/2410.11081): the same noise level, the state scaled to unit norm.

With angle a = atan(sigma / alpha) and the unit state x = cos a x0 + sin a eps, the probability-flow ODE is dx/da = F with
F = cos a eps - sin a x0, and the consistency function cos a x - sin a F is the estimate x0 itself. So a student keeps its own
schedule and prediction, and a network of any family is a TrigFlow network.
"""

from __future__ import annotations

import torch

from stepdistill.diffusion.denoised import Denoised
from stepdistill.diffusion.prediction import Prediction, divisor, from_x0_eps
from stepdistill.diffusion.schedules.base import NoiseSchedule, per_sample
from stepdistill.diffusion.solver import velocity
from stepdistill.typing import Latents, Times


def trig_level(schedule: NoiseSchedule, t: Times) -> tuple[Times, Times]:
    """(cos a, sin a) at time t of the schedule.

    >>> from stepdistill.diffusion.schedules.families import FlowSchedule
    >>> trig_level(FlowSchedule(), torch.tensor([0.5]))
    (tensor([0.7071]), tensor([0.7071]))
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    norm = torch.hypot(alpha, sigma)
    return alpha / norm, sigma / norm


def trig_state(x_t: Latents, t: Times, schedule: NoiseSchedule) -> Latents:
    """The state scaled to cos a x0 + sin a eps."""
    return x_t / per_sample(torch.hypot(schedule.alpha(t), schedule.sigma(t)), x_t)


def trig_field(out: Denoised, schedule: NoiseSchedule) -> Latents:
    """F = cos a eps - sin a x0: the field dx/da of a teacher, and the output of a student in TrigFlow's terms."""
    return from_x0_eps("v", out.x0, out.eps, *trig_level(schedule, out.t))


def field_gain(prediction: Prediction, schedule: NoiseSchedule, t: Times) -> Times:
    """How much of an error of the network's output the field F has: |dF / d output|, per sample.

    1 for v, 1 / cos a for eps: 10 and more where an eps network starts.

    >>> from stepdistill.diffusion.schedules.families import TrigSchedule
    >>> field_gain("eps", TrigSchedule(), torch.tensor([0.0, 2 / 3]))
    tensor([1.0000, 2.0000])
    """
    alpha, sigma = schedule.level(t)
    return torch.hypot(alpha, sigma) / divisor(prediction, alpha, sigma).abs()


def trig_x0(F: Latents, x_t: Latents, t: Times, schedule: NoiseSchedule) -> Latents:
    """The consistency function cos a x - sin a F: the estimate x0 that belongs to an output F."""
    cos, sin = (per_sample(level, F) for level in trig_level(schedule, t))
    return cos * trig_state(x_t, t, schedule) - sin * F


def noise_direction(out: Denoised, schedule: NoiseSchedule) -> tuple[Latents, Times]:
    """The derivative of (x_t, t) along the ODE in log(sigma / alpha), which is cos a sin a times the one in the angle.

    Bounded at both ends of every schedule, which the derivative in the angle is not. In TrigFlow's own terms it is the
    rearranged tangent of the paper, (cos sin dx/da, cos sin).
    """
    dt = -2 / schedule.d_log_snr(out.t)
    return per_sample(dt, out.x0) * velocity(out, schedule), dt
