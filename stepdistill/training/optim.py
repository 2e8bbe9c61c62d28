"""Optimisers and learning rates of the players."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence

import torch
from torch import nn

from stepdistill.errors import UserError
from stepdistill.training.recipe import TrainConfig


def build_optimizer(
    parameters: Sequence[nn.Parameter], learning_rate: float, config: TrainConfig
) -> torch.optim.Optimizer:
    """Create AdamW with the recipe's settings, 8-bit if requested.

    Raises:
        UserError: 8-bit Adam is requested and bitsandbytes is not installed.
    """
    options = {
        "lr": learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
    }
    if not config.use_8bit_adam:
        return torch.optim.AdamW(parameters, fused=True, **options)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("train.use_8bit_adam needs bitsandbytes: pip install 'stepdistill[quant]', or set it to false")
    import bitsandbytes  # pyright: ignore[reportMissingImports] - an extra

    return bitsandbytes.optim.AdamW8bit(parameters, **options)


def rate_factor(step: int, config: TrainConfig) -> float:
    """Return the learning-rate multiplier of a step: linear warm-up, then the schedule of the recipe.

    >>> config = TrainConfig(lr_scheduler="linear", lr_warmup_steps=2, max_train_steps=4)
    >>> [rate_factor(step, config) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    decay = decay_factor(step, config.lr_scheduler, config.lr_warmup_steps, config.max_train_steps)
    if step < config.lr_warmup_steps:
        return decay
    return config.lr_final_factor + (1.0 - config.lr_final_factor) * decay


def decay_factor(step: int, kind: str, warmup_steps: int, max_train_steps: int) -> float:
    """Return the multiplier of a linear warm-up to 1 followed by a "constant", "linear" or "cosine" decay to 0.

    The libraries' laws round or count differently: `diffusers.optimization.get_scheduler` warms up by
    step / warmup_steps, from a first step at rate 0; torch's `CosineAnnealingLR` chains products step by step.

    >>> [round(decay_factor(step, "cosine", 2, 10), 2) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if kind == "constant":
        return 1.0
    done = (step - warmup_steps) / max(max_train_steps - warmup_steps, 1)
    return max(1.0 - done if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0))), 0.0)
