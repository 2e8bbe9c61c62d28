"""Kernel distances against closed forms and dense sums."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from stepdistill.metrics import cmmd, kernel_distance
from stepdistill.metrics.kernels import gaussian_kernel_distance, kernel_distance_of_subsets


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.2 * seed


def test_subsets_of_everything_are_the_whole() -> None:
    x, y = normal(30, 5, 0), normal(30, 5, 1)
    whole = kernel_distance_of_subsets(x, y, num_subsets=4, subset_size=30)
    assert math.isclose(whole.mean, kernel_distance(x, y), rel_tol=1e-12)
    assert whole.std < 1e-12


def test_subsets_scatter_around_the_whole() -> None:
    x, y = normal(400, 5, 0), normal(300, 5, 1)
    estimate = kernel_distance_of_subsets(x, y, num_subsets=60, subset_size=80)
    assert estimate.std > 0
    assert abs(estimate.mean - kernel_distance(x, y)) < 4 * estimate.std / 60**0.5
    assert estimate == kernel_distance_of_subsets(x, y, num_subsets=60, subset_size=80)
    assert estimate != kernel_distance_of_subsets(x, y, num_subsets=60, subset_size=80, seed=1)


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_gaussian_kernel_is_the_dense_formula(block: int) -> None:
    x, y = normal(23, 4, 0), normal(19, 4, 1)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (-torch.cdist(a, b).square() / (2 * 1.5**2)).exp().mean()

    dense = float(kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    assert math.isclose(gaussian_kernel_distance(x, y, sigma=1.5, block=block), dense, rel_tol=1e-10)


def test_gaussian_kernel_of_gaussians_has_a_closed_form() -> None:
    """E k(X, Y) = (s^2 / (s^2 + v))^(d/2) exp(-|m|^2 / (2 (s^2 + v))), v the variance of X - Y a dimension."""
    d, sigma, shift = 2, 1.0, 1.0
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1500, d, generator=generator, dtype=torch.float64) for _ in range(2))
    spread = sigma**2 + 2
    within = (sigma**2 / spread) ** (d / 2)
    expected = 2 * within * (1 - math.exp(-(shift**2) * d / (2 * spread)))
    assert math.isclose(gaussian_kernel_distance(x, y + shift, sigma=sigma), expected, rel_tol=0.08)


def test_equal_sets_are_at_zero() -> None:
    x = normal(20, 3, 0)
    assert gaussian_kernel_distance(x, x) == 0.0
    assert gaussian_kernel_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-15)
    assert gaussian_kernel_distance(x, x + 5) > 0
    with pytest.raises(ValueError, match="a sample a side"):
        gaussian_kernel_distance(x, x[:0])


def test_cmmd_is_the_published_formula() -> None:
    """gamma = 1 / (2 * 10^2), times 1,000, on unit embeddings."""
    x, y = normal(40, 6, 0), normal(30, 6, 1)
    a, b = F.normalize(x, dim=1), F.normalize(y, dim=1)

    def kernel(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return ((2 * p @ q.T - 2) / 200).exp().mean()

    expected = float(1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)))
    assert math.isclose(cmmd(x, y), expected, rel_tol=1e-9)
    assert math.isclose(cmmd(3 * x, y), expected, rel_tol=1e-9)
