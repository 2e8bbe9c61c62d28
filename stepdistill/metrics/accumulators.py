"""The distances and the CLIP score as torchmetrics metrics: update, compute, reset; exact under an all-reduce."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from stepdistill.errors import UserError
from stepdistill.metrics.distances import FeatureStats, frechet_distance, kernel_distance, warn_if_too_few
from stepdistill.metrics.kernels import cmmd, kernel_distance_of_subsets
from stepdistill.metrics.neighbours import PRDC, precision_recall_density_coverage
from stepdistill.metrics.networks.extractors import ClipFeatures
from stepdistill.metrics.networks.features import FeatureNetwork
from stepdistill.metrics.preprocess import ImagesOrPictures
from stepdistill.metrics.references import ReferenceStats
from stepdistill.typing import Images

Extractor = FeatureNetwork | Callable[[Tensor], Tensor]


class FrechetDistance(Metric):
    """Frechet distance between real and generated images, in the features of `extractor`.

    FID with `InceptionFeatures`, patch FID with `PatchFeatures` around it, FD-DINOv2 with `DinoFeatures`. The states are float64
    sums around a fixed `shift`, so they add up over ranks exactly.

    Args:
        extractor: feature network; None where `update` is given features.
        num_features: their number, where the extractor does not say.
        shift: a vector near the features' mean, for features far from the origin; the reference's mean by default.
        reference: the real side, fixed. Its protocol has to be the extractor's where it says one.

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
        shift: Tensor | float | None = None,
        reference: ReferenceStats | None = None,
    ) -> None:
        super().__init__()
        self.extractor, self.reference = extractor, reference
        num_features = _num_features(extractor, num_features, reference)
        if reference is not None:
            _check_reference(reference, extractor, num_features)
            shift = reference.mean if shift is None else shift
        shift = 0.0 if shift is None else shift
        self.shift = torch.as_tensor(shift, dtype=torch.float64).expand(num_features)
        for side in ("fake",) if reference is not None else ("real", "fake"):
            zeros = torch.zeros(num_features, dtype=torch.float64)
            self.add_state(f"{side}_n", torch.tensor(0), dist_reduce_fx="sum")
            self.add_state(f"{side}_total", zeros, dist_reduce_fx="sum")
            self.add_state(f"{side}_outer", torch.outer(zeros, zeros), dist_reduce_fx="sum")

    def update(self, images: ImagesOrPictures, *, real: bool) -> None:
        """Take in a batch of images, or of features when there is no extractor."""
        if real and self.reference is not None:
            raise ValueError("the real side is the reference that was given: update with real=False only")
        side = "real" if real else "fake"
        stats = self._stats(
            side
        )  # shares the states' memory: a copy of 34 MB a batch would cost more than the sums
        stats.update(_features(self.extractor, images))
        n = cast(Tensor, getattr(self, f"{side}_n"))
        setattr(self, f"{side}_n", torch.full_like(n, stats.n))

    def compute(self) -> Tensor:
        """The distance, a float64 scalar."""
        fake = self._stats("fake")
        real = self._stats("real") if self.reference is None else self.reference
        if fake.n < 2 or (real.n is not None and real.n < 2):
            raise ValueError(
                f"a Frechet distance needs two samples a side, got {real.n} real and {fake.n} generated"
            )
        warn_if_too_few(fake.n if real.n is None else min(real.n, fake.n), len(self.shift))
        moments = (each.cpu() for each in (real.mean, real.cov, fake.mean, fake.cov))
        return torch.tensor(frechet_distance(*moments), dtype=torch.float64)

    def stats(self, *, real: bool) -> FeatureStats:
        """A copy of one side's statistics of this process, to save or to merge."""
        stats = self._stats("real" if real else "fake")
        return FeatureStats(stats.shift, stats.total.clone(), stats.outer.clone(), stats.n)

    def _stats(self, side: str) -> FeatureStats:
        n, total, outer = (cast(Tensor, getattr(self, f"{side}_{name}")) for name in ("n", "total", "outer"))
        return FeatureStats(self.shift.to(total), total, outer, int(n))

    def set_dtype(self, dst_type: str | torch.dtype) -> FrechetDistance:
        """The sums stay float64: `.half()` and the like do nothing."""
        del dst_type
        return self


