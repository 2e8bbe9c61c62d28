"""From columns to numbers: means with their standard errors, and distances to the real side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from stepdistill.errors import UserError
from stepdistill.evaluation.scoring import Columns
from stepdistill.metrics.distances import (
    cmmd,
    frechet_distance,
    frechet_distance_of_features,
    kernel_distance,
    kernel_distance_of_subsets,
    precision_recall_density_coverage,
)
from stepdistill.metrics.references import FeatureStats

JACKKNIFE_GROUPS = 10
ALL_PAIRS = 10_000


class RealSide(Protocol):
    """What generated pictures are compared with."""

    @property
    def digest(self) -> str:
        """Address of the real pictures or statistics."""
        ...

    def features(self) -> Tensor | None:
        """Features (N, d), or None where only statistics are known."""
        ...

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d), float64."""
        ...


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    standard_error: float | None = None


@dataclass(frozen=True)
class Reduced:
    """A number of a metric, and of each category where prompts have one."""

    whole: Estimate
    by_category: dict[str, tuple[Estimate, int]] = field(default_factory=dict)


Reduce = Callable[[Columns, str, RealSide | None], dict[str, Reduced]]
"""Columns, the metric's name and the real side to numbers by name."""


def mean(columns: Columns, name: str, real: RealSide | None) -> dict[str, Reduced]:
    """Mean of the column of that name (or `score`): over the pictures of a prompt, then over prompts."""
    del real
    values = columns.values[name if name in columns.values else "score"]
    parts: dict[str, tuple[Estimate, int]] = {}
    for category in sorted({each for each in columns.categories if each is not None}):
        rows = torch.tensor([each == category for each in columns.categories])
        parts[category] = (mean_estimate(values[rows], columns.prompt_index[rows]), int(rows.sum()))
    return {name: Reduced(mean_estimate(values, columns.prompt_index), parts)}


def mean_estimate(values: Tensor, groups: Tensor) -> Estimate:
    """Mean over groups of the means within, with the standard error over groups: pictures of one prompt are not independent.

    >>> mean_estimate(torch.tensor([1.0, 3.0, 6.0]), torch.tensor([0, 0, 1]))
    Estimate(value=4.0, standard_error=2.0)
    """
    _, place = groups.unique(return_inverse=True)
    count = int(place.max()) + 1
    totals = torch.zeros(count, dtype=torch.float64).index_add(0, place, values.double())
    means = totals / torch.bincount(place, minlength=count)
    error = float(means.std() / count**0.5) if count > 1 else None
    return Estimate(float(means.mean()), error)


def frechet(columns: Columns, name: str, real: RealSide | None) -> dict[str, Reduced]:
    """Frechet distance of the features to the real side, with a jackknife's standard error."""
    side = required(real, name)
    features, others = columns.values["features"], side.features()
    if others is not None:

        def distance(kept: Tensor) -> float:
            return frechet_distance_of_features(kept, others)

    else:
        mean_real, cov_real = side.moments()

        def distance(kept: Tensor) -> float:
            stats = FeatureStats.of(kept)
            return frechet_distance(stats.mean, stats.cov, mean_real, cov_real)

    return {name: Reduced(Estimate(distance(features), jackknife(distance, features, columns.prompt_index)))}


def kernel(columns: Columns, name: str, real: RealSide | None) -> dict[str, Reduced]:
    """Kernel distance: over all pairs up to `ALL_PAIRS` pictures, else over 100 subsets of 1,000 with their standard error."""
    fake, others = columns.values["features"], required_features(real, name)
    if max(len(fake), len(others)) <= ALL_PAIRS:
        return {name: Reduced(Estimate(kernel_distance(fake, others)))}
    subsets = kernel_distance_of_subsets(fake, others, num_subsets=100, subset_size=1000)
    return {f"{name}_subsets": Reduced(Estimate(subsets.mean, subsets.std / 10))}


def neighbours(columns: Columns, name: str, real: RealSide | None) -> dict[str, Reduced]:
    """Precision, recall, density and coverage of the fifth neighbours; no standard errors."""
    found = precision_recall_density_coverage(required_features(real, name), columns.values["features"], k=5)
    return {each: Reduced(Estimate(float(value))) for each, value in found._asdict().items()}


def clip_distance(columns: Columns, name: str, real: RealSide | None) -> dict[str, Reduced]:
    """CMMD, times 1,000; no standard error."""
    return {name: Reduced(Estimate(cmmd(columns.values["features"], required_features(real, name))))}


def jackknife(statistic: Callable[[Tensor], float], rows: Tensor, groups: Tensor) -> float | None:
    """Standard error of a statistic of rows, by leaving out each tenth of the prompts in turn; None for fewer than 20 rows.

    >>> values = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    >>> error = jackknife(lambda kept: float(kept.mean()), values, torch.arange(4000))
    >>> 0.5 < error / (4000**-0.5) < 1.5
    True
    """
    if len(rows) < 2 * JACKKNIFE_GROUPS:
        return None
    folds = groups % JACKKNIFE_GROUPS
    left = torch.tensor([statistic(rows[folds != fold]) for fold in range(JACKKNIFE_GROUPS)]).double()
    factor = (JACKKNIFE_GROUPS - 1) / JACKKNIFE_GROUPS
    return float((factor * (left - left.mean()).square().sum()).sqrt())


def required(real: RealSide | None, name: str) -> RealSide:
    """The real side.

    Raises:
        UserError: there is none.
    """
    if real is None:
        raise UserError(
            f"the metric {name} compares with real pictures: give --reference STATS.npz or FOLDER"
        )
    return real


def required_features(real: RealSide | None, name: str) -> Tensor:
    """Features of the real side.

    Raises:
        UserError: only statistics are known.
    """
    features = required(real, name).features()
    if features is None:
        raise UserError(
            f"the metric {name} needs the real pictures, not statistics of them: give their folder as --reference"
        )
    return features
