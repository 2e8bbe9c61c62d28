"""Similarity of a student's images to the teacher's from the same noise: PSNR, SSIM, LPIPS and cosine of features.

Meaningful only for students that keep the teacher's trajectory (consistency, progressive distillation, LCM, ...). A
distribution-matching student may map the same noise to another image.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from stepdistill.metrics.accumulators import NamedMeans
from stepdistill.metrics.networks.base import FeatureNetwork, single_precision
from stepdistill.metrics.networks.lpips import LPIPS
from stepdistill.metrics.preprocess import quantise
from stepdistill.typing import Images


def psnr(images: Images, references: Images) -> Tensor:
    """Peak signal-to-noise ratio of each pair (B,) in decibels, on 8-bit levels; infinite for equal images.

    >>> psnr(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.2))
    tensor([13.9794])
    """
    first, second = quantise(images), quantise(references)
    return peak_signal_noise_ratio(first, second, data_range=1.0, reduction="none", dim=(1, 2, 3))


def ssim(images: Images, references: Images) -> Tensor:
    """Structural similarity of each pair (B,), on 8-bit levels, with an 11-pixel Gaussian window of sigma 1.5.

    >>> ssim(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))
    tensor([1.])
    """
    first, second = quantise(images), quantise(references)
    values = structural_similarity_index_measure(first, second, data_range=1.0, reduction="none")
    return cast(Tensor, values)


class PairedSimilarity(NamedMeans):
    """Mean over pairs of `psnr`, `ssim` and, if given, LPIPS and the cosine between features.

    PSNR is averaged in decibels, so one pair of equal images makes it infinite.
    """

    def __init__(self, *, lpips: LPIPS | None = None, features: FeatureNetwork | None = None) -> None:
        extras = {"lpips": lpips, "cosine": features}
        super().__init__(["psnr", "ssim", *(name for name, network in extras.items() if network is not None)])
        self.lpips, self.features = lpips, features

    @torch.no_grad()
    def update(self, images: Images, references: Images) -> None:
        """Add images in [0, 1] and their references, both (B, 3, H, W)."""
        if images.shape != references.shape:
            raise ValueError(f"images {tuple(images.shape)} and references {tuple(references.shape)} do not pair up")
        values = [psnr(images, references), ssim(images, references)]
        if self.lpips is not None:
            with single_precision(images.device.type):
                values.append(self.lpips(quantise(images), quantise(references)))
        if self.features is not None:
            values.append(F.cosine_similarity(self.features(images), self.features(references), dim=1))
        self.add([each.double().sum() for each in values], len(images))
