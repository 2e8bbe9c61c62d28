"""Reduce columns to numbers: means with standard errors, and distances to a reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from stepdistill.errors import UserError
from stepdistill.evaluation.columns import Columns
from stepdistill.evaluation.document import Part
from stepdistill.evaluation.embedded.measures import background_imbalance
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


@dataclass(frozen=True)
class Reference:
    """Reference pictures or their statistics.

    Attributes:
        digest: hash of the pictures or statistics.
        mean: of the features (d,), float64.
        cov: of the features (d, d), float64.
        features: of all pictures (N, d); None if only statistics are known.
    """

    digest: str
    mean: Tensor
    cov: Tensor
    features: Tensor | None = None

    @classmethod
    def of(cls, digest: str, features: Tensor) -> Reference:
        """Reference pictures, by their features."""
        stats = FeatureStats.of(features)
        return cls(digest, stats.mean, stats.cov, features)


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    standard_error: float | None = None


@dataclass(frozen=True)
class Reduced:
    """A metric's number, and its number for each category of prompts."""

    whole: Estimate
    by_category: Mapping[str, Part] = field(default_factory=dict)


Reduce = Callable[[Columns, str, Reference | None], dict[str, Reduced]]
"""Columns, the metric's name and the reference to numbers by name."""


def mean(columns: Columns, name: str, reference: Reference | None) -> dict[str, Reduced]:
    """Mean of the column of that name (or `score`) over the pictures of each prompt, then over prompts."""
    del reference
    values = columns.values[name if name in columns.values else "score"]
    parts: dict[str, Part] = {}
    for category in sorted({each for each in columns.categories if each is not None}):
        rows = torch.tensor([each == category for each in columns.categories])
        found = mean_estimate(values[rows], columns.prompt_index[rows])
        parts[category] = Part(**found._asdict(), n=int(rows.sum()))
    return {name: Reduced(mean_estimate(values, columns.prompt_index), parts)}


def imbalance(columns: Columns, name: str, reference: Reference | None) -> dict[str, Reduced]:
    """Imbalance of the backgrounds; no number if every caption names its background."""
    del reference
    value = background_imbalance(columns.values["background"], columns.values["allowed_backgrounds"])
    return {} if value is None else {name: Reduced(Estimate(value))}


def mean_estimate(values: Tensor, groups: Tensor) -> Estimate:
    """Mean over groups of the means within, with the standard error over groups, as pictures of one prompt are dependent.

    >>> mean_estimate(torch.tensor([1.0, 3.0, 6.0]), torch.tensor([0, 0, 1]))
    Estimate(value=4.0, standard_error=2.0)
    """
    _, place = groups.unique(return_inverse=True)
    count = int(place.max()) + 1
    totals = torch.zeros(count, dtype=torch.float64).index_add(0, place, values.double())
    means = totals / torch.bincount(place, minlength=count)
    error = float(means.std() / count**0.5) if count > 1 else None
    return Estimate(float(means.mean()), error)


def frechet(columns: Columns, name: str, reference: Reference | None) -> dict[str, Reduced]:
    """Frechet distance of the features to the reference, with the jackknife's standard error."""
    known, features = required(reference, name), columns.values["features"]

    def distance(kept: Tensor) -> float:
        if known.features is not None:
            return frechet_distance_of_features(kept, known.features)
        stats = FeatureStats.of(kept)
        return frechet_distance(stats.mean, stats.cov, known.mean, known.cov)

    return {name: Reduced(Estimate(distance(features), jackknife(distance, features, columns.prompt_index)))}


def kernel(columns: Columns, name: str, reference: Reference | None) -> dict[str, Reduced]:
    """Kernel distance: over all pairs up to `ALL_PAIRS` pictures, beyond that over 100 subsets of 1,000 with their standard error."""
    fake, others = columns.values["features"], required_features(reference, name)
    if max(len(fake), len(others)) <= ALL_PAIRS:
        return {name: Reduced(Estimate(kernel_distance(fake, others)))}
    subsets = kernel_distance_of_subsets(fake, others, num_subsets=100, subset_size=1000)
    return {f"{name}_subsets": Reduced(Estimate(subsets.mean, subsets.std / 10))}


def neighbours(columns: Columns, name: str, reference: Reference | None) -> dict[str, Reduced]:
    """Precision, recall, density and coverage with the fifth neighbour; no standard errors."""
    found = precision_recall_density_coverage(required_features(reference, name), columns.values["features"], k=5)
    return {each: Reduced(Estimate(float(value))) for each, value in found._asdict().items()}


def clip_distance(columns: Columns, name: str, reference: Reference | None) -> dict[str, Reduced]:
    """CMMD, times 1,000; no standard error."""
    return {name: Reduced(Estimate(cmmd(columns.values["features"], required_features(reference, name))))}


def jackknife(statistic: Callable[[Tensor], float], rows: Tensor, groups: Tensor) -> float | None:
    """Standard error of a statistic, leaving out each tenth of the prompts in turn; None for fewer than 20 rows.

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


def required(reference: Reference | None, name: str) -> Reference:
    """The reference.

    Raises:
        UserError: none was given.
    """
    if reference is None:
        raise UserError(f"the metric {name} needs a reference: give --reference STATS.npz or FOLDER")
    return reference


def required_features(reference: Reference | None, name: str) -> Tensor:
    """Features of the reference.

    Raises:
        UserError: only statistics are known.
    """
    features = required(reference, name).features
    if features is None:
        raise UserError(
            f"the metric {name} needs reference pictures, not statistics: give their folder with --reference"
        )
    return features
