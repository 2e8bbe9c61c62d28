"""The torchmetrics classes: streaming, reset, and sums that add up over processes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torchmetrics import Metric

from stepdistill.metrics import (
    CLIPScore,
    FrechetDistance,
    KernelDistance,
    frechet_distance_of_features,
    kernel_distance,
)
from stepdistill.metrics.extractors import ClipFeatures


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


def test_clip_score_is_the_mean_cosine(clip: ClipFeatures) -> None:
    images, captions = torch.rand(5, 3, 16, 16), ["a", "red dog", "x", "cat on a mat", "zz"]
    image, text = clip(images), clip.texts(captions)
    cosines = (image * text).sum(1) / image.norm(dim=1) / text.norm(dim=1)
    metric = CLIPScore(clip)
    metric.update(images[:2], captions[:2])
    metric.update(images[2:], captions[2:])
    assert math.isclose(float(metric.compute()), float(100 * cosines.mean()), rel_tol=1e-5)
    with pytest.raises(ValueError, match="3 images but 2 captions"):
        metric.update(images[:3], captions[:2])


def measure_share(rank: int, folder: str) -> None:
    """One process: half of the features, then the reduced distances."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    real, fake = normal(41, 4, 0), normal(44, 4, 2)
    for name, metric in (("frechet", FrechetDistance(num_features=4)), ("kernel", KernelDistance())):
        value = fill(metric, real[rank::2], fake[rank::2], 9).compute()
        torch.save(value, f"{folder}/{name}_{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.distributed
def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(measure_share, args=(str(tmp_path),), nprocs=2)  # pyright: ignore
    real, fake = normal(41, 4, 0), normal(44, 4, 2)
    expected = {"frechet": frechet_distance_of_features(real, fake), "kernel": kernel_distance(real, fake)}
    for name, value in expected.items():
        for rank in range(2):
            found = torch.load(tmp_path / f"{name}_{rank}.pt", weights_only=True)
            assert math.isclose(float(found), value, rel_tol=1e-11)
