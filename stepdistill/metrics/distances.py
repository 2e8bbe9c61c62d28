"""Distances between two sets of features, in float64: Frechet, kernel (KID), CMMD, precision and recall.

- Frechet distance (https://arxiv.org/abs/1706.08500, eq. 6): `|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)`.
- Kernel distance (https://arxiv.org/abs/1801.01401): unbiased MMD^2, Lemma 6 of
  https://jmlr.org/papers/v13/gretton12a.html.
- CMMD (https://arxiv.org/abs/2401.09603): biased MMD^2 under a Gaussian kernel.
- Precision and recall (https://arxiv.org/abs/1904.06991), density and coverage (https://arxiv.org/abs/2002.09797).
"""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from stepdistill.metrics.references import FeatureStats

Method = Literal["auto", "cholesky", "eigh", "svd"]

# Multiplications of one distance matrix above which PRDC uses matrix products: 7,000 x 7,000 samples of 2,048
# features, about a quarter of an hour on one core without them.
MATMUL_THRESHOLD = 10**11


def frechet_distance(
    mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike, *, method: Method = "auto"
) -> float:
    """Frechet distance between two Gaussians, given as tensors or arrays.

    With `S1 = B B^T`, `tr (S1 S2)^(1/2)` is the sum of the square roots of the eigenvalues of `B^T S2 B`. B is the Cholesky
    factor (`cholesky`, S1 positive definite) or the symmetric root (`eigh`, any S1). `svd` takes the nuclear norm of
    `B1^T B2` instead: twice as slow, but nothing is squared. `auto` tries them in this order.

    The value is not clamped: equal Gaussians may give -1e-12.

    >>> frechet_distance([0.0, 0.0], [[1.0, 0.0], [0.0, 4.0]], [3.0, 0.0], [[4.0, 0.0], [0.0, 4.0]])
    10.0
    """
    m1, m2 = (torch.atleast_1d(torch.as_tensor(m).to(torch.float64)) for m in (mean1, mean2))
    s1, s2 = (torch.atleast_2d(torch.as_tensor(s).to(torch.float64)) for s in (cov1, cov2))
    if m1.shape != m2.shape or s1.shape != s2.shape or s1.shape != (len(m1), len(m1)):
        raise ValueError(
            f"shapes do not match: means {m1.shape} and {m2.shape}, covariances {s1.shape} and {s2.shape}"
        )
    squares = (m1 - m2).square().sum() + s1.trace() + s2.trace()
    if not torch.isfinite(squares):
        raise ValueError("means or covariances are not finite: look for NaN or infinite features")
    return float(squares - 2 * _trace_of_root(s1, s2, method))


def _trace_of_root(s1: Tensor, s2: Tensor, method: Method) -> Tensor:
    """`tr (S1 S2)^(1/2)`."""
    if method == "svd":
        return torch.linalg.svdvals(_root(s1).T @ _root(s2)).sum()
    factor, info = torch.linalg.cholesky_ex(s1)
    is_definite = int(info) == 0
    if method == "cholesky" and not is_definite:
        raise ValueError("the first covariance is not positive definite: use method='eigh', or more samples")
    if method == "eigh" or not is_definite:
        root = _root(s1)
        product = root.T @ s2 @ root
    else:
        product = _triangular_congruence(factor, s2)
    try:
        eigenvalues = torch.linalg.eigvalsh(product)  # reads only the lower triangle
    except torch.linalg.LinAlgError:  # did not converge
        return _trace_of_root(s1, s2, "svd")
    return eigenvalues.clamp_min(0).sqrt().sum()


def _triangular_congruence(factor: Tensor, s: Tensor, num_blocks: int = 8) -> Tensor:
    """Lower triangle of `L^T S L` for lower triangular L and symmetric S; zero above the diagonal blocks.

    Blocks skip the zeros of L and the upper half of the result: a third of the work of two dense products.
    """
    product = torch.zeros_like(s)
    edges = torch.linspace(0, len(s), min(num_blocks, len(s)) + 1).round().long().tolist()
    for left, right in pairwise(edges):
        columns = s[left:, left:] @ factor[left:, left:right]
        for top, bottom in pairwise(edges[edges.index(left) :]):
            product[top:bottom, left:right] = factor[top:, top:bottom].T @ columns[top - left :]
    return product


