"""Classifier-free guidance, https://arxiv.org/abs/2207.12598: the one place where cond and uncond are combined.

One convention everywhere: `uncond + scale (cond - uncond)`, so 1.0 is off and 0.0 is the unconditional estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.typing import Latents, Times


def guide(cond: Latents, uncond: Latents, scale: float | Tensor) -> Latents:
    """The guided estimate; a (B,) scale is one value per sample.

    Linear, hence the same whether cond and uncond are estimates of x0, eps, v or the flow at the same x_t.

    >>> guide(torch.tensor([[3.0], [3.0]]), torch.tensor([[1.0], [1.0]]), torch.tensor([1.0, 2.0]))
    tensor([[3.],
            [5.]])
    """
    if isinstance(scale, Tensor) and scale.ndim:
        scale = scale.reshape(-1, *[1] * (cond.ndim - 1))
    return uncond + scale * (cond - uncond)


def rescaled(guided: Latents, cond: Latents, part: float) -> Latents:
    """A guided estimate of x0 brought back towards the size of the plain one, sample by sample.

    At high noise guidance makes x0 larger than any data is. This takes a part of that back
    (https://arxiv.org/abs/2305.08891, eq. 15 and 16; here of x0, whatever the network predicts).

    >>> rescaled(torch.tensor([[-4.0, 4.0]]), torch.tensor([[-1.0, 1.0]]), part=1.0)
    tensor([[-1.,  1.]])
    """
    size, plain = (x0.flatten(1).std(1) for x0 in (guided, cond))
    factor = 1 - part + part * plain / size.clamp_min(1e-12)
    return guided * factor.reshape(-1, *[1] * (guided.ndim - 1))


@dataclass(frozen=True, eq=False)
class Guidance:
    """How a denoiser is guided in one call.

    Args:
        scale: standard scale, one number or one per sample.
        uncond: conditioning of the empty (or negative) prompt; a single row serves the whole batch.
        interval: guided where lo <= t <= hi, plain elsewhere (https://arxiv.org/abs/2404.07724).
        rescale: part of the guided x0's larger size that is taken back, see `rescaled`.
    """

    scale: float | Tensor
    uncond: Conditioning
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0

    @property
    def is_off(self) -> bool:
        """True when the scale is the number 1.0: the unconditional call can be left out."""
        return not isinstance(self.scale, Tensor) and self.scale == 1.0

    def scale_at(self, t: Times) -> Times:
        """The scale of each sample: `scale` inside the interval, 1 outside.

        >>> empty = Conditioning({"tokens": torch.zeros(1, 1)})
        >>> Guidance(4.0, empty, interval=(0.2, 0.8)).scale_at(torch.tensor([0.1, 0.5, 0.9]))
        tensor([1., 4., 1.])
        """
        scale = torch.as_tensor(self.scale, dtype=t.dtype, device=t.device).expand(t.shape)
        lo, hi = self.interval
        if (lo, hi) == (0.0, 1.0):
            return scale
        return torch.where((t >= lo) & (t <= hi), scale, torch.ones_like(scale))


@dataclass(frozen=True)
class RandomScale:
    """A guidance scale drawn uniformly from [lo, hi] per sample, as a quantile map of u in [0, 1).

    >>> RandomScale(2.0, 6.0)(torch.tensor([0.0, 0.5]))
    tensor([2., 4.])
    """

    lo: float
    hi: float

    def __call__(self, u: Times) -> Times:
        """The scale at quantile u."""
        return self.lo + (self.hi - self.lo) * u
