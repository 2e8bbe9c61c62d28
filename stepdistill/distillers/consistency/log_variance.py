"""A learned weight of times: the log-variance of a loss (EDM2, https://arxiv.org/abs/2312.02696), as used by sCM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stepdistill.typing import Times

NUM_FREQUENCIES = 16


class LogVariance(nn.Module):
    """w(a), a series of cosines in the noise angle a = atan(sigma / alpha); zero at first.

    exp(-w) E + w is least at w = log E, where every time counts alike, whatever fixed weight came before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.series = nn.Linear(NUM_FREQUENCIES, 1, bias=False)
        nn.init.zeros_(self.series.weight)

    def forward(self, angle: Times) -> Tensor:
        """w at angles in [0, pi / 2], shape (B,)."""
        orders = torch.arange(NUM_FREQUENCIES, dtype=torch.float32, device=angle.device)
        return self.series(torch.cos(2 * angle.float()[:, None] * orders)).squeeze(1)
