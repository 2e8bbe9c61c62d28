"""The noise schedule interface: x_t = alpha(t) x0 + sigma(t) eps for t in [0, 1], 0 = data, 1 = noise.

All algebra runs in float32 or wider. `alpha`, `sigma` and `log_snr` return the dtype of t, promoted to at least
float32.

Endpoints. A jump to or from s = 0 means the clean data (alpha = 1, sigma = 0), even if the schedule's own
first level carries a little noise (VP's index 0, EDM's sigma_min); see `NoiseSchedule.level`. Where alpha or
sigma is exactly 0, `log_snr` is +-inf; divisors are floored, so no NaN arises.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from stepdistill.typing import Latents, Times

# Below the float32 epsilon (1.2e-7), so that flooring never alters a divisor that still carries signal, and
# far above the smallest normal number (1.2e-38), so that the quotient of two O(1) terms stays finite.
DIVISOR_FLOOR = 1e-8


def per_sample(coefficient: Tensor, batch: Tensor) -> Tensor:
    """Reshape a (B,) coefficient to broadcast over a batch; leave a scalar as is.

    >>> per_sample(torch.ones(2), torch.zeros(2, 4, 8, 8)).shape
    torch.Size([2, 1, 1, 1])
    """
    if coefficient.ndim == 0:
        return coefficient
    return coefficient.reshape(*coefficient.shape, *[1] * (batch.ndim - coefficient.ndim))


def result_dtype(t: Tensor) -> torch.dtype:
    """Return the dtype of coefficients at t: that of t, promoted to at least float32."""
    return torch.promote_types(t.dtype, torch.float32)


def at_least_float32(x: Tensor) -> Tensor:
    """Cast to float32, or keep a wider dtype."""
    return x.to(result_dtype(x))


def widest(t: Tensor) -> Tensor:
    """Cast to float64 where the device supports it: differences of nearly equal levels lose digits."""
    return t.to(torch.float32 if t.device.type == "mps" else torch.float64)


class NoiseSchedule(ABC):
    """alpha and sigma as smooth functions of t, and the operations derived from them."""

    @property
    def prior_std(self) -> float:
        """Standard deviation of the initial noise at t = 1."""
        return 1.0

    @abstractmethod
    def alpha(self, t: Times) -> Times:
        """Return the signal coefficient."""

    @abstractmethod
    def sigma(self, t: Times) -> Times:
        """Return the noise coefficient."""

    @abstractmethod
    def d_alpha(self, t: Times) -> Times:
        """Return d alpha / dt."""

    @abstractmethod
    def d_sigma(self, t: Times) -> Times:
        """Return d sigma / dt."""

    @abstractmethod
    def time_from_log_snr(self, log_snr: Times) -> Times:
        """Invert `log_snr`; values out of range clamp to the nearer endpoint."""

    def log_snr(self, t: Times) -> Times:
        """Return log(alpha^2 / sigma^2): +inf at sigma = 0, -inf at alpha = 0."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def d_log_snr(self, t: Times) -> Times:
        """Return d log_snr / dt."""
        return 2 * (self.d_alpha(t) / self.alpha(t) - self.d_sigma(t) / self.sigma(t))

    def level(self, s: Times) -> tuple[Times, Times]:
        """Return (alpha, sigma) at an endpoint of a jump: the clean data (1, 0) at s = 0."""
        clean = s <= 0
        alpha, sigma = self.alpha(s), self.sigma(s)
        return torch.where(clean, torch.ones_like(alpha), alpha), torch.where(clean, torch.zeros_like(sigma), sigma)

    def add_noise(self, x0: Latents, eps: Latents, t: Times) -> Latents:
        """Return x_t = alpha x0 + sigma eps in the dtype of x0.

        >>> from stepdistill.diffusion.schedules.families import FlowSchedule
        >>> FlowSchedule().add_noise(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([0.25]))
        tensor([[0.7500, 0.7500]])
        """
        t = t.to(torch.promote_types(t.dtype, x0.dtype))
        return (per_sample(self.alpha(t), x0) * x0 + per_sample(self.sigma(t), x0) * eps).to(x0.dtype)

    def transition(self, s: Times, t: Times) -> tuple[Times, Times]:
        """Return (a, g) of the forward kernel q(x_t | x_s) for s <= t: x_t = a x_s + g eps.

        a = alpha_t / alpha_s,  g^2 = sigma_t^2 - a^2 sigma_s^2  (https://arxiv.org/abs/2107.00630, appendix A.1).

        >>> from stepdistill.diffusion.schedules.families import FlowSchedule
        >>> FlowSchedule().transition(torch.tensor([0.2]), torch.tensor([0.5]))
        (tensor([0.6250]), tensor([0.4841]))
        """
        dtype = torch.promote_types(torch.promote_types(s.dtype, t.dtype), torch.float32)
        # float64: g^2 is a difference of nearly equal numbers as s approaches t.
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.level(widest(s)), self.level(widest(t))
        a = alpha_t / alpha_s.clamp(min=DIVISOR_FLOOR)
        g = (sigma_t**2 - a**2 * sigma_s**2).clamp(min=0).sqrt()  # rounding may make it negative at s = t
        return a.to(dtype), g.to(dtype)

    def renoise(self, x_s: Latents, eps: Latents, s: Times, t: Times) -> Latents:
        """Diffuse x_s to t >= s with fresh noise, in the dtype of x_s; s = 0 is `add_noise`."""
        t = t.to(torch.promote_types(t.dtype, x_s.dtype))
        a, g = self.transition(s, t)
        return (per_sample(a, x_s) * x_s + per_sample(g, x_s) * eps).to(x_s.dtype)
