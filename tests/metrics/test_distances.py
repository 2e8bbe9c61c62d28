"""Distances against closed forms, dense formulas, hand-made sets and loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from stepdistill.metrics import (
    PRDC,
    FeatureStats,
    cmmd,
    distances,
    frechet_distance,
    kernel_distance,
    precision_recall_density_coverage,
)
from stepdistill.metrics.distances import (
    frechet_distance_of_features,
    gaussian_kernel_distance,
    kernel_distance_of_subsets,
)


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
        frechet_distance(x.mean, x.cov, y.mean, y.cov, method=method) for method in ("cholesky", "eigh", "svd", "auto")
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


def test_zero_covariance_leaves_the_means() -> None:
    zero = torch.zeros(3, 3)
    assert frechet_distance(torch.zeros(3), zero, torch.ones(3), zero) == 3.0


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
    with pytest.raises(ValueError, match="shapes do not match"):
        frechet_distance(torch.zeros(2), torch.eye(2), torch.zeros(3), torch.eye(3))


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
    with pytest.raises(ValueError, match="one sample a side"):
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


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


def test_sets_laid_out_by_hand() -> None:
    """Real points at 0, 1, 2, 10 reach 1, 1, 1, 8 with k=1; fake ones at 0.5, 1.5, 30 reach 1, 1, 28.5.

    0.5 is inside the balls of 0 and 1, 1.5 inside those of 1 and 2, 30 in none: precision 2/3, density 4/3. Balls around 0.5 and 1.5 hold
    0, 1 and 2, the ball of 30 holds 2 (at 28) and 10: recall 1. The nearest fake points are at 0.5, 0.5, 0.5 and 8.5 of 0, 1, 2 and 10:
    coverage 3/4.
    """
    found = precision_recall_density_coverage(column(0, 1, 2, 10), column(0.5, 1.5, 30), k=1)
    assert found == PRDC(precision=2 / 3, recall=1.0, density=4 / 3, coverage=3 / 4)


def test_a_collapsed_generator_is_precise_and_covers_little() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(200, 4, generator=generator)
    fake = real[:1] + 1e-3 * torch.randn(200, 4, generator=generator)
    found = precision_recall_density_coverage(real, fake, k=5)
    assert found.precision == 1.0
    assert found.recall <= 0.01
    assert found.coverage < 0.1


def test_distant_sets_share_nothing_and_equal_ones_everything() -> None:
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    assert precision_recall_density_coverage(x, x + 1000) == PRDC(0.0, 0.0, 0.0, 0.0)
    same = precision_recall_density_coverage(x, x)
    assert (same.precision, same.recall, same.coverage) == (1.0, 1.0, 1.0)
    # Equal points sit at a distance of zero, and k - 1 others inside each ball: the k-th lies on it, which is not inside.
    assert same.density == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("by_matmul", [False, True])
@pytest.mark.parametrize("block", [1, 17, 1024])
def test_blocks_give_what_loops_give(block: int, by_matmul: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    real = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    fake = 0.7 * torch.randn(50, 3, generator=generator, dtype=torch.float64) + 0.4
    k = 3

    def reach(points: torch.Tensor) -> list[float]:
        return [sorted((p - q).norm().item() for q in points)[k] for p in points]

    reach_real, reach_fake = reach(real), reach(fake)
    distance = [[(r - f).norm().item() for f in fake] for r in real]
    inside = [[d < radius for d in row] for row, radius in zip(distance, reach_real, strict=True)]
    recalled = [any(d < radius for d, radius in zip(row, reach_fake, strict=True)) for row in distance]
    expected = PRDC(
        precision=sum(any(row[j] for row in inside) for j in range(50)) / 50,
        recall=sum(recalled) / 40,
        density=sum(map(sum, inside)) / 50 / k,
        coverage=sum(map(any, inside)) / 40,
    )
    found = precision_recall_density_coverage(real, fake, k=k, block=block, by_matmul=by_matmul)
    assert found == pytest.approx(expected, rel=1e-12)


def test_large_sets_take_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, cdist = [], torch.cdist

    def recorded(*sides: torch.Tensor, compute_mode: str) -> torch.Tensor:
        asked.append(compute_mode)
        return cdist(*sides, compute_mode=compute_mode)

    monkeypatch.setattr(torch, "cdist", recorded)
    monkeypatch.setattr(distances, "MATMUL_THRESHOLD", 30 * 30 * 2)
    small, large = torch.rand(30, 2), torch.rand(31, 2)
    precision_recall_density_coverage(small, small)
    assert set(asked) == {"donot_use_mm_for_euclid_dist"}
    asked.clear()
    precision_recall_density_coverage(small, large)
    assert set(asked) == {"use_mm_for_euclid_dist"}


def test_too_few_samples_are_named() -> None:
    with pytest.raises(ValueError, match="k=5 needs more than k samples a side, got 5 and 9"):
        precision_recall_density_coverage(torch.zeros(5, 2), torch.zeros(9, 2))
