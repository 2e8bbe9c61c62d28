"""Noise schedules: x_t = alpha(t) x0 + sigma(t) eps with t in [0, 1], 0 = data, 1 = noise.

The algebra runs in float32 or better. `alpha`, `sigma` and `log_snr` return the dtype of t, at least float32.

Edges. A jump that starts or ends at s = 0 starts or ends at the data itself (alpha = 1, sigma = 0), also where
the schedule's own first level carries a little noise (VP's index 0, EDM's sigma_min): see `NoiseSchedule.level`.
Where alpha or sigma is exactly 0, `log_snr` is +-inf and divisors are floored, so nothing becomes NaN.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from stepdistill.betas import alphas_cumprod_from_config
from stepdistill.errors import UserError
from stepdistill.monotone_cubic import MonotoneCubic
from stepdistill.typing import Latents, Times

DIVISOR_FLOOR = 1e-8
"""The least alpha, sigma or sub-interval noise that anything is divided by."""

_LEAST_ALPHA_CUMPROD = 1e-12


def per_sample(coefficient: Tensor, batch: Tensor) -> Tensor:
    """Reshape a (B,) coefficient so that it multiplies a batch; a scalar stays one.

    >>> per_sample(torch.ones(2), torch.zeros(2, 4, 8, 8)).shape
    torch.Size([2, 1, 1, 1])
    """
    return (
        coefficient.reshape(coefficient.shape + (1,) * (batch.ndim - coefficient.ndim))
        if coefficient.ndim
        else coefficient
    )


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32 or, if it has more bits already, unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class NoiseSchedule(ABC):
    """alpha and sigma as smooth functions of t, and everything that follows from them."""

    @property
    def prior_std(self) -> float:
        """Standard deviation of the noise that a sampler starts from at t = 1."""
        return 1.0

    @abstractmethod
    def alpha(self, t: Times) -> Times:
        """The factor of the data."""

    @abstractmethod
    def sigma(self, t: Times) -> Times:
        """The factor of the noise."""

    @abstractmethod
    def d_alpha(self, t: Times) -> Times:
        """The derivative of alpha in t."""

    @abstractmethod
    def d_sigma(self, t: Times) -> Times:
        """The derivative of sigma in t."""

    @abstractmethod
    def time_from_log_snr(self, log_snr: Times) -> Times:
        """The inverse of `log_snr`; what the schedule cannot reach gives its nearer end."""

    @staticmethod
    def from_scheduler(scheduler: Any) -> NoiseSchedule:
        """The schedule of a diffusers scheduler, see `schedule_from_scheduler`."""
        return schedule_from_scheduler(scheduler)

    def log_snr(self, t: Times) -> Times:
        """log(alpha^2 / sigma^2): +inf where sigma = 0, -inf where alpha = 0."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def d_log_snr(self, t: Times) -> Times:
        """The derivative of `log_snr` in t."""
        return 2 * (self.d_alpha(t) / self.alpha(t) - self.d_sigma(t) / self.sigma(t))

    def level(self, s: Times) -> tuple[Times, Times]:
        """alpha and sigma at one end of a jump: as at time s, but the clean data (1, 0) where s = 0."""
        clean = s <= 0
        alpha, sigma = self.alpha(s), self.sigma(s)
        return torch.where(clean, torch.ones_like(alpha), alpha), torch.where(
            clean, torch.zeros_like(sigma), sigma
        )

    def add_noise(self, x0: Latents, eps: Latents, t: Times) -> Latents:
        """x_t = alpha x0 + sigma eps, in the dtype of x0.

        >>> FlowSchedule().add_noise(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([0.25]))
        tensor([[0.7500, 0.7500]])
        """
        t = t.to(torch.promote_types(t.dtype, x0.dtype))
        return (per_sample(self.alpha(t), x0) * x0 + per_sample(self.sigma(t), x0) * eps).to(x0.dtype)

    def transition(self, s: Times, t: Times) -> tuple[Times, Times]:
        """The kernel from s to a noisier t: x_t = a x_s + g eps, a = alpha_t / alpha_s, g^2 = sigma_t^2 - a^2 sigma_s^2.

        >>> FlowSchedule().transition(torch.tensor([0.2]), torch.tensor([0.5]))
        (tensor([0.6250]), tensor([0.4841]))
        """
        dtype = torch.promote_types(torch.promote_types(s.dtype, t.dtype), torch.float32)
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.level(_widest(s)), self.level(_widest(t))
        a = alpha_t / alpha_s.clamp(min=DIVISOR_FLOOR)
        g = (sigma_t**2 - a**2 * sigma_s**2).clamp(min=0).sqrt()
        return a.to(dtype), g.to(dtype)

    def renoise(self, x_s: Latents, eps: Latents, s: Times, t: Times) -> Latents:
        """x_t from x_s and fresh noise, s <= t, in the dtype of x_s; s = 0 is `add_noise`."""
        t = t.to(torch.promote_types(t.dtype, x_s.dtype))
        a, g = self.transition(s, t)
        return (per_sample(a, x_s) * x_s + per_sample(g, x_s) * eps).to(x_s.dtype)

    def match(self, x_t: Latents, t: Times, other: NoiseSchedule) -> tuple[Latents, Times]:
        """The state of the same signal-to-noise ratio on another schedule: x' = x |(alpha', sigma')| / |(alpha, sigma)|."""
        t_other = other.time_from_log_snr(self.log_snr(t))
        scale = torch.hypot(other.alpha(t_other), other.sigma(t_other)) / torch.hypot(
            self.alpha(t), self.sigma(t)
        )
        return (per_sample(scale, x_t) * x_t).to(x_t.dtype), t_other


