"""Means, standard errors and distances in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stepdistill.evaluation import reductions
from stepdistill.evaluation.columns import Columns
from stepdistill.evaluation.document import Part
from stepdistill.evaluation.reductions import (
    JACKKNIFE_GROUPS,
    Reference,
    frechet,
    jackknife,
    kernel,
    mean,
    mean_estimate,
    neighbours,
)
from stepdistill.metrics.distances import (
    kernel_distance,
    kernel_distance_of_subsets,
    precision_recall_density_coverage,
)


def reference(features: Tensor) -> Reference:
    return Reference.of("real", features)


def columns_of(values: dict[str, Tensor], prompt_index: list[int], categories: list[str | None]) -> Columns:
    return Columns(values, torch.tensor(prompt_index), tuple(categories))


def features(count: int, *, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def test_a_mean_is_over_prompts_whole_and_by_category() -> None:
    """Prompt means 2, 6, 10: mean 6, sample deviation 4, standard error 4 / sqrt(3)."""
    columns = columns_of({"clip": torch.tensor([1.0, 3.0, 6.0, 10.0])}, [0, 0, 1, 2], ["a", "a", "b", None])
    (found,) = mean(columns, "clip", None).values()
    assert found.whole == pytest.approx((6.0, 4 / 3**0.5))
    assert found.by_category["a"] == Part(value=2.0, n=2)
    assert found.by_category["b"] == Part(value=6.0, n=1)
    assert set(found.by_category) == {"a", "b"}
    other = mean(columns_of({"score": torch.tensor([1.0])}, [0], [None]), "hps", None)
    assert other["hps"].whole.value == 1.0


def test_prompts_weigh_alike_however_many_pictures_they_have() -> None:
    estimate = mean_estimate(torch.tensor([0.0, 0.0, 0.0, 8.0]), torch.tensor([7, 7, 7, 9]))
    assert estimate == pytest.approx((4.0, 4.0))


def test_the_jackknife_leaves_out_prompts_not_pictures() -> None:
    """Of a mean over 20 prompts with two pictures each: sqrt(9 / 10 sum (mean without fold - mean)^2)."""
    values = torch.randn(40, generator=torch.Generator().manual_seed(0)).double()
    groups = torch.arange(20).repeat_interleave(2)
    left = torch.stack([values[groups % JACKKNIFE_GROUPS != fold].mean() for fold in range(JACKKNIFE_GROUPS)])
    expected = (0.9 * (left - left.mean()).square().sum()).sqrt()
    found = jackknife(lambda kept: float(kept.mean()), values, groups)
    assert found == pytest.approx(float(expected), rel=1e-6)
    assert jackknife(lambda kept: 1.0, values[:19], groups[:19]) is None
    assert jackknife(lambda kept: 1.0, values[:20], groups[:20]) == 0.0


def test_a_distance_has_the_jackknifes_error() -> None:
    fake, real = features(40, seed=0), features(40, seed=1)
    columns = columns_of({"features": fake}, list(range(40)), [None] * 40)
    estimate = frechet(columns, "fid", reference(real))["fid"].whole
    error = jackknife(lambda kept: reductions.frechet_distance_of_features(kept, real), fake, torch.arange(40))
    assert estimate.value == pytest.approx(reductions.frechet_distance_of_features(fake, real))
    assert estimate.standard_error == pytest.approx(error)


@pytest.mark.parametrize(("num_fake", "num_real"), [(30, 10), (10, 30)])
def test_large_sets_are_compared_in_subsets(monkeypatch: pytest.MonkeyPatch, num_fake: int, num_real: int) -> None:
    """Either side may be the large one; the error of 100 subsets is a tenth of their deviation."""
    fake, real = features(num_fake, seed=0), features(num_real, seed=1, scale=2.0)
    columns = columns_of({"features": fake}, list(range(num_fake)), [None] * num_fake)
    (name, found), = kernel(columns, "kid", reference(real)).items()  # fmt: skip
    assert (name, found.whole) == ("kid", (pytest.approx(kernel_distance(fake, real)), None))

    def subsets(*sides: Tensor, num_subsets: int, subset_size: int) -> object:
        assert (num_subsets, subset_size) == (100, 1000)
        return kernel_distance_of_subsets(*sides, num_subsets=20, subset_size=5)

    monkeypatch.setattr(reductions, "ALL_PAIRS", 20)
    monkeypatch.setattr(reductions, "kernel_distance_of_subsets", subsets)
    (name, found), = kernel(columns, "kid", reference(real)).items()  # fmt: skip
    expected = kernel_distance_of_subsets(fake, real, num_subsets=20, subset_size=5)
    assert name == "kid_subsets"
    assert found.whole == pytest.approx((expected.mean, expected.std / 10))


def test_precision_is_of_the_generated_side_at_the_fifth_neighbour() -> None:
    """Pictures that cover a small part of the real ones are precise and recall little."""
    fake, real = features(30, seed=0, scale=0.2), features(40, seed=1)
    columns = columns_of({"features": fake}, list(range(30)), [None] * 30)
    found = {name: each.whole.value for name, each in neighbours(columns, "prdc", reference(real)).items()}
    expected = precision_recall_density_coverage(real, fake, k=5)._asdict()
    assert found == pytest.approx({name: float(value) for name, value in expected.items()})
    assert found["precision"] > 0.9 > 0.5 > found["recall"]
