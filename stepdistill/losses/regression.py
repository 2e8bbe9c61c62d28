"""Distances between a prediction and a constant target."""

from __future__ import annotations

from torch import Tensor

from stepdistill.diffusion.schedules.base import at_least_float32
from stepdistill.typing import Latents


def pseudo_huber(prediction: Latents, target: Latents, *, c: float) -> Tensor:
    """Mean over elements of sqrt(d^2 + c^2) - c: quadratic below c, linear above; in float32 or better.

    LCM, https://arxiv.org/abs/2310.04378, after iCT, https://arxiv.org/abs/2310.14189.

    >>> import torch
    >>> pseudo_huber(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), c=0.0)
    tensor(3.5000)
    """
    square = (at_least_float32(prediction) - at_least_float32(target).detach()).square()
    return ((square + c**2).sqrt() - c).flatten(1).mean(1).mean()