class VPSchedule(NoiseSchedule):
    """Variance-preserving schedule of a discretely trained model; t is linear in the training index, t = 1 the last.

    The log-SNR is interpolated by a monotone C1 cubic, so alpha and sigma are smooth in t, have exact derivatives and
    equal the training table at every index. A table with zero terminal SNR is kept to alpha >= 1e-6, which
    leaves the log-SNR finite: v and x0 predictions are unharmed, an eps prediction carries no information there.
    """

    def __init__(self, alphas_cumprod: Tensor | Sequence[float]) -> None:
        table = torch.as_tensor(alphas_cumprod).detach().to("cpu", torch.float64)
        self.alphas_cumprod = table.clamp(_LEAST_ALPHA_CUMPROD, 1 - _LEAST_ALPHA_CUMPROD)
        self._log_snr = MonotoneCubic(self.alphas_cumprod.log() - (1 - self.alphas_cumprod).log())

    def __repr__(self) -> str:
        return f"VPSchedule(num_train_timesteps={len(self._log_snr)})"

    def index(self, t: Times) -> Times:
        """The training index of t, fractional between two of them."""
        return at_least_float32(t) * (len(self._log_snr) - 1)

    def time(self, index: Times) -> Times:
        """The t of a training index."""
        index = index if index.is_floating_point() else index.to(torch.float32)
        return at_least_float32(index) / (len(self._log_snr) - 1)

    def alpha(self, t: Times) -> Times:
        """sqrt(alphas_cumprod)."""
        return torch.exp(0.5 * logsigmoid(self._log_snr(self._index(t)))).to(_result(t))

    def sigma(self, t: Times) -> Times:
        """sqrt(1 - alphas_cumprod)."""
        return torch.exp(0.5 * logsigmoid(-self._log_snr(self._index(t)))).to(_result(t))

    def d_alpha(self, t: Times) -> Times:
        """alpha sigma^2 / 2 times the derivative of the log-SNR."""
        log_snr, slope = self._log_snr(self._index(t)), self._slope(t)
        return (0.5 * slope * torch.exp(0.5 * logsigmoid(log_snr) + logsigmoid(-log_snr))).to(_result(t))

    def d_sigma(self, t: Times) -> Times:
        """-sigma alpha^2 / 2 times the derivative of the log-SNR."""
        log_snr, slope = self._log_snr(self._index(t)), self._slope(t)
        return (-0.5 * slope * torch.exp(0.5 * logsigmoid(-log_snr) + logsigmoid(log_snr))).to(_result(t))

    def log_snr(self, t: Times) -> Times:
        """The interpolated log-SNR: finite everywhere."""
        return self._log_snr(self._index(t)).to(_result(t))

    def d_log_snr(self, t: Times) -> Times:
        """The exact derivative of the interpolant."""
        return self._slope(t).to(_result(t))

    def time_from_log_snr(self, log_snr: Times) -> Times:
        """By bisection on the table; carries no gradient."""
        return (self._log_snr.inverse(log_snr) / (len(self._log_snr) - 1)).to(_result(log_snr))

    def _index(self, t: Times) -> Times:
        return _widest(t) * (len(self._log_snr) - 1)

    def _slope(self, t: Times) -> Times:
        return self._log_snr.derivative(self._index(t)) * (len(self._log_snr) - 1)


