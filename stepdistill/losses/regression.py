"""Distances between a prediction and a target, formed in float32 or better. The target is a constant."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from stepdistill.diffusion.schedules.base import at_least_float32
from stepdistill.typing import Latents, Times


def mse(prediction: Latents, target: Latents, *, weight: Times | None = None) -> Tensor:
    """Mean squared error, with an optional weight per sample.

    >>> import torch
    >>> mse(torch.zeros(2, 3), torch.ones(2, 3), weight=torch.tensor([1.0, 3.0]))
    tensor(2.)
    """
    return _mean(_difference(prediction, target).square(), weight)


def pseudo_huber(
    prediction: Latents,
    target: Latents,
    *,
    c: float,
    over: Literal["element", "sample"] = "element",
    weight: Times | None = None,
) -> Tensor:
    """sqrt(d^2 + c^2) - c: quadratic below c, linear above.

    "element": of every element, averaged (LCM, https://arxiv.org/abs/2310.04378). "sample": of the norm of
    each sample, with c = 0.00054 sqrt(dim) (iCT, https://arxiv.org/abs/2310.14189).

    >>> import torch
    >>> pseudo_huber(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), c=0.0, over="sample")
    tensor(5.)
    """
    square = _difference(prediction, target).square()
    square = square.flatten(1).sum(1, keepdim=True) if over == "sample" else square
    return _mean((square + c**2).sqrt() - c, weight)


def _difference(prediction: Latents, target: Latents) -> Latents:
    return at_least_float32(prediction) - at_least_float32(target).detach()


def _mean(error: Latents, weight: Times | None) -> Tensor:
    error = error.flatten(1).mean(1)
    return error.mean() if weight is None else (weight * error).mean()
