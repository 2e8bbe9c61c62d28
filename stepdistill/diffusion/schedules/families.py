"""Noise schedules: VP (a diffusers training table), rectified flow, EDM and TrigFlow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from stepdistill.diffusion.schedules.base import NoiseSchedule, at_least_float32, result_dtype, widest
from stepdistill.diffusion.schedules.monotone_cubic import MonotoneCubic
from stepdistill.errors import UserError
from stepdistill.typing import Times

# At zero terminal SNR: alpha = 1e-6 is a millionth of the noise, and log_snr = -27.6 stays finite.
_MIN_ALPHA_CUMPROD = 1e-12


class VPSchedule(NoiseSchedule):
    """Variance-preserving schedule of a discretely trained model; t is linear in the training index.

    The log-SNR is interpolated by a monotone C1 cubic. Hence alpha and sigma are smooth in t, have exact
    derivatives, and equal the training table at every index. A table with zero terminal SNR is clamped to
    alpha >= 1e-6 to keep the log-SNR finite; this does not affect v and x0 predictions, and an eps prediction
    carries no information there.
    """

    def __init__(self, alphas_cumprod: Tensor | Sequence[float]) -> None:
        table = torch.as_tensor(alphas_cumprod).detach().to("cpu", torch.float64)
        self.alphas_cumprod = table.clamp(_MIN_ALPHA_CUMPROD, 1 - _MIN_ALPHA_CUMPROD)
        # log SNR = log(a / (1 - a)) for a = alphas_cumprod = alpha^2.
        self._log_snr = MonotoneCubic(self.alphas_cumprod.log() - (1 - self.alphas_cumprod).log())

    def __repr__(self) -> str:
        return f"VPSchedule(num_train_timesteps={len(self._log_snr)})"

    def index(self, t: Times) -> Times:
        """Return the (fractional) training index of t."""
        return at_least_float32(t) * (len(self._log_snr) - 1)

    def time(self, index: Times) -> Times:
        """Return the t of a training index."""
        index = index if index.is_floating_point() else index.to(torch.float32)
        return at_least_float32(index) / (len(self._log_snr) - 1)

    # With alpha^2 + sigma^2 = 1 everything follows from l = log_snr:
    #   alpha^2 = sigmoid(l),  sigma^2 = sigmoid(-l),  alpha' = l' alpha sigma^2 / 2,  sigma' = -l' sigma alpha^2 / 2.
    # logsigmoid keeps full relative precision where alpha or sigma is tiny.

    def alpha(self, t: Times) -> Times:
        return torch.exp(0.5 * logsigmoid(self._log_snr(self._index(t)))).to(result_dtype(t))

    def sigma(self, t: Times) -> Times:
        return torch.exp(0.5 * logsigmoid(-self._log_snr(self._index(t)))).to(result_dtype(t))

    def d_alpha(self, t: Times) -> Times:
        log_snr, slope = self._log_snr(self._index(t)), self._slope(t)
        return (0.5 * slope * torch.exp(0.5 * logsigmoid(log_snr) + logsigmoid(-log_snr))).to(result_dtype(t))

    def d_sigma(self, t: Times) -> Times:
        log_snr, slope = self._log_snr(self._index(t)), self._slope(t)
        return (-0.5 * slope * torch.exp(0.5 * logsigmoid(-log_snr) + logsigmoid(log_snr))).to(result_dtype(t))

    def log_snr(self, t: Times) -> Times:
        return self._log_snr(self._index(t)).to(result_dtype(t))

    def d_log_snr(self, t: Times) -> Times:
        return self._slope(t).to(result_dtype(t))

    def time_from_log_snr(self, log_snr: Times) -> Times:
        """Bisect the interpolated table; carries no gradient."""
        return (self._log_snr.inverse(log_snr) / (len(self._log_snr) - 1)).to(result_dtype(log_snr))

    def _index(self, t: Times) -> Times:
        return widest(t) * (len(self._log_snr) - 1)

    def _slope(self, t: Times) -> Times:
        return self._log_snr.derivative(self._index(t)) * (len(self._log_snr) - 1)


@dataclass(frozen=True)
class FlowSchedule(NoiseSchedule):
    """Rectified flow: alpha = 1 - t, sigma = t (https://arxiv.org/abs/2209.03003, time reversed)."""

    def alpha(self, t: Times) -> Times:
        return 1 - at_least_float32(t)

    def sigma(self, t: Times) -> Times:
        return at_least_float32(t)

    def d_alpha(self, t: Times) -> Times:
        return -torch.ones_like(at_least_float32(t))

    def d_sigma(self, t: Times) -> Times:
        return torch.ones_like(at_least_float32(t))

    def time_from_log_snr(self, log_snr: Times) -> Times:
        # log_snr = 2 log((1 - t) / t)  =>  t = sigmoid(-log_snr / 2)
        return torch.sigmoid(-at_least_float32(log_snr) / 2)


@dataclass(frozen=True)
class EDMSchedule(NoiseSchedule):
    """Variance exploding: alpha = 1, sigma on the Karras ramp (https://arxiv.org/abs/2206.00364, eq. 5)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def alpha(self, t: Times) -> Times:
        return torch.ones_like(at_least_float32(t))

    def sigma(self, t: Times) -> Times:
        # Eq. 5: sigma = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho, with t = 1 - i / (N - 1).
        return self._root(t) ** self.rho

    def d_alpha(self, t: Times) -> Times:
        return torch.zeros_like(at_least_float32(t))

    def d_sigma(self, t: Times) -> Times:
        lo, hi = self._ends()
        return self.rho * (hi - lo) * self._root(t) ** (self.rho - 1)

    def time_from_log_snr(self, log_snr: Times) -> Times:
        """Invert sigma = exp(-log_snr / 2), clamped to [sigma_min, sigma_max]."""
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
    """TrigFlow for data of unit scale: alpha = cos, sigma = sin of pi t / 2 (https://arxiv.org/abs/2410.11081)."""

    def alpha(self, t: Times) -> Times:
        # cos a = sin(pi/2 - a): exactly 0 at t = 1, where torch.cos(pi/2) is -4e-8.
        return torch.sin(self.angle(1 - at_least_float32(t)))

    def sigma(self, t: Times) -> Times:
        return torch.sin(self.angle(t))

    def d_alpha(self, t: Times) -> Times:
        return -math.pi / 2 * self.sigma(t)

    def d_sigma(self, t: Times) -> Times:
        return math.pi / 2 * self.alpha(t)

    def angle(self, t: Times) -> Times:
        """Return the paper's own time, in [0, pi/2]."""
        return at_least_float32(t) * (math.pi / 2)

    def time_from_log_snr(self, log_snr: Times) -> Times:
        # tan a = sigma / alpha = exp(-log_snr / 2)
        return torch.atan(torch.exp(-at_least_float32(log_snr) / 2)) * (2 / math.pi)


def schedule_from_scheduler(scheduler: Any) -> NoiseSchedule:
    """Return the noise schedule of a diffusers scheduler, given the scheduler or its config.

    Timestep shifts and spacings are not part of it: they choose where a sampler calls the network, not how
    noise is added.

    Raises:
        UserError: the scheduler belongs to no known family.

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
    raise UserError(f"unknown noise schedule of {name}; use a DDPM-like, FlowMatch, EDM or SCM scheduler")


def alphas_cumprod_from_config(config: Mapping[str, Any]) -> Tensor:
    """Return the float32 training table of a DDPM-like diffusers scheduler from its config.

    >>> config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    >>> alphas_cumprod_from_config({"num_train_timesteps": 1000, **config})[[0, -1]]
    tensor([0.9991, 0.0047])
    """
    from diffusers import DDPMScheduler

    # All DDPM-like schedulers build this table alike. Taking it from the config rather than from the given
    # object undoes what some of them (Euler) do to it afterwards at zero terminal SNR.
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    known = {name: config[name] for name in (*names, "rescale_betas_zero_snr") if name in config}
    try:
        return DDPMScheduler(**known).alphas_cumprod
    except NotImplementedError as error:
        raise UserError(
            f"unknown beta_schedule '{config['beta_schedule']}'; use linear, scaled_linear, squaredcos_cap_v2, "
            "sigmoid or laplace"
        ) from error
