"""alphas_cumprod of a DDPM-like diffusers scheduler, from its configuration alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from stepdistill.errors import UserError


def alphas_cumprod_from_config(config: Mapping[str, Any]) -> Tensor:
    """The cumulative product of 1 - beta, in float32 like the scheduler's own, so that both round alike.

    >>> config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    >>> alphas_cumprod_from_config({"num_train_timesteps": 1000, **config})[[0, -1]]
    tensor([0.9991, 0.0047])
    """
    betas = _betas(config)
    if config.get("rescale_betas_zero_snr"):
        betas = _rescaled_to_zero_snr(betas)
    return torch.cumprod(1.0 - betas, dim=0)


def _betas(config: Mapping[str, Any]) -> Tensor:
    trained = config.get("trained_betas")
    if trained is not None:
        return torch.as_tensor(trained, dtype=torch.float32)
    count = int(config["num_train_timesteps"])
    start, end, law = config["beta_start"], config["beta_end"], config["beta_schedule"]
    if law == "linear":
        return torch.linspace(start, end, count, dtype=torch.float32)
    if law == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2
    if law == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, count)) * (end - start) + start
    if law in _ALPHA_BARS:
        alpha_bar = _ALPHA_BARS[law]
        betas = [min(1 - alpha_bar((i + 1) / count) / alpha_bar(i / count), 0.999) for i in range(count)]
        return torch.tensor(betas, dtype=torch.float32)
    known = ", ".join(["linear", "scaled_linear", "sigmoid", *_ALPHA_BARS])
    raise UserError(f"beta_schedule {law!r} is not known; use a scheduler with one of: {known}")


def _cosine(u: float) -> float:
    return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(u: float) -> float:
    log_snr = -0.5 * math.copysign(1, 0.5 - u) * math.log(1 - 2 * abs(0.5 - u) + 1e-6)
    return math.sqrt(math.exp(log_snr) / (1 + math.exp(log_snr)))


_ALPHA_BARS: dict[str, Callable[[float], float]] = {"squaredcos_cap_v2": _cosine, "laplace": _laplace}


def _rescaled_to_zero_snr(betas: Tensor) -> Tensor:
    """Betas rescaled so that the last alpha is zero (https://arxiv.org/abs/2305.08891, algorithm 1)."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    alphas_cumprod = ((root - last) * (first / (first - last))) ** 2
    alphas = torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
    return 1 - alphas
