"""Losses of a margin between a preferred and a rejected sample, and the clamped reward. All are means over the batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from stepdistill.diffusion.schedules.base import at_least_float32


def logistic_preference(margin: Tensor) -> Tensor:
    """-log sigmoid(margin): the Bradley-Terry likelihood of the label (DPO, https://arxiv.org/abs/2305.18290, eq. 7).

    >>> logistic_preference(torch.zeros(3))
    tensor(0.6931)
    """
    return softplus(-at_least_float32(margin)).mean()


def hinge_preference(margin: Tensor) -> Tensor:
    """relu(1 - margin).

    >>> hinge_preference(torch.tensor([2.0, 0.5]))
    tensor(0.2500)
    """
    return relu(1 - at_least_float32(margin)).mean()


def clamped_reward(rewards: Tensor, *, threshold: float) -> Tensor:
    """relu(threshold - reward): no gradient above the threshold (SwiftBrush v2, https://arxiv.org/abs/2408.14176).

    >>> clamped_reward(torch.tensor([0.1, 0.4]), threshold=0.3)
    tensor(0.1000)
    """
    return relu(threshold - at_least_float32(rewards)).mean()


def clip_log_ratio(log_ratio: Tensor, clip_range: float) -> Tensor:
    """log clip(exp(log_ratio), 1 - clip_range, 1 + clip_range), without gradient outside (PPO, https://arxiv.org/abs/1707.06347).

    >>> clip_log_ratio(torch.tensor([0.0, 1.0]), 0.1)
    tensor([0.0000, 0.0953])
    """
    low, high = torch.log1p(torch.tensor([-clip_range, clip_range])).tolist()
    return log_ratio.clamp(low, high)