def _root(s: Tensor) -> Tensor:
    """`B` with `B B^T = S`, for positive semi-definite S."""
    eigenvalues, vectors = torch.linalg.eigh(s)
    return vectors * eigenvalues.clamp_min(0).sqrt()


def frechet_distance_of_features(features1: Tensor, features2: Tensor) -> float:
    """Frechet distance between two sets of features (n, d), (m, d).

    With n <= d the covariances are singular; the trace is then the nuclear norm of the centred, scaled `X Y^T`, without
    forming a covariance, and a warning says that the distance is biased.
    """
    x, y = features1.to(torch.float64), features2.to(torch.float64)
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a Frechet distance needs two samples a side, got {len(x)} and {len(y)}")
    if min(len(x), len(y)) > x.shape[1]:
        first, second = FeatureStats.of(x), FeatureStats.of(y)
        return frechet_distance(first.mean, first.cov, second.mean, second.cov)
    warn_if_too_few(min(len(x), len(y)), x.shape[1])
    # S1 = A^T A with A the centred features over sqrt(n - 1): tr (S1 S2)^(1/2) = |A1 A2^T|_*
    x_centred = (x - x.mean(0)) / (len(x) - 1) ** 0.5
    y_centred = (y - y.mean(0)) / (len(y) - 1) ** 0.5
    cross = torch.linalg.matrix_norm(x_centred @ y_centred.T, ord="nuc")
    squares = x_centred.square().sum() + y_centred.square().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + squares - 2 * cross)


def warn_if_too_few(n: int, d: int) -> None:
    """Warn that a Frechet distance of `n` samples in `d` dimensions is biased if n <= d."""
    if n <= d:
        warnings.warn(f"Frechet distance from {n} samples of {d} features is biased: use more samples", stacklevel=3)


def kernel_distance(
    features1: Tensor,
    features2: Tensor,
    *,
    degree: int = 3,
    gamma: float | None = None,
    coef: float = 1.0,
    block: int = 4096,
) -> float:
    """Unbiased MMD^2 under the kernel `(gamma x.y + coef)^degree`, over all pairs, so without subset noise.

    `gamma` defaults to 1/d, the kernel of KID. The value is not scaled; tables often show it times 1000.

    >>> x = torch.tensor([[1.0], [-1.0]]); kernel_distance(x, x + 2.0, degree=1)
    2.0
    """
    x, y = features1.to(torch.float64), features2.to(torch.float64)
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"a kernel distance needs two samples a side, got {n} and {m}")
    gamma = 1.0 / x.shape[1] if gamma is None else gamma

    def kernel_sum(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([((gamma * rows @ b.T + coef) ** degree).sum() for rows in a.split(block)]).sum()

    def diagonal_sum(a: Tensor) -> Tensor:
        return ((gamma * a.square().sum(1) + coef) ** degree).sum()

    # Lemma 6: sum_{i != j} k(x_i, x_j) / n(n-1) + sum_{i != j} k(y_i, y_j) / m(m-1) - 2 sum_{i, j} k(x_i, y_j) / nm
    within_x = (kernel_sum(x, x) - diagonal_sum(x)) / (n * (n - 1))
    within_y = (kernel_sum(y, y) - diagonal_sum(y)) / (m * (m - 1))
    return float(within_x + within_y - 2 * kernel_sum(x, y) / (n * m))


class SubsetEstimate(NamedTuple):
    """Mean and standard deviation over random subsets."""

    mean: float
    std: float


def kernel_distance_of_subsets(
    features1: Tensor,
    features2: Tensor,
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
    **kernel: Any,
) -> SubsetEstimate:
    """KID as published by clean-fid and torch-fidelity: `kernel_distance` averaged over 100 random subsets of 1,000.

    The expectation equals that of the distance over all pairs; the draw adds noise, so quote which of the two it is. The
    smaller set limits the subset size. `kernel` holds options of `kernel_distance`.

    >>> x = torch.tensor([[1.0], [-1.0]]); kernel_distance_of_subsets(x, x + 2.0, num_subsets=3, degree=1)
    SubsetEstimate(mean=2.0, std=0.0)
    """
    size = min(len(features1), len(features2), subset_size)
    generator = torch.Generator().manual_seed(seed)

    def subset(features: Tensor) -> Tensor:
        chosen = torch.randperm(len(features), generator=generator)[:size]
        return features[chosen.to(features.device)]

    pairs = ((subset(features1), subset(features2)) for _ in range(num_subsets))
    values = torch.tensor([kernel_distance(*pair, **kernel) for pair in pairs], dtype=torch.float64)
    return SubsetEstimate(float(values.mean()), float(values.std(correction=0)))


def gaussian_kernel_distance(features1: Tensor, features2: Tensor, *, sigma: float = 10.0, block: int = 4096) -> float:
    """Biased MMD^2 under the kernel `exp(-|x - y|^2 / (2 sigma^2))`, over all pairs: never negative, zero for equal sets.

    >>> x = torch.zeros(2, 1); y = torch.full((3, 1), 2.0)
    >>> round(gaussian_kernel_distance(x, y, sigma=2.0), 12)  # 2 - 2 exp(-1/2)
    0.786938680575
    """
    x, y = features1.to(torch.float64), features2.to(torch.float64)
    if min(len(x), len(y)) == 0:
        raise ValueError(f"a kernel distance needs one sample a side, got {len(x)} and {len(y)}")

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        total = a.new_zeros(())
        for rows in a.split(block):
            squares = rows.square().sum(1)[:, None] + b.square().sum(1) - 2 * rows @ b.T
            total = total + (-squares.clamp_min(0) / (2 * sigma**2)).exp().sum()
        return total / (len(a) * len(b))

    return float(mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))


