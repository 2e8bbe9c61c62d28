"""The torchmetrics classes: streaming, reset, and reduction over ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed as dist
from torchmetrics import Metric

from stepdistill.errors import UserError
from stepdistill.metrics import (
    CMMD,
    FeatureStats,
    FrechetDistance,
    KernelDistance,
    PairedSimilarity,
    PrecisionRecall,
    PromptDiversity,
    ReferenceStats,
    cmmd,
    kernel_distance,
    precision_recall_density_coverage,
)
from stepdistill.metrics.distances import frechet_distance_of_features, kernel_distance_of_subsets
from stepdistill.metrics.networks.base import FeatureNetwork

if TYPE_CHECKING:  # the spawned processes import this module: keep transformers out of it
    from stepdistill.metrics.networks.clip import ClipFeatures


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + seed


def fill(metric: Metric, real: torch.Tensor, fake: torch.Tensor, parts: int) -> Metric:
    for batch in real.split(parts):
        metric.update(batch, real=True)
    for batch in fake.split(parts):
        metric.update(batch, real=False)
    return metric


def test_frechet_distance_streams_and_resets() -> None:
    real, fake = normal(60, 5, 0), normal(50, 5, 1)
    metric = FrechetDistance(num_features=5, shift=0.5)
    for _ in range(2):
        fill(metric, real, fake, 7)
        assert math.isclose(float(metric.compute()), frechet_distance_of_features(real, fake), rel_tol=1e-11)
        metric.reset()
    metric.update(real[:1], real=True)
    with pytest.raises(ValueError, match="two samples"):
        metric.compute()


def test_what_came_before_a_batch_is_not_changed_by_it() -> None:
    """Sums are kept in place: neither a copy of the statistics nor the initial state may share their memory."""
    metric = FrechetDistance(num_features=3)
    metric.update(normal(9, 3, 0), real=True)
    kept = metric.stats(real=True)
    before = kept.outer.clone()
    metric.update(normal(9, 3, 1), real=True)
    assert torch.equal(kept.outer, before)
    metric.reset()
    assert float(metric.real_outer.abs().sum()) == 0.0


def test_a_reference_takes_the_real_side() -> None:
    real, fake = normal(60, 5, 0), normal(50, 5, 1)
    reference = ReferenceStats.of(FeatureStats.of(real), {"features": "none"})
    metric = FrechetDistance(reference=reference)
    for _ in range(2):
        for batch in fake.split(7):
            metric.update(batch, real=False)
        assert math.isclose(float(metric.compute()), frechet_distance_of_features(real, fake), rel_tol=1e-11)
        metric.reset()
    with pytest.raises(ValueError, match="the real statistics are the reference"):
        metric.update(real, real=True)


def test_a_reference_of_other_features_is_refused(clip: ClipFeatures) -> None:
    stats = FeatureStats.of(normal(20, 8, 0))
    with pytest.raises(UserError, match="features='inception/clean', not 'random'"):
        FrechetDistance(clip, reference=ReferenceStats.of(stats, {"features": "inception/clean"}))
    with pytest.raises(UserError, match="the reference has 5 features and the feature network 8"):
        FrechetDistance(clip, reference=ReferenceStats.of(FeatureStats.of(normal(20, 5, 0)), {}))
    FrechetDistance(clip, reference=ReferenceStats.of(stats, clip.protocol()))
    with pytest.raises(ValueError, match="num_features"):
        FrechetDistance()


def test_kept_features_give_what_the_functions_give() -> None:
    real, fake = normal(40, 4, 0), normal(44, 4, 1)
    found = fill(PrecisionRecall(k=3), real, fake, 9).compute()
    assert found == precision_recall_density_coverage(real, fake, k=3)
    assert float(fill(CMMD(), real, fake, 9).compute()) == cmmd(real, fake)
    subsets = KernelDistance(num_subsets=5, subset_size=20, seed=3)
    expected = kernel_distance_of_subsets(real, fake, num_subsets=5, subset_size=20, seed=3)
    assert float(fill(subsets, real, fake, 9).compute()) == expected.mean


class Colours(FeatureNetwork):
    """Mean colour of each quarter."""

    name, num_features = "colours", 12

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        levels = images.float() / 255 if images.dtype == torch.uint8 else images
        return torch.nn.functional.adaptive_avg_pool2d(levels, 2).flatten(1)


def test_feature_networks_fit_the_metric_of_torchmetrics() -> None:
    """For users who want that object: the same value, in the precision of the features."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    images = torch.randint(0, 256, (60, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    theirs = FrechetInceptionDistance(feature=Colours(), input_img_size=(3, 8, 8))
    ours = FrechetDistance(Colours())
    for metric in (theirs, ours):
        fill(metric, images[:30], images[30:] // 2, 7)
    assert math.isclose(float(ours.compute()), float(theirs.compute()), rel_tol=1e-5)


def test_sums_of_two_processes_are_the_sums_of_one() -> None:
    real, fake = normal(40, 4, 0), normal(44, 4, 2)
    whole = fill(FrechetDistance(num_features=4), real, fake, 11)
    ranks = [fill(FrechetDistance(num_features=4), real[i::2], fake[i::2], 9) for i in range(2)]
    reduced = FrechetDistance(num_features=4)
    for name in reduced._defaults:
        assert reduced._reductions[name] is not None
        setattr(reduced, name, sum(getattr(rank, name) for rank in ranks))
    reduced._update_count = 1
    assert math.isclose(float(reduced.compute()), float(whole.compute()), rel_tol=1e-12)


def test_half_precision_calls_leave_the_sums_alone() -> None:
    metric = FrechetDistance(num_features=2).half()
    metric.update(torch.randn(8, 2).half(), real=True)
    assert metric.real_outer.dtype == torch.float64


def test_kernel_distance_streams_and_resets() -> None:
    real, fake = normal(30, 5, 0), normal(25, 5, 1)
    metric = KernelDistance()
    for _ in range(2):
        fill(metric, real, fake, 8)
        assert math.isclose(float(metric.compute()), kernel_distance(real, fake), rel_tol=1e-12)
        metric.reset()


def test_extractors_are_run(clip: ClipFeatures) -> None:
    images = torch.rand(12, 3, 16, 16)
    for metric in (FrechetDistance(clip), KernelDistance(clip)):
        fill(metric, images, images.flip(-1), 5)
    few = fill(FrechetDistance(clip), images[:4], images[4:8], 4)
    with pytest.warns(UserWarning, match="biased"):
        few.compute()


PAIRS = torch.rand(6, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def measured(rank: int, world: int) -> dict[str, list[float]]:
    """Every metric on this process's share; all of it for one process."""
    real, fake = normal(41, 4, 0)[rank::world], normal(44, 4, 2)[rank::world]
    pairs = PAIRS[rank::world]
    # An offset that plain sums would feel; the second process's own shift is another.
    stats = FeatureStats.of(real + 1e3).all_reduce()
    paired, diverse = PairedSimilarity(features=Colours()), PromptDiversity(features=Colours())
    paired.update(pairs[:, 0], pairs[:, 1])
    for pair in pairs:
        diverse.update(pair)
    values = {
        "frechet": [fill(FrechetDistance(num_features=4), real, fake, 9).compute()],
        "kernel": [fill(KernelDistance(), real, fake, 9).compute()],
        "cmmd": [fill(CMMD(), real, fake, 9).compute()],
        "neighbours": list(fill(PrecisionRecall(k=3), real, fake, 9).compute()),
        "paired": list(paired.compute().values()),
        "diversity": list(diverse.compute().values()),
        "stats": [stats.n, *stats.mean.tolist(), *stats.cov.flatten().tolist()],
    }
    return {name: [float(each) for each in value] for name, value in values.items()}


def measure_share(rank: int, folder: str) -> None:
    """One process: half of the features, then the reduced distances."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(measured(rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.distributed
def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(measure_share, args=(str(tmp_path),), nprocs=2)  # pyright: ignore
    expected = measured(0, 1)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, values in expected.items():
            assert found[name] == pytest.approx(values, rel=1e-10), name
