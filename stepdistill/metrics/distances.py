"""Distances between sets of features: Frechet distance and kernel distance, in float64, streaming and mergeable.

The Frechet distance (https://arxiv.org/abs/1706.08500, eq. 6) is
`|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)`; the kernel distance is the unbiased MMD^2 of
https://arxiv.org/abs/1801.01401 (Lemma 6 of https://jmlr.org/papers/v13/gretton12a.html), over all pairs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from numpy.typing import ArrayLike
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass
class FeatureStats:
    """Count, sum and sum of outer products of features around a fixed shift, all in float64.

    Sums of the same shift add up exactly, so ranks are merged by one `all_reduce`. A shift near the mean keeps
    the digits that plain sums lose when features lie far from the origin.

    >>> stats = FeatureStats.around(torch.tensor([10.0, 0.0]))
    >>> stats.update(torch.tensor([[9.0, 0.0], [11.0, 2.0]]))
    >>> stats.mean, stats.cov
    (tensor([10.,  1.], dtype=torch.float64), tensor([[2., 2.],
            [2., 2.]], dtype=torch.float64))
    """

    shift: Tensor
    total: Tensor
    outer: Tensor
    n: int = 0

    @classmethod
    def around(cls, shift: Tensor) -> FeatureStats:
        """Empty statistics around `shift`, any vector near the features' mean (zeros are allowed)."""
        shift = shift.detach().to(torch.float64)
        return cls(shift, torch.zeros_like(shift), shift.new_zeros(len(shift), len(shift)))

    @classmethod
    def of(cls, features: Tensor) -> FeatureStats:
        """Statistics of one set of features, around its own mean."""
        stats = cls.around(features.to(torch.float64).mean(0))
        stats.update(features)
        return stats

    def update(self, features: Tensor) -> None:
        """Take in a batch of features (B, d)."""
        offsets = features.detach().to(self.shift) - self.shift
        self.n += len(offsets)
        self.total += offsets.sum(0)
        self.outer.addmm_(offsets.T, offsets)

    def merge(self, other: FeatureStats) -> FeatureStats:
        """Statistics of both sets together, around this one's shift; neither is changed."""
        move = other.shift - self.shift
        cross = torch.outer(other.total, move)
        moved = other.outer + cross + cross.T + other.n * torch.outer(move, move)
        total = self.total + other.total + other.n * move
        return FeatureStats(self.shift, total, self.outer + moved, self.n + other.n)

    def all_reduce(self) -> FeatureStats:
        """Statistics of all processes' features, the same on each; every process has to call it.

        The first process's shift is taken by all, so that one sum is exact; a process without features takes part.
        """
        if not dist.is_initialized():
            return self
        shift = self.shift.clone()
        dist.broadcast(shift, src=0)
        own = FeatureStats.around(shift).merge(self)
        packed = torch.cat([own.outer.flatten(), own.total, own.total.new_tensor([own.n])])
        dist.all_reduce(packed)
        d = len(shift)
        return FeatureStats(shift, packed[d * d : -1], packed[: d * d].view(d, d), int(packed[-1]))

    @property
    def mean(self) -> Tensor:
        """Mean of the features taken in."""
        return self.shift + self.total / self.n

    @property
    def cov(self) -> Tensor:
        """Unbiased covariance of the features taken in."""
        return (self.outer - torch.outer(self.total, self.total) / self.n) / (self.n - 1)

    def save(self, path: Path) -> None:
        """Write the statistics as a safetensors file."""
        tensors = {"shift": self.shift, "total": self.total, "outer": self.outer, "n": torch.tensor(self.n)}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)

    @classmethod
    def load(cls, path: Path) -> FeatureStats:
        """Read what `save` wrote."""
        tensors = load_file(path)
        return cls(tensors["shift"], tensors["total"], tensors["outer"], int(tensors["n"]))


Method = Literal["auto", "cholesky", "eigh", "svd"]


