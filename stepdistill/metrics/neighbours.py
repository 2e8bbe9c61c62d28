"""Precision, recall, density and coverage: how two sets of features cover one another, by nearest neighbours."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LARGE = 10**11
"""About 7,000 by 7,000 samples of 2,048 features."""


class PRDC(NamedTuple):
    """The four measures. Precision and density tell fidelity, recall and coverage variety; all are 1 in expectation or near it for equal laws but
    density, which may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall_density_coverage(
    real: Tensor, fake: Tensor, *, k: int = 5, block: int = 1024, by_matmul: bool | None = None
) -> PRDC:
    """Precision and recall of https://arxiv.org/abs/1904.06991, density and coverage of https://arxiv.org/abs/2002.09797.

    A ball around each sample reaches to its k-th nearest neighbour in its own set, itself left out; insides are strict. Published
    precision and recall mostly have k=3, all four together k=5.

    Args:
        real: features (n, d).
        fake: features (m, d).
        k: neighbour that sets the radius, below n and m.
        block: rows whose distances are held at once.
        by_matmul: form distances by matrix products: many times faster, but ties between equal distances break by rounding.
            None does so where the sets are large (`LARGE` products of coordinates), a quarter of an hour of one core otherwise.

    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> precision_recall_density_coverage(x, x, k=1)
    PRDC(precision=1.0, recall=1.0, density=1.0, coverage=1.0)
    """
    x, y = real.to(torch.float64), fake.to(torch.float64)
    if k < 1 or min(len(x), len(y)) <= k:
        raise ValueError(f"k={k} needs more than k samples a side, got {len(x)} and {len(y)}")
    if by_matmul is None:
        by_matmul = max(len(x), len(y)) ** 2 * x.shape[1] > LARGE
    mode = "use_mm_for_euclid_dist" if by_matmul else "donot_use_mm_for_euclid_dist"

    def radii(a: Tensor) -> Tensor:
        # The nearest of its own set is the sample itself, at distance zero.
        rows = [
            torch.cdist(part, a, compute_mode=mode).kthvalue(k + 1, dim=1).values for part in a.split(block)
        ]
        return torch.cat(rows)

    radius_x, radius_y = radii(x), radii(y)
    balls = torch.zeros(
        len(y), dtype=torch.long, device=x.device
    )  # balls of real samples around each fake one
    recalled, covered = [], []
    for part, radius in zip(x.split(block), radius_x.split(block), strict=True):
        distances = torch.cdist(part, y, compute_mode=mode)
        balls += (distances < radius[:, None]).sum(0)
        recalled.append((distances < radius_y).any(1))
        covered.append(distances.min(1).values < radius)
    return PRDC(
        precision=float((balls > 0).double().mean()),
        recall=float(torch.cat(recalled).double().mean()),
        density=float(balls.double().mean() / k),
        coverage=float(torch.cat(covered).double().mean()),
    )
