"""The contract of a noise schedule: x_t = alpha(t) x0 + sigma(t) eps with t in [0, 1], 0 = data, 1 = noise.

The algebra runs in float32 or better. `alpha`, `sigma` and `log_snr` return the dtype of t, at least float32.

Edges. A jump that starts or ends at s = 0 starts or ends at the data itself (alpha = 1, sigma = 0), also
where the schedule's own first level carries a little noise (VP's index 0, EDM's sigma_min): see
`NoiseSchedule.level`. Where alpha or sigma is exactly 0, `log_snr` is +-inf and divisors are floored, so
nothing becomes NaN.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from stepdistill.typing import Latents, Times

DIVISOR_FLOOR = 1e-8
"""The least alpha, sigma or sub-interval noise that anything is divided by."""


def per_sample(coefficient: Tensor, batch: Tensor) -> Tensor:
    """Reshape a (B,) coefficient so that it multiplies a batch; a scalar stays one.

    >>> per_sample(torch.ones(2), torch.zeros(2, 4, 8, 8)).shape
    torch.Size([2, 1, 1, 1])
    """
    if coefficient.ndim == 0:
        return coefficient
    return coefficient.reshape(*coefficient.shape, *[1] * (batch.ndim - coefficient.ndim))


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

        >>> from stepdistill.diffusion.schedules.families import FlowSchedule
        >>> FlowSchedule().add_noise(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([0.25]))
        tensor([[0.7500, 0.7500]])
        """
        t = t.to(torch.promote_types(t.dtype, x0.dtype))
        return (per_sample(self.alpha(t), x0) * x0 + per_sample(self.sigma(t), x0) * eps).to(x0.dtype)

    def transition(self, s: Times, t: Times) -> tuple[Times, Times]:
        """(a, g) of the kernel from s to a noisier t, x_t = a x_s + g eps.

        a = alpha_t / alpha_s,  g^2 = sigma_t^2 - a^2 sigma_s^2.

        >>> from stepdistill.diffusion.schedules.families import FlowSchedule
        >>> FlowSchedule().transition(torch.tensor([0.2]), torch.tensor([0.5]))
        (tensor([0.6250]), tensor([0.4841]))
        """
        dtype = torch.promote_types(torch.promote_types(s.dtype, t.dtype), torch.float32)
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.level(widest(s)), self.level(widest(t))
        a = alpha_t / alpha_s.clamp(min=DIVISOR_FLOOR)
        g = (sigma_t**2 - a**2 * sigma_s**2).clamp(min=0).sqrt()
        return a.to(dtype), g.to(dtype)

    def renoise(self, x_s: Latents, eps: Latents, s: Times, t: Times) -> Latents:
        """x_t from x_s and fresh noise, s <= t, in the dtype of x_s; s = 0 is `add_noise`."""
        t = t.to(torch.promote_types(t.dtype, x_s.dtype))
        a, g = self.transition(s, t)
        return (per_sample(a, x_s) * x_s + per_sample(g, x_s) * eps).to(x_s.dtype)

    def match(self, x_t: Latents, t: Times, other: NoiseSchedule) -> tuple[Latents, Times]:
        """The state of the same SNR on another schedule: x' = x |(alpha', sigma')| / |(alpha, sigma)|."""
        t_other = other.time_from_log_snr(self.log_snr(t))
        scale = torch.hypot(other.alpha(t_other), other.sigma(t_other)) / torch.hypot(
            self.alpha(t), self.sigma(t)
        )
        return (per_sample(scale, x_t) * x_t).to(x_t.dtype), t_other


def result_dtype(t: Tensor) -> torch.dtype:
    """The dtype of a coefficient at times t: that of t, at least float32."""
    return torch.promote_types(t.dtype, torch.float32)


def widest(t: Tensor) -> Tensor:
    """The tensor in float64 where the device has it: differences of nearly equal levels lose digits."""
    return t.to(torch.float32 if t.device.type == "mps" else torch.float64)
