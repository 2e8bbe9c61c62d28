"""Distances, neighbours and diversity against the packages, on random features."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from stepdistill.metrics import kernel_distance, precision_recall_density_coverage, vendi_score
from stepdistill.metrics.distances import frechet_distance_of_features, kernel_distance_of_subsets


def sets(n: int, m: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(k, d, generator=generator, dtype=torch.float64) for k in (n, m))
    return x, 0.8 * y + 0.3


def test_frechet_distance() -> None:
    from cleanfid.fid import fid_from_feats
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    x, y = sets(600, 500, 32)
    ours = frechet_distance_of_features(x, y)
    assert math.isclose(ours, fid_from_feats(x.numpy(), y.numpy()), rel_tol=1e-10)
    stats = [fid_features_to_statistics(each) for each in (x, y)]
    theirs = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    assert math.isclose(ours, theirs, rel_tol=1e-10)
    moments = [(each.numpy().mean(0), np.cov(each.numpy(), rowvar=False)) for each in (x, y)]
    assert math.isclose(ours, calculate_frechet_distance(*moments[0], *moments[1]), rel_tol=1e-10)


def test_kernel_distance() -> None:
    from cleanfid.fid import kernel_distance as clean_kid
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torchmetrics.image.kid import poly_mmd

    # Subsets of the whole set are all pairs: nothing is left to chance.
    x, y = sets(200, 200, 16)
    ours = kernel_distance(x, y)
    assert math.isclose(ours, clean_kid(x.numpy(), y.numpy(), num_subsets=2), rel_tol=1e-9)
    theirs = kid_features_to_metric(x, y, kid_subset_size=200, kid_subsets=2, verbose=False, rng_seed=0)
    assert math.isclose(ours, theirs["kernel_inception_distance_mean"], rel_tol=1e-9)
    assert math.isclose(ours, float(poly_mmd(x, y)), rel_tol=1e-9)
    assert math.isclose(ours, kernel_distance_of_subsets(x, y, num_subsets=2).mean, rel_tol=1e-9)


@pytest.mark.parametrize("k", [3, 5])
def test_precision_recall_density_coverage(k: int) -> None:
    from prdc import compute_prdc

    x, y = sets(300, 260, 8)
    theirs = compute_prdc(x.numpy(), y.numpy(), k)
    for by_matmul in (False, True):
        ours = precision_recall_density_coverage(x, y, k=k, block=70, by_matmul=by_matmul)
        assert ours._asdict() == pytest.approx(theirs, rel=1e-12)


def test_vendi_score() -> None:
    from vendi_score import vendi

    x, _ = sets(40, 1, 12)
    assert math.isclose(vendi_score(x), vendi.score_dual(x.numpy()), rel_tol=1e-12)
    assert math.isclose(vendi_score(x[:9]), vendi.score_dual(x[:9].numpy()), rel_tol=1e-12)
