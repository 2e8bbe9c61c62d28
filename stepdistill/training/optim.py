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
    """AdamW with the recipe's settings, in 8 bits where asked.

    Raises:
        UserError: 8-bit Adam is asked for and bitsandbytes is not installed.
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
        raise UserError(
            "train.use_8bit_adam needs bitsandbytes: pip install 'stepdistill[quant]', or set it to false"
        )
    import bitsandbytes  # pyright: ignore[reportMissingImports] - an extra

    return bitsandbytes.optim.AdamW8bit(parameters, **options)


def rate_factor(step: int, config: TrainConfig) -> float:
    """What the learning rate is multiplied by at a step: linear warm-up, then the schedule of the recipe.

    >>> config = TrainConfig(lr_scheduler="linear", lr_warmup_steps=2, max_train_steps=4)
    >>> [rate_factor(step, config) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < config.lr_warmup_steps:
        return (step + 1) / config.lr_warmup_steps
    if config.lr_scheduler == "constant":
        return 1.0
    done = (step - config.lr_warmup_steps) / max(config.max_train_steps - config.lr_warmup_steps, 1)
    decay = (
        1.0 - done if config.lr_scheduler == "linear" else 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
    )
    return config.lr_final_factor + (1.0 - config.lr_final_factor) * max(decay, 0.0)
