"""How near a student's pictures are to the teacher's from the same noise: PSNR, SSIM, LPIPS and the cosine of features.

Only for students that keep the teacher's trajectory (consistency, progressive, LCM, ...); a distribution-matching student is free to draw
another picture from the same noise.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from stepdistill.metrics.networks.features import FeatureNetwork, single_precision
from stepdistill.metrics.networks.lpips import LPIPS
from stepdistill.metrics.preprocess import quantise
from stepdistill.typing import Images


def psnr(images: Images, references: Images) -> Tensor:
    """Peak signal-to-noise ratio of each pair in decibels (B,), as 8-bit pictures; infinite for equal ones.

    >>> psnr(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.2))
    tensor([13.9794])
    """
    first, second = quantise(images), quantise(references)
    return peak_signal_noise_ratio(first, second, data_range=1.0, reduction="none", dim=(1, 2, 3))


def ssim(images: Images, references: Images) -> Tensor:
    """Structural similarity of each pair (B,), as 8-bit pictures: Gaussian window of 11 pixels, sigma 1.5; 1 for equal ones.

    >>> ssim(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))
    tensor([1.])
    """
    first, second = quantise(images), quantise(references)
    values = structural_similarity_index_measure(first, second, data_range=1.0, reduction="none")
    return cast(Tensor, values)


class PairedSimilarity(Metric):
    """Means over pairs of `psnr`, `ssim` and, where given, LPIPS and the cosine between features.

    The mean of the PSNR is over pictures, in decibels; one equal pair makes it infinite.
    """

    is_differentiable = False
    full_state_update = False
    n: Tensor

    def __init__(self, *, lpips: LPIPS | None = None, features: FeatureNetwork | None = None) -> None:
        super().__init__()
        self.lpips, self.features = lpips, features
        extras = {"lpips": lpips, "cosine": features}
        self.names = ["psnr", "ssim", *(name for name, network in extras.items() if network is not None)]
        self.add_state("n", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("totals", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, images: Images, references: Images) -> None:
        """Take in images in [0, 1] and what each is compared with, both (B, 3, H, W)."""
        if images.shape != references.shape:
            raise ValueError(
                f"images {tuple(images.shape)} and references {tuple(references.shape)} are no pairs"
            )
        values = [psnr(images, references), ssim(images, references)]
        if self.lpips is not None:
            with single_precision(images.device.type):
                values.append(self.lpips(quantise(images), quantise(references)))
        if self.features is not None:
            values.append(F.cosine_similarity(self.features(images), self.features(references), dim=1))
        sums = torch.stack([each.double().sum() for each in values])
        totals = cast(Tensor, self.totals)
        self.totals = totals + sums.to(totals.device)
        self.n = self.n + len(images)

    def compute(self) -> dict[str, Tensor]:
        """The means by name, float64 scalars."""
        return dict(zip(self.names, cast(Tensor, self.totals) / self.n, strict=True))

    def set_dtype(self, dst_type: str | torch.dtype) -> PairedSimilarity:
        """The sums stay float64: `.half()` and the like do nothing."""
        del dst_type
        return self
