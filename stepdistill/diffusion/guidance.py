"""Classifier-free guidance (https://arxiv.org/abs/2207.12598): the only place that combines cond and uncond.

One convention throughout: `uncond + scale (cond - uncond)`. A scale of 1.0 turns guidance off, 0.0 gives the
unconditional estimate. Eq. 6 of the paper, (1 + w) cond - w uncond, is the same with scale = 1 + w.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.typing import Latents, Times


def guide(cond: Latents, uncond: Latents, scale: float | Tensor) -> Latents:
    """Return the guided estimate; a (B,) scale holds one value per sample.

    Every prediction type is linear in x0 at a given x_t, so guiding x0, eps, v or flow is equivalent.

    >>> guide(torch.tensor([[3.0], [3.0]]), torch.tensor([[1.0], [1.0]]), torch.tensor([1.0, 2.0]))
    tensor([[3.],
            [5.]])
    """
    if isinstance(scale, Tensor) and scale.ndim:
        scale = scale.reshape(-1, *[1] * (cond.ndim - 1))
    return uncond + scale * (cond - uncond)


def rescaled(guided: Latents, cond: Latents, part: float) -> Latents:
    """Rescale a guided x0 towards the standard deviation of the unguided one, per sample.

    Strong guidance at high noise drives x0 beyond the range of the data. `part` is the phi of
    https://arxiv.org/abs/2305.08891, eq. 15 and 16, applied to x0 whatever the network predicts.

    >>> rescaled(torch.tensor([[-4.0, 4.0]]), torch.tensor([[-1.0, 1.0]]), part=1.0)
    tensor([[-1.,  1.]])
    """
    size, plain = (x0.flatten(1).std(1) for x0 in (guided, cond))
    # Eq. 15: x_rescaled = x_cfg std(x_pos) / std(x_cfg).  Eq. 16: x = phi x_rescaled + (1 - phi) x_cfg.
    factor = 1 - part + part * plain / size.clamp_min(1e-12)  # a constant x0 has std 0
    return guided * factor.reshape(-1, *[1] * (guided.ndim - 1))


@dataclass(frozen=True, eq=False)
class Guidance:
    """Guidance of one denoiser call.

    Args:
        scale: guidance scale, one number or one per sample.
        uncond: conditioning of the empty (or negative) prompt; a single row is expanded to the batch.
        interval: guide only where lo <= t <= hi (https://arxiv.org/abs/2404.07724).
        rescale: strength of guidance rescale in [0, 1], see `rescaled`; 0.0 turns it off.
    """

    scale: float | Tensor
    uncond: Conditioning
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0

    @property
    def is_off(self) -> bool:
        """Whether the scale is the number 1.0, so that the unconditional call can be skipped."""
        return not isinstance(self.scale, Tensor) and self.scale == 1.0

    def scale_at(self, t: Times) -> Times:
        """Return the scale of each sample: `scale` inside the interval, 1 outside.

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
    """Uniform distribution of the guidance scale on [lo, hi), as a quantile map of u in [0, 1).

    >>> RandomScale(2.0, 6.0)(torch.tensor([0.0, 0.5]))
    tensor([2., 4.])
    """

    lo: float
    hi: float

    def __call__(self, u: Times) -> Times:
        return self.lo + (self.hi - self.lo) * u
