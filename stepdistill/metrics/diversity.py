"""Variety: the Vendi score and the mean cosine of a set of features, and how much pictures of one prompt differ over seeds."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchmetrics import Metric

from stepdistill.metrics.networks.features import FeatureNetwork, single_precision
from stepdistill.metrics.networks.lpips import LPIPS
from stepdistill.metrics.preprocess import of_pictures, quantise, to_pictures
from stepdistill.typing import Images


def vendi_score(features: Tensor) -> float:
    """Effective number of different samples (https://arxiv.org/abs/2210.02410): n for orthogonal features, 1 for parallel ones.

    The exponential of the entropy of the eigenvalues of `K / n`, where K holds the cosines. Taken from `X^T X` where that is
    the smaller matrix; the eigenvalues are the same.

    >>> round(vendi_score(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])), 12)
    2.0
    """
    unit = F.normalize(features.to(torch.float64), dim=1)
    if len(unit) == 0:
        raise ValueError("the Vendi score of no features")
    smaller = unit.T @ unit if len(unit) > unit.shape[1] else unit @ unit.T
    eigenvalues = torch.linalg.eigvalsh(smaller / len(unit)).clamp_min(0)
    return float(torch.special.entr(eigenvalues).sum().exp())


def mean_pairwise_cosine(features: Tensor) -> float:
    """Mean cosine of all pairs of different rows: the nearer to 1, the more alike.

    >>> mean_pairwise_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]))
    -0.3333333333333333
    """
    n = len(features)
    if n < 2:
        raise ValueError(f"a mean over pairs needs two samples, got {n}")
    unit = F.normalize(features.to(torch.float64), dim=1)
    # The sum of all cosines is the squared length of the sum; n of them are the diagonal.
    squared = unit.sum(0).square().sum()
    return float((squared - unit.square().sum()) / (n * (n - 1)))


class PromptDiversity(Metric):
    """How much the pictures of one prompt differ over seeds, averaged over prompts.

    `lpips` is the mean over all pairs of a prompt's pictures (up is varied), `cosine` the same of features (down is varied), `vendi`
    their effective number. The values depend on the network and, for `vendi`, on the number of seeds: quote both, beside the teacher's.

    Args:
        lpips: perceptual distance.
        features: feature network for `cosine` and `vendi`.
        side: pixels that pictures are squeezed to before LPIPS, with PIL's LANCZOS; DMD2 (https://arxiv.org/abs/2405.14867) has
            512. None leaves them as they are.
    """

    is_differentiable = False
    full_state_update = False
    n: Tensor

    def __init__(
        self,
        *,
        lpips: LPIPS | None = None,
        features: FeatureNetwork | None = None,
        side: int | None = None,
    ) -> None:
        super().__init__()
        if lpips is None and features is None:
            raise ValueError("PromptDiversity needs lpips=... or features=..., or both")
        self.lpips, self.features, self.side = lpips, features, side
        of_lpips = ["lpips"] if lpips is not None else []
        self.names = of_lpips + (["cosine", "vendi"] if features is not None else [])
        self.add_state("n", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("totals", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, images: Images) -> None:
        """Take in the pictures of one prompt (S, 3, H, W), at least two."""
        if len(images) < 2:
            raise ValueError(f"diversity needs two pictures of a prompt, got {len(images)}")
        values: list[float] = []
        if self.lpips is not None:
            with single_precision(images.device.type):
                distances = self.lpips.pairwise(self._squeezed(images))
            values.append(float(distances.double().mean()))
        if self.features is not None:
            features = self.features(images)
            values += [mean_pairwise_cosine(features), vendi_score(features)]
        totals = cast(Tensor, self.totals)
        self.totals = totals + totals.new_tensor(values)
        self.n = self.n + 1

    def compute(self) -> dict[str, Tensor]:
        """The means over prompts by name, float64 scalars."""
        return dict(zip(self.names, cast(Tensor, self.totals) / self.n, strict=True))

    def set_dtype(self, dst_type: str | torch.dtype) -> PromptDiversity:
        """The sums stay float64: `.half()` and the like do nothing."""
        del dst_type
        return self

    def _squeezed(self, images: Images) -> Images:
        if self.side is None:
            return quantise(images)
        size = (self.side, self.side)
        pictures = [each.resize(size, Image.Resampling.LANCZOS) for each in to_pictures(images)]
        return (of_pictures(pictures).float() / 255).to(images.device)
