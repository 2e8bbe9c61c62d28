"""Distances against closed forms and dense formulas."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from stepdistill.metrics import FeatureStats, frechet_distance, kernel_distance
from stepdistill.metrics.distances import frechet_distance_of_features


def features(n: int, d: int, seed: int = 0, offset: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + offset


def test_commuting_covariances_have_a_closed_form() -> None:
    d = 24
    basis, _ = torch.linalg.qr(features(d, d))
    a, b = torch.linspace(0.01, 3, d, dtype=torch.float64), torch.linspace(5, 0.2, d, dtype=torch.float64)
    m1, m2 = torch.zeros(d, dtype=torch.float64), torch.linspace(-1, 1, d, dtype=torch.float64)
    expected = (a.sqrt() - b.sqrt()).square().sum() + m2.square().sum()
    ours = frechet_distance(m1, basis * a @ basis.T, m2, basis * b @ basis.T)
    assert math.isclose(ours, float(expected), rel_tol=1e-12)


def test_frechet_distance_is_symmetric_and_zero_on_itself() -> None:
    x, y = FeatureStats.of(features(200, 12)), FeatureStats.of(features(150, 12, seed=1, offset=0.3))
    forth = frechet_distance(x.mean, x.cov, y.mean, y.cov)
    assert math.isclose(forth, frechet_distance(y.mean, y.cov, x.mean, x.cov), rel_tol=1e-10)
    assert abs(frechet_distance(x.mean, x.cov, x.mean, x.cov)) < 1e-9
    assert isinstance(forth, float)


def test_arrays_and_single_precision_are_taken() -> None:
    x, y = FeatureStats.of(features(200, 6)), FeatureStats.of(features(200, 6, seed=1))
    exact = frechet_distance(x.mean, x.cov, y.mean, y.cov)
    arrays = frechet_distance(x.mean.numpy(), x.cov.numpy(), y.mean.numpy(), y.cov.numpy())
    single = frechet_distance(x.mean.float(), x.cov.float(), y.mean.float(), y.cov.float())
    assert exact == arrays
    assert math.isclose(exact, single, rel_tol=1e-4)


def test_singular_covariances_agree_with_the_nuclear_norm() -> None:
    x, y = features(20, 48), features(30, 48, seed=1, offset=0.2)
    stats = [FeatureStats.of(each) for each in (x, y)]
    assert int(torch.linalg.cholesky_ex(stats[0].cov - 1e-9 * torch.eye(48)).info) != 0
    by_eigh = frechet_distance(stats[0].mean, stats[0].cov, stats[1].mean, stats[1].cov)
    with pytest.warns(UserWarning, match="biased"):
        by_svd = frechet_distance_of_features(x, y)
    assert math.isclose(by_eigh, by_svd, rel_tol=1e-6)


def test_all_methods_agree() -> None:
    x, y = FeatureStats.of(features(200, 24)), FeatureStats.of(features(150, 24, seed=1, offset=0.3))
    values = [
        frechet_distance(x.mean, x.cov, y.mean, y.cov, method=method)
        for method in ("cholesky", "eigh", "svd", "auto")
    ]
    assert max(values) - min(values) < 1e-11 * values[0]
    assert values[0] == values[3]


@pytest.mark.parametrize("d", [1, 2, 7, 8, 19, 64])
def test_blocks_of_the_triangular_product_fit_together(d: int) -> None:
    """Of Gaussians with commuting covariances in a rotated basis, whatever the number of dimensions and blocks."""
    basis, _ = torch.linalg.qr(features(d, d))
    a, b = torch.linspace(1, 3, d, dtype=torch.float64), torch.linspace(5, 2, d, dtype=torch.float64)
    zero = torch.zeros(d, dtype=torch.float64)
    value = frechet_distance(zero, basis * a @ basis.T, zero, basis * b @ basis.T, method="cholesky")
    assert math.isclose(value, float((a.sqrt() - b.sqrt()).square().sum()), rel_tol=1e-11)


def test_singular_covariances_are_left_to_the_other_methods() -> None:
    """Of diagonal covariances with zeros: sum (sqrt a - sqrt b)^2."""
    a, b = torch.tensor([4.0, 0.0, 1.0]), torch.tensor([0.0, 0.0, 9.0])
    zero = torch.zeros(3)
    for method in ("auto", "eigh", "svd"):
        value = frechet_distance(zero, a.diag(), zero, b.diag(), method=method)
        assert math.isclose(value, 8.0, rel_tol=1e-12)
    with pytest.raises(ValueError, match="not positive definite"):
        frechet_distance(zero, a.diag(), zero, b.diag(), method="cholesky")


def test_a_failed_eigenvalue_solver_falls_back_on_singular_values(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = FeatureStats.of(features(60, 6)), FeatureStats.of(features(50, 6, seed=1))
    expected = frechet_distance(x.mean, x.cov, y.mean, y.cov)

    def fails(matrix: torch.Tensor) -> torch.Tensor:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)
    assert math.isclose(frechet_distance(x.mean, x.cov, y.mean, y.cov), expected, rel_tol=1e-11)


def test_features_that_are_not_finite_are_named() -> None:
    mean, cov = torch.zeros(2), torch.eye(2)
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(mean, cov, torch.tensor([0.0, math.nan]), cov)


def test_one_process_reduces_to_itself() -> None:
    stats = FeatureStats.of(features(20, 3))
    assert stats.all_reduce() is stats


def test_zero_covariance_leaves_the_means() -> None:
    zero = torch.zeros(3, 3)
    assert frechet_distance(torch.zeros(3), zero, torch.ones(3), zero) == 3.0


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_streaming_equals_batch(offset: float) -> None:
    x = features(101, 7, offset=offset)
    stats = FeatureStats.around(x[:3].mean(0))
    for part in x.split(13):
        stats.update(part)
    assert stats.n == 101
    assert torch.allclose(stats.mean, x.mean(0), rtol=1e-13)
    assert torch.allclose(stats.cov, torch.cov(x.T), rtol=1e-10)


def test_merge_is_associative_whatever_the_shifts() -> None:
    x = features(90, 5, offset=100.0)
    parts = [FeatureStats.of(part) for part in x.split([20, 30, 40])]
    left = parts[0].merge(parts[1]).merge(parts[2])
    right = parts[0].merge(parts[1].merge(parts[2]))
    for merged in (left, right):
        assert merged.n == 90
        assert torch.allclose(merged.mean, x.mean(0), rtol=1e-14)
        assert torch.allclose(merged.cov, torch.cov(x.T), rtol=1e-9)


def test_stats_survive_the_disk(tmp_path: Path) -> None:
    stats = FeatureStats.of(features(30, 4))
    stats.save(tmp_path / "stats.safetensors")
    loaded = FeatureStats.load(tmp_path / "stats.safetensors")
    assert (loaded.n, loaded.mean.tolist(), loaded.cov.tolist()) == (
        30,
        stats.mean.tolist(),
        stats.cov.tolist(),
    )


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_kernel_distance_is_the_dense_formula(block: int) -> None:
    x, y = features(31, 6), features(23, 6, seed=1)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / 6 + 1) ** 3

    within = [k[~torch.eye(len(k), dtype=torch.bool)].mean() for k in (kernel(x, x), kernel(y, y))]
    dense = sum(within) - 2 * kernel(x, y).mean()
    assert math.isclose(kernel_distance(x, y, block=block), float(dense), rel_tol=1e-12)


def test_kernel_distance_is_unbiased() -> None:
    pairs = [(features(40, 4, seed=0), features(40, 4, seed=0))]
    draws = torch.randn(200, 2, 40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.tensor([kernel_distance(a, b) for a, b in draws])
    assert abs(float(values.mean())) < 3 * float(values.std()) / 200**0.5
    assert (values < 0).any()
    assert pairs[0][0].equal(pairs[0][1])


def test_faults_are_named() -> None:
    with pytest.raises(ValueError, match="two samples"):
        kernel_distance(torch.zeros(1, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="two samples"):
        frechet_distance_of_features(torch.zeros(1, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="shapes"):
        frechet_distance(torch.zeros(2), torch.eye(2), torch.zeros(3), torch.eye(3))
