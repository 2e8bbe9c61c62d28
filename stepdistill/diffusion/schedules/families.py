"""The noise schedules: VP (a diffusers training table), rectified flow, EDM and TrigFlow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from stepdistill.diffusion.schedules.base import (
    NoiseSchedule,
    at_least_float32,
    result_dtype,
    widest,
)
from stepdistill.diffusion.schedules.betas import alphas_cumprod_from_config
from stepdistill.diffusion.schedules.monotone_cubic import MonotoneCubic
from stepdistill.errors import UserError
from stepdistill.typing import Times

_LEAST_ALPHA_CUMPROD = 1e-12


class VPSchedule(NoiseSchedule):
    """Variance-preserving schedule of a discretely trained model; t is linear in the training index.

    The log-SNR is interpolated by a monotone C1 cubic, so alpha and sigma are smooth in t, have exact
    derivatives and equal the training table at every index. A table with zero terminal SNR is kept to alpha
    >= 1e-6, which leaves the log-SNR finite: v and x0 predictions are unharmed, an eps prediction carries no
    information there.
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
        return torch.exp(0.5 * logsigmoid(self._log_snr(self._index(t)))).to(result_dtype(t))

    def sigma(self, t: Times) -> Times:
        """sqrt(1 - alphas_cumprod)."""
        return torch.exp(0.5 * logsigmoid(-self._log_snr(self._index(t)))).to(result_dtype(t))

    def d_alpha(self, t: Times) -> Times:
        """alpha sigma^2 / 2 times the derivative of the log-SNR."""
        log_snr, slope = self._log_snr(self._index(t)), self._slope(t)
        return (0.5 * slope * torch.exp(0.5 * logsigmoid(log_snr) + logsigmoid(-log_snr))).to(result_dtype(t))

    def d_sigma(self, t: Times) -> Times:
        """-sigma alpha^2 / 2 times the derivative of the log-SNR."""
        log_snr, slope = self._log_snr(self._index(t)), self._slope(t)
        return (-0.5 * slope * torch.exp(0.5 * logsigmoid(-log_snr) + logsigmoid(log_snr))).to(
            result_dtype(t)
        )

    def log_snr(self, t: Times) -> Times:
        """The interpolated log-SNR: finite everywhere."""
        return self._log_snr(self._index(t)).to(result_dtype(t))

    def d_log_snr(self, t: Times) -> Times:
        """The exact derivative of the interpolant."""
        return self._slope(t).to(result_dtype(t))

    def time_from_log_snr(self, log_snr: Times) -> Times:
        """By bisection on the table; carries no gradient."""
        return (self._log_snr.inverse(log_snr) / (len(self._log_snr) - 1)).to(result_dtype(log_snr))

    def _index(self, t: Times) -> Times:
        return widest(t) * (len(self._log_snr) - 1)

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
    """Variance exploding: alpha = 1, sigma on the Karras ramp (https://arxiv.org/abs/2206.00364, eq. 5)."""

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
    """TrigFlow for data of unit scale: cos and sin of pi t / 2 (https://arxiv.org/abs/2410.11081)."""

    def alpha(self, t: Times) -> Times:
        """The cosine of the angle, exactly 0 at t = 1."""
        return torch.sin(self.angle(1 - at_least_float32(t)))

    def sigma(self, t: Times) -> Times:
        """The sine of the angle."""
        return torch.sin(self.angle(t))

    def d_alpha(self, t: Times) -> Times:
        """-pi/2 sin."""
        return -math.pi / 2 * self.sigma(t)

    def d_sigma(self, t: Times) -> Times:
        """pi/2 cos."""
        return math.pi / 2 * self.alpha(t)

    def angle(self, t: Times) -> Times:
        """The paper's own time, in [0, pi/2]."""
        return at_least_float32(t) * (math.pi / 2)

    def time_from_log_snr(self, log_snr: Times) -> Times:
        """2/pi atan(exp(-log_snr / 2))."""
        return torch.atan(torch.exp(-at_least_float32(log_snr) / 2)) * (2 / math.pi)


def schedule_from_scheduler(scheduler: Any) -> NoiseSchedule:
    """The schedule of a diffusers scheduler, read from its `.config` (or from that mapping itself).

    Shifts and grids of inference are not part of it: they say where a sampler calls the network, not what
    noise is.

    >>> schedule_from_scheduler({"shift": 3.0, "num_train_timesteps": 1000})
    FlowSchedule()
    """
    config: Mapping[str, Any] = scheduler if isinstance(scheduler, Mapping) else scheduler.config
    prediction = config.get("prediction_type")
    if config.get("use_flow_sigmas") or prediction == "flow_prediction":
        return FlowSchedule()
    if prediction == "trigflow":
        return TrigSchedule()
    if "beta_schedule" in config or config.get("trained_betas") is not None:
        return VPSchedule(alphas_cumprod_from_config(config))
    if {"sigma_min", "sigma_max", "rho"} <= set(config):
        return EDMSchedule(config["sigma_min"], config["sigma_max"], config["rho"])
    if "shift" in config:
        return FlowSchedule()
    name = config.get("_class_name", type(scheduler).__name__)
    raise UserError(
        f"the noise schedule of {name} is not known; use a DDPM-like, FlowMatch, EDM or SCM scheduler"
    )
