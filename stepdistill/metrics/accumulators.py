"""The distances as torchmetrics metrics (`update`, `compute`, `reset`), exact under a reduction over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from stepdistill.errors import UserError
from stepdistill.metrics.distances import (
    PRDC,
    cmmd,
    frechet_distance,
    kernel_distance,
    kernel_distance_of_subsets,
    precision_recall_density_coverage,
    warn_if_too_few,
)
from stepdistill.metrics.networks.base import FeatureNetwork
from stepdistill.metrics.preprocess import ImagesOrPictures
from stepdistill.metrics.references import FeatureStats, ReferenceStats

Extractor = FeatureNetwork | Callable[[Tensor], Tensor]


class Accumulator(Metric):
    """A metric whose states depend on each batch alone and keep their precision."""

    is_differentiable = False
    full_state_update = False

    def set_dtype(self, dst_type: str | torch.dtype) -> Any:
        """Ignore `.half()` and the like: sums stay float64."""
        del dst_type
        return self


class NamedMeans(Accumulator):
    """Means of several named values, summed in float64."""

    n: Tensor
    totals: Tensor

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = list(names)
        self.add_state("n", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("totals", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, values: Iterable[Tensor | float], count: int) -> None:
        """Add the sums over `count` samples of each named value."""
        sums = [torch.as_tensor(each, dtype=torch.float64, device=self.totals.device) for each in values]
        self.totals = self.totals + torch.stack(sums)
        self.n = self.n + count

    def compute(self) -> dict[str, Tensor]:
        """Return the means by name, float64 scalars."""
        return dict(zip(self.names, self.totals / self.n, strict=True))


class FrechetDistance(Accumulator):
    """Frechet distance between real and generated images, in the features of `extractor`.

    FID with `InceptionFeatures`, patch FID with `PatchFeatures`, FD-DINOv2 with `DinoFeatures`. States are float64 sums
    around a fixed `shift`, so they add exactly over ranks.

    Args:
        extractor: feature network; None if `update` receives features.
        num_features: feature dimension, if the extractor does not define it.
        shift: vector near the features' mean, for features far from the origin. Defaults to the reference's mean, else 0.
        reference: fixed statistics of the real images. If both name a protocol, it must be the extractor's.

    >>> metric = FrechetDistance(num_features=1)
    >>> metric.update(torch.tensor([[0.0], [2.0]]), real=True)
    >>> metric.update(torch.tensor([[3.0], [5.0]]), real=False)
    >>> metric.compute()
    tensor(9., dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(
        self,
        extractor: Extractor | None = None,
        *,
        num_features: int | None = None,
        shift: Tensor | float | None = None,
        reference: ReferenceStats | None = None,
    ) -> None:
        super().__init__()
        self.extractor, self.reference = extractor, reference
        if isinstance(extractor, FeatureNetwork):
            num_features = extractor.num_features if num_features is None else num_features
            if reference is not None:
                reference.require(extractor.protocol())
        if reference is not None:
            num_features = len(reference.mean) if num_features is None else num_features
            if len(reference.mean) != num_features:
                raise UserError(
                    f"the reference has {len(reference.mean)} features and the feature network {num_features}: use a "
                    "reference computed with this network"
                )
            shift = reference.mean if shift is None else shift
        if num_features is None:
            raise ValueError("FrechetDistance needs num_features=... unless the extractor is a FeatureNetwork")
        shift = 0.0 if shift is None else shift
        self.shift = torch.as_tensor(shift, dtype=torch.float64).expand(num_features)
        for side in ("fake",) if reference is not None else ("real", "fake"):
            zeros = torch.zeros(num_features, dtype=torch.float64)
            self.add_state(f"{side}_n", torch.tensor(0), dist_reduce_fx="sum")
            self.add_state(f"{side}_total", zeros, dist_reduce_fx="sum")
            self.add_state(f"{side}_outer", torch.outer(zeros, zeros), dist_reduce_fx="sum")

    def update(self, images: ImagesOrPictures, *, real: bool) -> None:
        """Add a batch of images, or of features (B, d) if there is no extractor."""
        if real and self.reference is not None:
            raise ValueError("the real statistics are the reference: call update with real=False only")
        side = "real" if real else "fake"
        # In place on the states: copying 34 MB (2,048^2 float64) per batch would cost more than the sums.
        stats = self._stats(side)
        stats.update(_features(self.extractor, images))
        n = cast(Tensor, getattr(self, f"{side}_n"))
        setattr(self, f"{side}_n", torch.full_like(n, stats.n))

    def compute(self) -> Tensor:
        """Return the distance, a float64 scalar."""
        fake = self._stats("fake")
        real = self._stats("real") if self.reference is None else self.reference
        if fake.n < 2 or (real.n is not None and real.n < 2):
            raise ValueError(f"a Frechet distance needs two samples a side, got {real.n} real and {fake.n} generated")
        warn_if_too_few(fake.n if real.n is None else min(real.n, fake.n), len(self.shift))
        moments = (each.cpu() for each in (real.mean, real.cov, fake.mean, fake.cov))
        return torch.tensor(frechet_distance(*moments), dtype=torch.float64)

    def stats(self, *, real: bool) -> FeatureStats:
        """Return a copy of this rank's statistics of one side, for a `ReferenceStats` or to merge."""
        stats = self._stats("real" if real else "fake")
        return FeatureStats(stats.shift, stats.total.clone(), stats.outer.clone(), stats.n)

    def _stats(self, side: str) -> FeatureStats:
        n, total, outer = (cast(Tensor, getattr(self, f"{side}_{name}")) for name in ("n", "total", "outer"))
        return FeatureStats(self.shift.to(total), total, outer, int(n))


class FeatureSets(Accumulator):
    """Base of metrics that need every feature: both sets are stored, and gathered from all ranks."""

    real: list[Tensor]
    fake: list[Tensor]

    def __init__(self, extractor: Extractor | None = None) -> None:
        super().__init__()
        self.extractor = extractor
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")

    def update(self, images: ImagesOrPictures, *, real: bool) -> None:
        """Add a batch of images, or of features (B, d) if there is no extractor."""
        (self.real if real else self.fake).append(_features(self.extractor, images).detach())

    def sets(self) -> tuple[Tensor, Tensor]:
        """Return all real and all generated features."""
        return dim_zero_cat(self.real), dim_zero_cat(self.fake)


class KernelDistance(FeatureSets):
    """Unbiased kernel distance (KID) of real and generated images, in the features of `extractor`.

    Over all pairs by default. `num_subsets=100` averages over random subsets of `subset_size`, as clean-fid and
    torch-fidelity publish it. Not scaled: tables often show it times 1,000.
    """

    higher_is_better = False

    def __init__(
        self,
        extractor: Extractor | None = None,
        *,
        degree: int = 3,
        gamma: float | None = None,
        coef: float = 1.0,
        num_subsets: int = 0,
        subset_size: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(extractor)
        self.kernel = {"degree": degree, "gamma": gamma, "coef": coef}
        self.subsets = {"num_subsets": num_subsets, "subset_size": subset_size, "seed": seed}

    def compute(self) -> Tensor:
        """Return the distance, a float64 scalar."""
        if self.subsets["num_subsets"]:
            value = kernel_distance_of_subsets(*self.sets(), **self.subsets, **self.kernel).mean
        else:
            value = kernel_distance(*self.sets(), **self.kernel)
        return torch.tensor(value, dtype=torch.float64)


class PrecisionRecall(FeatureSets):
    """`precision_recall_density_coverage` of real and generated images."""

    higher_is_better = True

    def __init__(self, extractor: Extractor | None = None, *, k: int = 5, by_matmul: bool | None = None) -> None:
        super().__init__(extractor)
        self.k, self.by_matmul = k, by_matmul

    def compute(self) -> PRDC:
        """Return all four measures."""
        return precision_recall_density_coverage(*self.sets(), k=self.k, by_matmul=self.by_matmul)


class CMMD(FeatureSets):
    """`cmmd` of real and generated images. The published extractor is `CMMDFeatures`."""

    higher_is_better = False

    def compute(self) -> Tensor:
        """Return the distance, a float64 scalar."""
        return torch.tensor(cmmd(*self.sets()), dtype=torch.float64)


def _features(extractor: Extractor | None, images: ImagesOrPictures) -> Tensor:
    return cast(Tensor, images) if extractor is None else extractor(cast(Tensor, images))
