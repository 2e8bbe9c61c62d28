"""Variety of a set of features (Vendi score, mean cosine), and of the images of one prompt over seeds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stepdistill.metrics.accumulators import NamedMeans
from stepdistill.metrics.networks.base import FeatureNetwork, single_precision
from stepdistill.metrics.networks.lpips import LPIPS
from stepdistill.metrics.preprocess import of_pictures, quantise, to_pictures
from stepdistill.typing import Images


def vendi_score(features: Tensor) -> float:
    """Effective number of distinct samples (https://arxiv.org/abs/2210.02410): 1 for parallel features, n for orthogonal.

    >>> round(vendi_score(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])), 12)
    2.0
    """
    unit = F.normalize(features.to(torch.float64), dim=1)
    if len(unit) == 0:
        raise ValueError("the Vendi score of no features is undefined")
    # exp(-sum l log l) over the eigenvalues l of K / n, K = X X^T; X^T X has the same ones, so take the smaller matrix.
    smaller = unit.T @ unit if len(unit) > unit.shape[1] else unit @ unit.T
    eigenvalues = torch.linalg.eigvalsh(smaller / len(unit)).clamp_min(0)
    return float(torch.special.entr(eigenvalues).sum().exp())


def mean_pairwise_cosine(features: Tensor) -> float:
    """Mean cosine over all pairs of distinct rows; 1 for identical directions.

    >>> mean_pairwise_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]))
    -0.3333333333333333
    """
    n = len(features)
    if n < 2:
        raise ValueError(f"a mean over pairs needs two samples, got {n}")
    unit = F.normalize(features.to(torch.float64), dim=1)
    squared = unit.sum(0).square().sum()  # |sum u_i|^2 = sum of all n^2 cosines, the diagonal included
    return float((squared - unit.square().sum()) / (n * (n - 1)))


class PromptDiversity(NamedMeans):
    """Differences between the images of one prompt over seeds, averaged over prompts.

    `lpips` is the mean over all pairs of a prompt's images (higher is more varied), `cosine` that of features (lower is
    more varied), `vendi` their effective number. Values depend on the network and, for `vendi`, on the number of seeds:
    quote both, next to the teacher's.

    Args:
        lpips: perceptual distance.
        features: feature network for `cosine` and `vendi`.
        side: resize to this square with PIL's LANCZOS before LPIPS. DMD2 (https://arxiv.org/abs/2405.14867) uses 512.
    """

    def __init__(
        self, *, lpips: LPIPS | None = None, features: FeatureNetwork | None = None, side: int | None = None
    ) -> None:
        if lpips is None and features is None:
            raise ValueError("PromptDiversity needs lpips=... or features=..., or both")
        super().__init__(
            (["lpips"] if lpips is not None else []) + (["cosine", "vendi"] if features is not None else [])
        )
        self.lpips, self.features, self.side = lpips, features, side

    @torch.no_grad()
    def update(self, images: Images) -> None:
        """Add the images of one prompt (S, 3, H, W), S >= 2."""
        if len(images) < 2:
            raise ValueError(f"diversity needs two images of a prompt, got {len(images)}")
        values: list[float] = []
        if self.lpips is not None:
            with single_precision(images.device.type):
                distances = self.lpips.pairwise(self._resized(images))
            values.append(float(distances.double().mean()))
        if self.features is not None:
            features = self.features(images)
            values += [mean_pairwise_cosine(features), vendi_score(features)]
        self.add(values, 1)

    def _resized(self, images: Images) -> Images:
        if self.side is None:
            return quantise(images)
        size = (self.side, self.side)
        pictures = [each.resize(size, Image.Resampling.LANCZOS) for each in to_pictures(images)]
        return (of_pictures(pictures).float() / 255).to(images.device)
