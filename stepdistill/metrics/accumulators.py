"""The distances and the CLIP score as torchmetrics metrics: update, compute, reset; exact under an all-reduce."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from stepdistill.metrics.extractors import ClipFeatures
from stepdistill.metrics.scorers import clip_score
from stepdistill.metrics.stats import FeatureStats, frechet_distance, kernel_distance, warn_if_too_few
from stepdistill.typing import Images

Extractor = Callable[[Tensor], Tensor]


class FrechetDistance(Metric):
    """Frechet distance between real and generated images, in the features of `extractor`.

    The states are float64 sums around a fixed `shift`, so they add up over ranks exactly. Give a `shift` near the
    features' mean if they lie far from the origin. Without an extractor `update` takes features.

    >>> metric = FrechetDistance(num_features=1)
    >>> metric.update(torch.tensor([[0.0], [2.0]]), real=True)
    >>> metric.update(torch.tensor([[3.0], [5.0]]), real=False)
    >>> metric.compute()
    tensor(9., dtype=torch.float64)
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    def __init__(
        self,
        extractor: Extractor | None = None,
        *,
        num_features: int | None = None,
        shift: Tensor | float = 0.0,
    ) -> None:
        super().__init__()
        self.extractor = extractor
        num_features = _num_features(extractor, num_features)
        self.shift = torch.as_tensor(shift, dtype=torch.float64).expand(num_features)
        for side in ("real", "fake"):
            zeros = torch.zeros(num_features, dtype=torch.float64)
            self.add_state(f"{side}_n", torch.tensor(0), dist_reduce_fx="sum")
            self.add_state(f"{side}_total", zeros, dist_reduce_fx="sum")
            self.add_state(f"{side}_outer", torch.outer(zeros, zeros), dist_reduce_fx="sum")

    def update(self, images: Tensor, *, real: bool) -> None:
        """Take in a batch of images in [0, 1], or of features when there is no extractor."""
        side = "real" if real else "fake"
        stats = self._stats(side)
        stats.update(images if self.extractor is None else self.extractor(images))
        for name, value in (("n", stats.n), ("total", stats.total), ("outer", stats.outer)):
            state = cast(Tensor, getattr(self, f"{side}_{name}"))
            setattr(self, f"{side}_{name}", torch.as_tensor(value, dtype=state.dtype, device=state.device))

    def compute(self) -> Tensor:
        """The distance, a float64 scalar."""
        real, fake = self._stats("real"), self._stats("fake")
        if min(real.n, fake.n) < 2:
            raise ValueError(
                f"a Frechet distance needs two samples a side, got {real.n} real and {fake.n} generated"
            )
        warn_if_too_few(min(real.n, fake.n), len(self.shift))
        return torch.tensor(frechet_distance(real.mean, real.cov, fake.mean, fake.cov), dtype=torch.float64)

    def _stats(self, side: str) -> FeatureStats:
        n, total, outer = (cast(Tensor, getattr(self, f"{side}_{name}")) for name in ("n", "total", "outer"))
        return FeatureStats(self.shift.to(total), total.clone(), outer.clone(), int(n))

    def set_dtype(self, dst_type: str | torch.dtype) -> FrechetDistance:
        """The sums stay float64: `.half()` and the like do nothing."""
        del dst_type
        return self


class KernelDistance(Metric):
    """Unbiased kernel distance (KID) over all pairs of real and generated images, in the features of `extractor`.

    Features are kept and gathered, since a sum over pairs of ranks is not a sum over ranks.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    real: list[Tensor]
    fake: list[Tensor]

    def __init__(
        self,
        extractor: Extractor | None = None,
        *,
        degree: int = 3,
        gamma: float | None = None,
        coef: float = 1.0,
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.kernel = {"degree": degree, "gamma": gamma, "coef": coef}
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")

    def update(self, images: Tensor, *, real: bool) -> None:
        """Take in a batch of images in [0, 1], or of features when there is no extractor."""
        features = images if self.extractor is None else self.extractor(images)
        (self.real if real else self.fake).append(features.detach())

    def compute(self) -> Tensor:
        """The distance, not scaled, a float64 scalar."""
        value = kernel_distance(dim_zero_cat(self.real), dim_zero_cat(self.fake), **self.kernel)
        return torch.tensor(value, dtype=torch.float64)


class CLIPScore(Metric):
    """Mean of 100 times the cosine between image and caption, by one CLIP model."""

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    total: Tensor
    n: Tensor

    def __init__(self, features: ClipFeatures) -> None:
        super().__init__()
        self.features = features
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images: Images, captions: Sequence[str]) -> None:
        """Take in images in [0, 1] and one caption for each."""
        if len(images) != len(captions):
            raise ValueError(f"{len(images)} images but {len(captions)} captions")
        scores = clip_score(self.features(images), self.features.texts(captions))
        self.total = self.total + scores.double().sum().to(self.total.device)
        self.n = self.n + len(images)

    def compute(self) -> Tensor:
        """The mean score, a float64 scalar."""
        return self.total / self.n


def _num_features(extractor: Extractor | None, given: int | None) -> int:
    """The dimension asked for, or what a feature network says of itself."""
    if given is not None:
        return given
    if isinstance(extractor, ClipFeatures):
        return extractor.num_features
    raise ValueError("FrechetDistance needs num_features=... unless the extractor is a ClipFeatures")
