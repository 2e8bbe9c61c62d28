"""Discriminator heads on features of a diffusion network (DMD2, https://arxiv.org/abs/2405.14867, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stepdistill.typing import Logits


class TokenHead(nn.Module):
    """One logit from tokens (B, N, C): a layer on every token, the average over tokens, a small MLP on that.

    Most of its parameters come after the average, where they are multiplied once per image and not once per token. The norm has
    no gain of its own, as the layer behind it has one.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.per_token = nn.Sequential(
            nn.LayerNorm(channels, elementwise_affine=False), nn.Linear(channels, width), nn.SiLU()
        )
        self.per_image = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, features: Tensor) -> Logits:
        """Logits, shape (B,)."""
        return self.per_image(self.per_token(features).mean(dim=1)).squeeze(1)


class MapHead(nn.Module):
    """One logit from a feature map (B, C, H, W): normalise, mix neighbours, judge every place, average."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(1, channels, affine=False),
            nn.Conv2d(channels, width, kernel_size=3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            nn.SiLU(),
        )
        self.last = nn.Linear(width, 1)

    def forward(self, features: Tensor) -> Logits:
        """Logits, shape (B,)."""
        return self.last(self.layers(features).mean(dim=(2, 3))).squeeze(1)


class DiscriminatorHeads(nn.Module):
    """The mean logit of one head per tapped layer.

    Args:
        shapes: the shape of each tapped feature without the batch dimension: (N, C) for tokens, (C, H, W) for maps.
        width: hidden width of the heads.
        seed: of the initial weights.
    """

    def __init__(self, shapes: Sequence[Sequence[int]], *, width: int = 128, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleList(
                TokenHead(shape[-1], width) if len(shape) == 2 else MapHead(shape[0], width) for shape in shapes
            )

    def forward(self, features: Sequence[Tensor]) -> Logits:
        """Logits in float32, shape (B,): large is real."""
        if len(features) != len(self.heads):
            raise ValueError(f"{len(self.heads)} heads were given {len(features)} features")
        return torch.stack([head(feature.float()) for head, feature in zip(self.heads, features, strict=True)]).mean(0)