class FeatureSets(Metric):
    """Base of metrics that need every feature: both sides are kept, and gathered from all ranks."""

    is_differentiable = False
    full_state_update = False
    real: list[Tensor]
    fake: list[Tensor]

    def __init__(self, extractor: Extractor | None = None) -> None:
        super().__init__()
        self.extractor = extractor
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")

    def update(self, images: ImagesOrPictures, *, real: bool) -> None:
        """Take in a batch of images, or of features when there is no extractor."""
        (self.real if real else self.fake).append(_features(self.extractor, images).detach())

    def sets(self) -> tuple[Tensor, Tensor]:
        """All real and all generated features."""
        return dim_zero_cat(self.real), dim_zero_cat(self.fake)


class KernelDistance(FeatureSets):
    """Unbiased kernel distance (KID) of real and generated images, in the features of `extractor`.

    Over all pairs by default; with `num_subsets=100` the mean over random subsets of `subset_size`, as clean-fid and torch-fidelity
    publish it. Not scaled: tables often show it times 1,000.
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
        """The distance, a float64 scalar."""
        if self.subsets["num_subsets"]:
            value = kernel_distance_of_subsets(*self.sets(), **self.subsets, **self.kernel).mean
        else:
            value = kernel_distance(*self.sets(), **self.kernel)
        return torch.tensor(value, dtype=torch.float64)


class PrecisionRecall(FeatureSets):
    """Precision, recall, density and coverage of generated images; see `precision_recall_density_coverage`."""

    higher_is_better = True

    def __init__(
        self, extractor: Extractor | None = None, *, k: int = 5, by_matmul: bool | None = None
    ) -> None:
        super().__init__(extractor)
        self.k, self.by_matmul = k, by_matmul

    def compute(self) -> PRDC:
        """The four measures."""
        return precision_recall_density_coverage(*self.sets(), k=self.k, by_matmul=self.by_matmul)


class CMMD(FeatureSets):
    """CMMD of real and generated images; see `cmmd`. The extractor is `CMMDFeatures`."""

    higher_is_better = False

    def compute(self) -> Tensor:
        """The distance, a float64 scalar."""
        return torch.tensor(cmmd(*self.sets()), dtype=torch.float64)


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


def _features(extractor: Extractor | None, images: ImagesOrPictures) -> Tensor:
    """What the extractor makes of images; without one, they are features already."""
    return cast(Tensor, images) if extractor is None else extractor(cast(Tensor, images))


def _num_features(extractor: Extractor | None, given: int | None, reference: ReferenceStats | None) -> int:
    """The dimension asked for, or what a feature network or the reference says."""
    if given is not None:
        return given
    if isinstance(extractor, FeatureNetwork):
        return extractor.num_features
    if reference is not None:
        return len(reference.mean)
    raise ValueError("FrechetDistance needs num_features=... unless the extractor is a FeatureNetwork")


def _check_reference(reference: ReferenceStats, extractor: Extractor | None, num_features: int) -> None:
    if isinstance(extractor, FeatureNetwork):
        reference.require(extractor.protocol())
    if len(reference.mean) != num_features:
        raise UserError(
            f"the reference has {len(reference.mean)} features, the feature network {num_features}: take the "
            "reference of this network"
        )


def clip_score(image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
    """100 times the cosine of each image with its caption (B,), https://arxiv.org/abs/2104.08718 without the clamp at zero.

    >>> clip_score(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([60.0000])
    """
    return 100 * torch.cosine_similarity(image_embeddings, text_embeddings, dim=1)
