"""Solvers of the probability-flow ODE and the teacher's trajectory.

On any schedule dx/dt = alpha'(t) x0_hat + sigma'(t) eps_hat. DDIM integrates alpha' and sigma' exactly while
holding the two estimates constant; `heun_step` is its second-order trapezoid. Both may step to s = 0, the data.
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
    """Return dx/dt = alpha' x0 + sigma' eps of the probability-flow ODE at out.t."""
    d_alpha, d_sigma = (per_sample(d(out.t), out.x0) for d in (schedule.d_alpha, schedule.d_sigma))
    return d_alpha * out.x0 + d_sigma * out.eps


def ddim_step(out: Denoised, s: Times, schedule: NoiseSchedule) -> Latents:
    """Return x_s = alpha_s x0 + sigma_s eps (DDIM, https://arxiv.org/abs/2010.02502, eq. 12 with sigma_t = 0).

    s = 0 returns x0 itself.
    """
    alpha, sigma = schedule.level(s)
    return per_sample(alpha, out.x0) * out.x0 + per_sample(sigma, out.x0) * out.eps


def euler_step(out: Denoised, s: Times, schedule: NoiseSchedule) -> Latents:
    """Return x_t + (s - t) dx/dt; equals `ddim_step` on a flow schedule, where alpha and sigma are linear in t."""
    alpha, sigma = per_sample(schedule.alpha(out.t), out.x0), per_sample(schedule.sigma(out.t), out.x0)
    x_t = alpha * out.x0 + sigma * out.eps
    return x_t + per_sample(s - out.t, x_t) * velocity(out, schedule)


def heun_step(
    denoise: Callable[[Latents, Times], Denoised], out: Denoised, s: Times, schedule: NoiseSchedule
) -> Latents:
    """Take a DDIM step with x0 and eps averaged over both ends of the step.

    Costs one more network call than `ddim_step`; the local error is third order in the step. A step to s = 0
    stays a DDIM step, as in EDM (https://arxiv.org/abs/2206.00364, algorithm 1, line 6).
    """
    x_s = ddim_step(out, s, schedule)
    if bool((s <= 0).all()):
        return x_s
    end = denoise(x_s, s)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.level(out.t), schedule.level(s)
    # x_s = x_t + (alpha_s - alpha_t) (x0_t + x0_s) / 2 + (sigma_s - sigma_t) (eps_t + eps_s) / 2, minus the DDIM step
    correction = (
        per_sample(alpha_s - alpha_t, x_s) * (end.x0 - out.x0) / 2
        + per_sample(sigma_s - sigma_t, x_s) * (end.eps - out.eps) / 2
    )
    return torch.where(per_sample(s <= 0, x_s), x_s, x_s + correction)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A solved ODE.

    Attributes:
        times: descending, ending at 0.
        states: x at every time; the last one is the data.
        estimates: the network's output at every time but the last.
    """

    times: tuple[float, ...]
    states: list[Latents]
    estimates: list[Denoised]

    @property
    def x0(self) -> Latents:
        """The final state."""
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
    """Solve the teacher's ODE from noise to data.

    Args:
        noise: standard normal, (B, *shape); scaled by the schedule's `prior_std`.
        times: descending times at which the network is called; a trailing 0 is optional.
        solver: "ddim" and "euler" call the network once per step, "heun" twice.

    Raises:
        ValueError: `times` do not descend, or the solver is unknown.
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
            raise ValueError(f"solver must be ddim, euler or heun, got {solver!r}")
        states.append(x)
        estimates.append(out)
    return Trajectory(grid, states, estimates)
