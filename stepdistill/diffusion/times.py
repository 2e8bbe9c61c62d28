"""Distributions of t as quantile maps u in [0, 1) -> t, so that the caller owns the randomness.

`law(rng.uniform("critic_time"))` draws a time; stratified, antithetic and shared draws need no extra code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch

from stepdistill.diffusion.schedules.base import NoiseSchedule, at_least_float32
from stepdistill.typing import Times

# Keeps the normal quantile finite, at 4.75 standard deviations: u = 0 occurs once in 2^24 float32 draws.
_U_FLOOR = 1e-6


class TimeLaw(Protocol):
    """A distribution of t, given by its quantile function."""

    def __call__(self, u: Times) -> Times:
        """Return the time at quantile u."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Uniform on [lo, hi).

    >>> Uniform(0.02, 0.98)(torch.tensor([0.0, 0.5]))
    tensor([0.0200, 0.5000])
    """

    lo: float = 0.0
    hi: float = 1.0

    def __call__(self, u: Times) -> Times:
        return self.lo + (self.hi - self.lo) * at_least_float32(u)


@dataclass(frozen=True)
class LogNormalSigma:
    """Normal log(sigma / alpha) (EDM, https://arxiv.org/abs/2206.00364, table 1), on any schedule.

    On a flow schedule this is the logit-normal law of SD3 (https://arxiv.org/abs/2403.03206, section 3.1).

    >>> from stepdistill.diffusion.schedules.families import FlowSchedule
    >>> LogNormalSigma(0.0, 1.0, FlowSchedule())(torch.tensor([0.5]))
    tensor([0.5000])
    """

    mean: float
    std: float
    schedule: NoiseSchedule

    def __call__(self, u: Times) -> Times:
        normal = torch.special.ndtri(at_least_float32(u).clamp(_U_FLOOR, 1 - _U_FLOOR))
        # log_snr = -2 log(sigma / alpha)
        return self.schedule.time_from_log_snr(-2 * (self.mean + self.std * normal))


@dataclass(frozen=True)
class ShiftedUniform:
    """Uniform on [lo, hi), then shifted towards noise (see `shift_time`).

    >>> ShiftedUniform(shift=3.0)(torch.tensor([0.0, 0.5]))
    tensor([0.0000, 0.7500])
    >>> ShiftedUniform(shift=3.0).above(0.75)(torch.tensor([0.0, 0.5]))
    tensor([0.7500, 0.9000])
    """

    lo: float = 0.0
    hi: float = 1.0
    shift: float = 1.0

    def __call__(self, u: Times) -> Times:
        return shift_time(Uniform(self.lo, self.hi)(u), self.shift)

    def above(self, edge: float) -> ShiftedUniform:
        """Restrict the distribution to times of at least `edge`."""
        # The inverse of a shift by s is a shift by 1 / s.
        start = float(shift_time(torch.tensor(edge, dtype=torch.float64), 1 / self.shift))
        return replace(self, lo=max(self.lo, start))


@dataclass(frozen=True)
class Grid:
    """Uniform over a list of times.

    >>> Grid((1.0, 0.75, 0.5, 0.25))(torch.tensor([0.0, 0.3, 0.99]))
    tensor([1.0000, 0.7500, 0.2500])
    """

    values: tuple[float, ...]

    def __call__(self, u: Times) -> Times:
        u = at_least_float32(u)
        values = torch.tensor(self.values, dtype=u.dtype, device=u.device)
        # floor(u n); the clamp guards against u n rounding up to n.
        return values[(u * len(values)).long().clamp(0, len(values) - 1)]


def shift_time(t: Times, shift: float) -> Times:
    """Apply the timestep shift of SD3: s t / (1 + (s - 1) t) (https://arxiv.org/abs/2403.03206, eq. 23).

    >>> shift_time(torch.tensor([1.0, 0.75, 0.5, 0.25]), shift=5.0)
    tensor([1.0000, 0.9375, 0.8333, 0.6250])
    """
    return shift * t / (1 + (shift - 1) * t)


def few_step_indices(num_train_timesteps: int, num_steps: int, kind: Literal["sde", "ode"]) -> list[int]:
    """Return the descending training indices at which a few-step student is called.

    "sde": the grid of `LCMScheduler` with original_inference_steps = num_inference_steps = num_steps.
    "ode": the grid of `DDIMScheduler` with timestep_spacing="trailing". The two differ if num_steps does not
    divide num_train_timesteps.

    >>> few_step_indices(1000, 4, "sde"), few_step_indices(1000, 3, "sde"), few_step_indices(1000, 3, "ode")
    ([999, 749, 499, 249], [998, 665, 332], [999, 666, 332])
    """
    if not 1 <= num_steps <= num_train_timesteps:
        raise ValueError(f"num_steps must be in 1..{num_train_timesteps}, got {num_steps}")
    if kind == "sde":
        stride = num_train_timesteps // num_steps  # LCM: k (T // n) - 1
        return [stride * k - 1 for k in range(num_steps, 0, -1)]
    if kind == "ode":
        # Trailing spacing: round(T - k T / n) - 1 (https://arxiv.org/abs/2305.08891, table 2)
        return [round(num_train_timesteps - k * num_train_timesteps / num_steps) - 1 for k in range(num_steps)]
    raise ValueError(f'kind must be "sde" or "ode", got {kind!r}')