def cmmd(embeddings1: Tensor, embeddings2: Tensor, *, sigma: float = 10.0, block: int = 4096) -> float:
    """CMMD: 1,000 times `gaussian_kernel_distance` of CLIP embeddings, which are normalised here.

    The published code runs in float32, where the last digit of the scaled value is noise.
    """
    unit1, unit2 = (F.normalize(each.to(torch.float64), dim=1) for each in (embeddings1, embeddings2))
    return 1000 * gaussian_kernel_distance(unit1, unit2, sigma=sigma, block=block)


class PRDC(NamedTuple):
    """Fidelity (precision, density) and variety (recall, coverage). Equal distributions give about 1; density may exceed it."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall_density_coverage(
    real: Tensor, fake: Tensor, *, k: int = 5, block: int = 1024, by_matmul: bool | None = None
) -> PRDC:
    """Compare two sets through balls that reach from each sample to its k-th nearest neighbour in its own set.

    Args:
        real: features (n, d).
        fake: features (m, d).
        k: the neighbour, not counting the sample itself. Most published precision and recall use 3, all four together 5.
        block: rows of the distance matrix held at once.
        by_matmul: compute distances by matrix products: much faster, but ties break by rounding. None decides by
            `MATMUL_THRESHOLD`.

    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> precision_recall_density_coverage(x, x, k=1)
    PRDC(precision=1.0, recall=1.0, density=1.0, coverage=1.0)
    """
    x, y = real.to(torch.float64), fake.to(torch.float64)
    if k < 1 or min(len(x), len(y)) <= k:
        raise ValueError(f"k={k} needs more than k samples a side, got {len(x)} and {len(y)}")
    if by_matmul is None:
        by_matmul = max(len(x), len(y)) ** 2 * x.shape[1] > MATMUL_THRESHOLD
    mode = "use_mm_for_euclid_dist" if by_matmul else "donot_use_mm_for_euclid_dist"

    def radii(a: Tensor) -> Tensor:
        # k + 1: the nearest neighbour in the own set is the sample itself, at distance zero.
        distances = (torch.cdist(rows, a, compute_mode=mode) for rows in a.split(block))
        return torch.cat([each.kthvalue(k + 1, dim=1).values for each in distances])

    radius_x, radius_y = radii(x), radii(y)
    num_balls = torch.zeros(len(y), dtype=torch.long, device=x.device)  # real balls around each fake sample
    recalled, covered = [], []
    for part, radius in zip(x.split(block), radius_x.split(block), strict=True):
        distances = torch.cdist(part, y, compute_mode=mode)
        num_balls += (distances < radius[:, None]).sum(0)
        recalled.append((distances < radius_y).any(1))
        covered.append(distances.min(1).values < radius)
    return PRDC(
        precision=float((num_balls > 0).double().mean()),  # fake samples inside a real ball
        recall=float(torch.cat(recalled).double().mean()),  # real samples inside a fake ball
        density=float(num_balls.double().mean() / k),  # real balls per fake sample, over k
        coverage=float(torch.cat(covered).double().mean()),  # real balls that hold a fake sample
    )
