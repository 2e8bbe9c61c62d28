"""Steps of the probability-flow ODE and the teacher's own trajectory.

In any schedule x' = alpha' x0_hat + sigma' eps_hat. DDIM integrates alpha' and sigma' exactly and holds the
two estimates; `heun_step` is its trapezoid, of second order. Both may end at s = 0, the data itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch

from stepdistill.diffusion.choices import Solver
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.denoised import Denoised, DenoisingNetwork
from stepdistill.diffusion.guidance import Guidance
from stepdistill.diffusion.schedules.base import NoiseSchedule, per_sample
from stepdistill.typing import Latents, Times


def velocity(out: Denoised, schedule: NoiseSchedule) -> Latents:
    """dx/dt of the probability-flow ODE at out.t, in the schedule's own time."""
    d_alpha, d_sigma = (
        per_sample(schedule.d_alpha(out.t), out.x0),
        per_sample(schedule.d_sigma(out.t), out.x0),
    )
    return d_alpha * out.x0 + d_sigma * out.eps


def ddim_step(out: Denoised, s: Times, schedule: NoiseSchedule) -> Latents:
    """alpha_s x0 + sigma_s eps (https://arxiv.org/abs/2010.02502, eq. 12 without noise); s = 0 gives x0."""
    alpha, sigma = schedule.level(s)
    return per_sample(alpha, out.x0) * out.x0 + per_sample(sigma, out.x0) * out.eps


def euler_step(out: Denoised, s: Times, schedule: NoiseSchedule) -> Latents:
    """x_t + (s - t) dx/dt: on a flow schedule the same as `ddim_step`."""
    alpha, sigma = per_sample(schedule.alpha(out.t), out.x0), per_sample(schedule.sigma(out.t), out.x0)
    x_t = alpha * out.x0 + sigma * out.eps
    return x_t + per_sample(s - out.t, x_t) * velocity(out, schedule)


def heun_step(
    denoise: Callable[[Latents, Times], Denoised], out: Denoised, s: Times, schedule: NoiseSchedule
) -> Latents:
    """DDIM with both estimates averaged over the two ends of the step; a step to s = 0 stays a DDIM step.

    One more network call than `ddim_step`; local error of third order in the step.
    """
    x_s = ddim_step(out, s, schedule)
    if bool((s <= 0).all()):
        return x_s
    end = denoise(x_s, s)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.level(out.t), schedule.level(s)
    correction = (
        per_sample(alpha_s - alpha_t, x_s) * (end.x0 - out.x0) / 2
        + per_sample(sigma_s - sigma_t, x_s) * (end.eps - out.eps) / 2
    )
    return torch.where(per_sample(s <= 0, x_s), x_s, x_s + correction)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A solved ODE: the state at every time (the last is the data), the estimates at all but the last."""

    times: tuple[float, ...]
    states: list[Latents]
    estimates: list[Denoised]

    @property
    def x0(self) -> Latents:
        """The end of the trajectory."""
        return self.states[-1]


@torch.no_grad()
def teacher_trajectory(
    denoiser: DenoisingNetwork,
    noise: Latents,
    cond: Conditioning,
    times: Sequence[float],
    guidance: Guidance | None = None,
    *,
    solver: Solver = "ddim",
) -> Trajectory:
    """Solve the teacher's ODE from noise to the data, calling the network at each of the descending times.

    The noise is standard normal; it is scaled by the schedule's `prior_std`. A final 0 in `times` may be left
    out.
    """
    grid = tuple(float(t) for t in times)
    grid = grid if grid[-1] == 0 else (*grid, 0.0)
    if len(grid) < 2 or any(later >= earlier for earlier, later in pairwise(grid)):
        raise ValueError(f"times must be positive and descending, got {tuple(times)}")
    x, schedule = noise * denoiser.schedule.prior_std, denoiser.schedule
    dtype = torch.promote_types(x.dtype, torch.float32)
    denoise = partial(denoiser, cond=cond, guidance=guidance)
    states, estimates = [x], []
    for t_value, s_value in pairwise(grid):
        t, s = (torch.full((len(x),), value, dtype=dtype, device=x.device) for value in (t_value, s_value))
        out = denoise(x, t)
        if solver == "ddim":
            x = ddim_step(out, s, schedule)
        elif solver == "euler":
            x = euler_step(out, s, schedule)
        elif solver == "heun":
            x = heun_step(denoise, out, s, schedule)
        else:
            raise ValueError(f"solver is one of ddim, euler, heun; got {solver!r}")
        states.append(x)
        estimates.append(out)
    return Trajectory(grid, states, estimates)
