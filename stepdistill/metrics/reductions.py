"""From columns to numbers: means with their standard errors, and distances to the real side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from stepdistill.errors import UserError
from stepdistill.metrics.scoring import Columns
from stepdistill.metrics.stats import (
    FeatureStats,
    frechet_distance,
    frechet_distance_of_features,
    kernel_distance,
)

JACKKNIFE_GROUPS = 10


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

    return {name: Reduced(Estimate(distance(features), jackknife(distance, features)))}


def kernel(columns: Columns, name: str, real: RealSide | None) -> dict[str, Reduced]:
    """Unbiased kernel distance over all pairs; no standard error."""
    others = required_features(real, name)
    return {name: Reduced(Estimate(kernel_distance(columns.values["features"], others)))}


def jackknife(statistic: Callable[[Tensor], float], rows: Tensor) -> float | None:
    """Standard error of a statistic of rows, by leaving out each of ten interleaved groups; None for fewer than 20 rows.

    >>> values = torch.arange(40.0); error = jackknife(lambda kept: float(kept.mean()), values)
    >>> round(error, 3), round(float(values.std() / 40**0.5), 3)
    (0.479, 1.848)
    """
    groups = torch.arange(len(rows)) % JACKKNIFE_GROUPS
    if len(rows) < 2 * JACKKNIFE_GROUPS:
        return None
    left = torch.tensor([statistic(rows[groups != group]) for group in range(JACKKNIFE_GROUPS)])
    factor = (JACKKNIFE_GROUPS - 1) / JACKKNIFE_GROUPS
    return float((factor * (left.double() - left.double().mean()).square().sum()).sqrt())


def required(real: RealSide | None, name: str) -> RealSide:
    """The real side.

    Raises:
        UserError: there is none.
    """
    if real is None:
        raise UserError(f"the metric {name} compares with real pictures: give --reference STATS.npz or FOLDER")
    return real


def required_features(real: RealSide | None, name: str) -> Tensor:
    """Features of the real side.

    Raises:
        UserError: only statistics are known.
    """
    features = required(real, name).features()
    if features is None:
        raise UserError(f"the metric {name} needs the real pictures, not statistics of them: give their folder as --reference")
    return features
