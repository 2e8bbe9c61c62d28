"""Continuous-time consistency (sCM, https://arxiv.org/abs/2410.11081), in TrigFlow's terms for data of unit scale.

The state is x = cos t x0 + sin t eps, the student's output F, its consistency function f = cos t x - sin t F, and the teacher's
field dx/dt = F_teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stepdistill.diffusion.schedules.base import at_least_float32, per_sample
from stepdistill.typing import Latents, Times


def consistency_tangent(
    x: Latents, F: Latents, F_teacher: Latents, dF: Latents, cos: Times, sin: Times, *, warmup: float = 1.0
) -> Latents:
    """g = -cos^2 (F - F_teacher) - warmup (cos sin x + dF), with dF = cos t sin t dF/dt along the teacher's ODE.

    At warmup 1 it is cos t df/dt, with df/dt = -cos t (F - F_teacher) - sin t (x + dF/dt). Detached, in float32 or better.

    >>> one, level = torch.ones(1, 1), torch.tensor([0.5])
    >>> consistency_tangent(one, F=2 * one, F_teacher=one, dF=one, cos=level, sin=level, warmup=0.0)
    tensor([[-0.2500]])
    """
    x, F, F_teacher, dF = (at_least_float32(value.detach()) for value in (x, F, F_teacher, dF))
    cos, sin = per_sample(cos, x), per_sample(sin, x)
    return -(cos**2) * (F - F_teacher) - warmup * (cos * sin * x + dF)


def normalised_tangent(g: Latents, *, c: float = 0.1) -> Latents:
    """g / (rms(g) + c), per sample.

    The rms instead of the paper's norm, so that c means the same for every latent size.

    >>> normalised_tangent(torch.tensor([[3.0, -3.0]]), c=0.0)
    tensor([[ 1., -1.]])
    """
    rms = g.square().flatten(1).mean(1).sqrt()
    return g / per_sample(rms + c, g)


def tangent_loss(F: Latents, g: Latents, log_variance: Tensor | None = None) -> Tensor:
    """mean of exp(-w) ||F - sg(F) - g||^2 + w, the square averaged over each sample; without w: the square alone.

    Its value is that of g, not of an error, and does not measure progress.

    >>> F = torch.zeros(1, 2, requires_grad=True)
    >>> tangent_loss(F, torch.tensor([[1.0, -3.0]])).backward()
    >>> F.grad
    tensor([[-1.,  3.]])
    """
    F = at_least_float32(F)
    error = (F - F.detach() - g).square().flatten(1).mean(1)
    if log_variance is None:
        return error.mean()
    return (torch.exp(-log_variance) * error + log_variance).mean()