@dataclass(frozen=True)
class FlowSchedule(NoiseSchedule):
    """Rectified flow: alpha = 1 - t, sigma = t."""

    def alpha(self, t: Times) -> Times:
        """1 - t."""
        return 1 - at_least_float32(t)

    def sigma(self, t: Times) -> Times:
        """The time itself."""
        return at_least_float32(t)

    def d_alpha(self, t: Times) -> Times:
        """-1."""
        return -torch.ones_like(at_least_float32(t))

    def d_sigma(self, t: Times) -> Times:
        """1."""
        return torch.ones_like(at_least_float32(t))

    def time_from_log_snr(self, log_snr: Times) -> Times:
        """sigmoid(-log_snr / 2)."""
        return torch.sigmoid(-at_least_float32(log_snr) / 2)


@dataclass(frozen=True)
class EDMSchedule(NoiseSchedule):
    """Variance exploding: alpha = 1, sigma from sigma_min to sigma_max along t^rho (https://arxiv.org/abs/2206.00364, eq. 5)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    @property
    def prior_std(self) -> float:
        """sigma_max."""
        return self.sigma_max

    def alpha(self, t: Times) -> Times:
        """1."""
        return torch.ones_like(at_least_float32(t))

    def sigma(self, t: Times) -> Times:
        """The Karras ramp."""
        return self._root(t) ** self.rho

    def d_alpha(self, t: Times) -> Times:
        """0."""
        return torch.zeros_like(at_least_float32(t))

    def d_sigma(self, t: Times) -> Times:
        """The derivative of the Karras ramp."""
        lo, hi = self._ends()
        return self.rho * (hi - lo) * self._root(t) ** (self.rho - 1)

    def time_from_log_snr(self, log_snr: Times) -> Times:
        """From sigma = exp(-log_snr / 2), clamped to [sigma_min, sigma_max]."""
        lo, hi = self._ends()
        sigma = torch.exp(-at_least_float32(log_snr) / 2)
        return ((sigma ** (1 / self.rho) - lo) / (hi - lo)).clamp(0, 1)

    def _ends(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def _root(self, t: Times) -> Times:
        lo, hi = self._ends()
        return lo + at_least_float32(t) * (hi - lo)


@dataclass(frozen=True)
class TrigSchedule(NoiseSchedule):
    """TrigFlow: alpha = cos(pi t / 2), sigma = sin(pi t / 2) (https://arxiv.org/abs/2410.11081), data of unit scale."""

    def alpha(self, t: Times) -> Times:
        """The cosine of the angle."""
        return torch.cos(self.angle(t))

    def sigma(self, t: Times) -> Times:
        """The sine of the angle."""
        return torch.sin(self.angle(t))

    def d_alpha(self, t: Times) -> Times:
        """-pi/2 sin."""
        return -math.pi / 2 * torch.sin(self.angle(t))

    def d_sigma(self, t: Times) -> Times:
        """pi/2 cos."""
        return math.pi / 2 * torch.cos(self.angle(t))

    def angle(self, t: Times) -> Times:
        """The paper's own time, in [0, pi/2]."""
        return at_least_float32(t) * (math.pi / 2)

    def time_from_log_snr(self, log_snr: Times) -> Times:
        """2/pi atan(exp(-log_snr / 2))."""
        return torch.atan(torch.exp(-at_least_float32(log_snr) / 2)) * (2 / math.pi)


def schedule_from_scheduler(scheduler: Any) -> NoiseSchedule:
    """The schedule of a diffusers scheduler, read from its `.config` (or from that mapping itself).

    Shifts and grids of inference are not part of it: they say where a sampler calls the network, not what noise is.

    >>> schedule_from_scheduler({"shift": 3.0, "base_shift": 0.5, "num_train_timesteps": 1000})
    FlowSchedule()
    """
    config: Mapping[str, Any] = scheduler if isinstance(scheduler, Mapping) else scheduler.config
    prediction = config.get("prediction_type")
    if config.get("use_flow_sigmas") or prediction == "flow_prediction" or "base_shift" in config:
        return FlowSchedule()
    if prediction == "trigflow":
        return TrigSchedule()
    if "beta_schedule" in config or config.get("trained_betas") is not None:
        return VPSchedule(alphas_cumprod_from_config(config))
    if {"sigma_min", "sigma_max", "rho"} <= set(config):
        return EDMSchedule(config["sigma_min"], config["sigma_max"], config["rho"])
    name = config.get("_class_name", type(scheduler).__name__)
    raise UserError(
        f"the noise schedule of {name} is not known; use a DDPM-like, FlowMatch, EDM or SCM scheduler"
    )


def _result(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)


def _widest(t: Tensor) -> Tensor:
    """float64 where the device has it: differences of nearly equal levels lose half the digits."""
    return t.to(torch.float32 if t.device.type == "mps" else torch.float64)
