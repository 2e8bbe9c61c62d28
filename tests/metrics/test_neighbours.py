"""Precision, recall, density and coverage on sets laid out by hand, and against loops."""

from __future__ import annotations

import pytest
import torch

from stepdistill.metrics import PRDC, precision_recall_density_coverage


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
    from stepdistill.metrics import neighbours

    asked, cdist = [], torch.cdist

    def recorded(*sides: torch.Tensor, compute_mode: str) -> torch.Tensor:
        asked.append(compute_mode)
        return cdist(*sides, compute_mode=compute_mode)

    monkeypatch.setattr(torch, "cdist", recorded)
    monkeypatch.setattr(neighbours, "LARGE", 30 * 30 * 2)
    small, large = torch.rand(30, 2), torch.rand(31, 2)
    precision_recall_density_coverage(small, small)
    assert set(asked) == {"donot_use_mm_for_euclid_dist"}
    asked.clear()
    precision_recall_density_coverage(small, large)
    assert set(asked) == {"use_mm_for_euclid_dist"}


def test_too_few_samples_are_named() -> None:
    with pytest.raises(ValueError, match="k=5 needs more than k samples a side, got 5 and 9"):
        precision_recall_density_coverage(torch.zeros(5, 2), torch.zeros(9, 2))