def frechet_distance(
    mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike, *, method: Method = "auto"
) -> float:
    """Frechet distance between two Gaussians; tensors or arrays, computed in float64.

    With `S1 = B B^T`, the trace of `(S1 S2)^(1/2)` is the sum of the roots of the eigenvalues of `B^T S2 B`, where B is the
    Cholesky factor (`cholesky`; S1 must be positive definite) or the symmetric root (`eigh`; any S1); or, with a root of
    each, the nuclear norm of `B1^T B2` (`svd`: twice as slow, and nothing is squared). `auto` takes the first that works.

    The value is not clamped: two equal Gaussians may give -1e-12.

    >>> frechet_distance([0.0, 0.0], [[1.0, 0.0], [0.0, 4.0]], [3.0, 0.0], [[4.0, 0.0], [0.0, 4.0]])
    10.0
    """
    m1, m2 = (torch.atleast_1d(torch.as_tensor(m).to(torch.float64)) for m in (mean1, mean2))
    s1, s2 = (torch.atleast_2d(torch.as_tensor(s).to(torch.float64)) for s in (cov1, cov2))
    if m1.shape != m2.shape or s1.shape != s2.shape or s1.shape != (len(m1), len(m1)):
        raise ValueError(
            f"shapes do not fit: means {m1.shape} and {m2.shape}, covariances {s1.shape} and {s2.shape}"
        )
    squares = (m1 - m2).square().sum() + s1.trace() + s2.trace()
    if not torch.isfinite(squares):
        raise ValueError("means or covariances are not finite: look for NaN or infinite features")
    return float(squares - 2 * _trace_of_root(s1, s2, method))


def _trace_of_root(s1: Tensor, s2: Tensor, method: Method) -> Tensor:
    """`tr (S1 S2)^(1/2)` of two covariances."""
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
        eigenvalues = torch.linalg.eigvalsh(product)  # reads the lower triangle alone
    except torch.linalg.LinAlgError:  # did not converge
        return _trace_of_root(s1, s2, "svd")
    return eigenvalues.clamp_min(0).sqrt().sum()


def _triangular_congruence(factor: Tensor, s: Tensor, num_blocks: int = 8) -> Tensor:
    """The lower triangle of `L^T S L` for lower triangular L and symmetric S; what is above the diagonal blocks is zero.

    In blocks that leave out the zeros of L and the upper half of the result: a third of the work of two dense products.
    """
    product = torch.zeros_like(s)
    edges = torch.linspace(0, len(s), min(num_blocks, len(s)) + 1).round().long().tolist()
    for left, right in pairwise(edges):
        columns = s[left:, left:] @ factor[left:, left:right]
        for top, bottom in pairwise(edges[edges.index(left) :]):
            product[top:bottom, left:right] = factor[top:, top:bottom].T @ columns[top - left :]
    return product


def _root(s: Tensor) -> Tensor:
    """`B` with `B B^T = S`, for any positive semi-definite S."""
    eigenvalues, vectors = torch.linalg.eigh(s)
    return vectors * eigenvalues.clamp_min(0).sqrt()


def frechet_distance_of_features(features1: Tensor, features2: Tensor) -> float:
    """Frechet distance between two sets of features (n, d), (m, d).

    With fewer samples than dimensions the covariances are singular, and the trace is taken as the nuclear norm of the
    centred `X Y^T`, which needs no covariance at all.
    """
    x, y = features1.to(torch.float64), features2.to(torch.float64)
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a Frechet distance needs two samples a side, got {len(x)} and {len(y)}")
    if min(len(x), len(y)) > x.shape[1]:
        first, second = FeatureStats.of(x), FeatureStats.of(y)
        return frechet_distance(first.mean, first.cov, second.mean, second.cov)
    warn_if_too_few(min(len(x), len(y)), x.shape[1])
    x_centred = (x - x.mean(0)) / (len(x) - 1) ** 0.5
    y_centred = (y - y.mean(0)) / (len(y) - 1) ** 0.5
    cross = torch.linalg.matrix_norm(x_centred @ y_centred.T, ord="nuc")
    squares = x_centred.square().sum() + y_centred.square().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + squares - 2 * cross)


def warn_if_too_few(n: int, d: int) -> None:
    """Say that a Frechet distance of `n` samples in `d` dimensions is biased, when n <= d."""
    if n <= d:
        warnings.warn(
            f"Frechet distance from {n} samples of {d} features is biased: take more samples", stacklevel=3
        )


def kernel_distance(
    features1: Tensor,
    features2: Tensor,
    *,
    degree: int = 3,
    gamma: float | None = None,
    coef: float = 1.0,
    block: int = 4096,
) -> float:
    """Unbiased MMD^2 under the kernel `(gamma x.y + coef)^degree`, over all pairs (no subsets, so no sampling noise).

    `gamma` is 1/d by default, the kernel of KID. The value is not scaled; tables often show it times 1000.

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

    within_x = (kernel_sum(x, x) - diagonal_sum(x)) / (n * (n - 1))
    within_y = (kernel_sum(y, y) - diagonal_sum(y)) / (m * (m - 1))
    return float(within_x + within_y - 2 * kernel_sum(x, y) / (n * m))
