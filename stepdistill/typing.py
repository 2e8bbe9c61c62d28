"""Tensor type aliases. The only module that imports jaxtyping."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

Latents = Float[Tensor, "b *shape"]
"""A batch of latents or of other diffusion states, batch first."""

Times = Float[Tensor, "b"]
"""One time in [0, 1] per sample: 0 is data, 1 is noise."""

Images = Float[Tensor, "b 3 h w"]
"""RGB images in [0, 1]."""

Logits = Float[Tensor, "b"]
"""One unnormalised score per sample."""
