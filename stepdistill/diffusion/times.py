"""Laws of t, written as quantile maps u in [0, 1) -> t, so that the randomness stays with the caller.

`law(rng.uniform("critic_time"))` draws; antithetic, stratified and shared draws come for free.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from stepdistill.diffusion.schedules.base import NoiseSchedule, at_least_float32
from stepdistill.typing import Times

_U_FLOOR = 1e-6


class TimeLaw(Protocol):
    """A distribution of t, as the quantile map of a uniform number."""

    def __call__(self, u: Times) -> Times:
        """The time at quantile u."""
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
        """lo + (hi - lo) u."""
        return self.lo + (self.hi - self.lo) * at_least_float32(u)


@dataclass(frozen=True)
class LogitNormal:
    """t = sigmoid(mean + std z), z normal (SD3, https://arxiv.org/abs/2403.03206, section 3.1).

    >>> LogitNormal()(torch.tensor([0.5]))
    tensor([0.5000])
    """

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, u: Times) -> Times:
        """The quantile of the logit-normal law."""
        return torch.sigmoid(self.mean + self.std * _normal_quantile(u))


@dataclass(frozen=True)
class LogNormalSigma:
    """log(sigma / alpha) normal (EDM, https://arxiv.org/abs/2206.00364, table 1), on any schedule.

    >>> from stepdistill.diffusion.schedules.families import FlowSchedule
    >>> LogNormalSigma(0.0, 1.0, FlowSchedule())(torch.tensor([0.5]))
    tensor([0.5000])
    """

    mean: float
    std: float
    schedule: NoiseSchedule

    def __call__(self, u: Times) -> Times:
        """The time whose noise-to-signal ratio is the quantile of the log-normal law."""
        return self.schedule.time_from_log_snr(-2 * (self.mean + self.std * _normal_quantile(u)))


@dataclass(frozen=True)
class ShiftedUniform:
    """Uniform on [lo, hi), then shifted towards noise (`shift_time`).

    >>> ShiftedUniform(shift=3.0)(torch.tensor([0.0, 0.5]))
    tensor([0.0000, 0.7500])
    >>> ShiftedUniform(shift=3.0).above(0.75)(torch.tensor([0.0, 0.5]))
    tensor([0.7500, 0.9000])
    """

    lo: float = 0.0
    hi: float = 1.0
    shift: float = 1.0

    def __call__(self, u: Times) -> Times:
        """The shifted quantile."""
        return shift_time(Uniform(self.lo, self.hi)(u), self.shift)

    def above(self, edge: float) -> ShiftedUniform:
        """The same law on its times from `edge` on."""
        start = float(shift_time(torch.tensor(edge, dtype=torch.float64), 1 / self.shift))
        return replace(self, lo=max(self.lo, start))


@dataclass(frozen=True)
class Grid:
    """One of the given times, each equally likely.

    >>> Grid((1.0, 0.75, 0.5, 0.25))(torch.tensor([0.0, 0.3, 0.99]))
    tensor([1.0000, 0.7500, 0.2500])
    """

    values: tuple[float, ...]

    def __call__(self, u: Times) -> Times:
        """The entry number floor(u n)."""
        u = at_least_float32(u)
        values = torch.tensor(self.values, dtype=u.dtype, device=u.device)
        return values[(u * len(values)).long().clamp(0, len(values) - 1)]


@dataclass(frozen=True)
class Segment:
    """A law of [0, 1] squeezed into [lo, hi]; the ends may differ per sample (above a student step, a phase).

    >>> Segment(lo=torch.tensor([0.0, 0.5]), hi=1.0)(torch.tensor([0.5, 0.5]))
    tensor([0.5000, 0.7500])
    """

    lo: float | Tensor
    hi: float | Tensor
    law: TimeLaw = field(default_factory=Uniform)

    def __call__(self, u: Times) -> Times:
        """lo + (hi - lo) law(u)."""
        return self.lo + (self.hi - self.lo) * self.law(u)


def shift_time(t: Times, shift: float) -> Times:
    """s t / (1 + (s - 1) t): the resolution shift of SD3 (https://arxiv.org/abs/2403.03206, eq. 23).

    >>> shift_time(torch.tensor([1.0, 0.75, 0.5, 0.25]), shift=5.0)
    tensor([1.0000, 0.9375, 0.8333, 0.6250])
    """
    return shift * t / (1 + (shift - 1) * t)


def few_step_indices(num_train_timesteps: int, num_steps: int, kind: Literal["sde", "ode"]) -> list[int]:
    """The training indices at which a few-step student is called, first to last.

    "sde": those of diffusers' `LCMScheduler` with original_inference_steps = num_inference_steps = num_steps.
    "ode": those of `DDIMScheduler` with timestep_spacing="trailing". They differ where num_steps is no
    divisor.

    >>> few_step_indices(1000, 4, "sde"), few_step_indices(1000, 3, "sde"), few_step_indices(1000, 3, "ode")
    ([999, 749, 499, 249], [998, 665, 332], [999, 666, 332])
    """
    if not 1 <= num_steps <= num_train_timesteps:
        raise ValueError(f"num_steps must be in 1..{num_train_timesteps}, got {num_steps}")
    if kind == "sde":
        stride = num_train_timesteps // num_steps
        return [stride * k - 1 for k in range(num_steps, 0, -1)]
    if kind == "ode":
        return [
            round(num_train_timesteps - k * num_train_timesteps / num_steps) - 1 for k in range(num_steps)
        ]
    raise ValueError(f'kind is "sde" or "ode", got {kind!r}')


def _normal_quantile(u: Times) -> Times:
    """The standard normal quantile, kept off the two infinite ends."""
    u = at_least_float32(u)
    return torch.special.ndtri(u.clamp(_U_FLOOR, 1 - _U_FLOOR))
