"""Variety of one set of features: the Vendi score and the mean cosine between its members."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
