"""Tensor aliases used in signatures. jaxtyping is imported here and nowhere else."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

Latents = Float[Tensor, "b *shape"]
"""A batch of latents (or of any other state of the diffusion process), batch first."""

Times = Float[Tensor, "b"]
"""One time in [0, 1] per sample: 0 is data, 1 is noise."""

Images = Float[Tensor, "b 3 h w"]
"""RGB images in [0, 1]."""

Logits = Float[Tensor, "b"]
"""One unnormalised score per sample."""
