"""Vendi score, mean cosine and diversity over seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from stepdistill.metrics import LPIPS, PromptDiversity, vendi_score
from stepdistill.metrics.diversity import mean_pairwise_cosine
from stepdistill.metrics.networks.base import FeatureNetwork
from stepdistill.metrics.preprocess import quantise


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_vendi_counts_clusters() -> None:
    """Orthogonal groups of parallel features: as many as groups if equally large, else the exponential of their entropy."""
    for sizes in ([1] * 6, [3, 3, 3], [8], [6, 2]):
        rows = [torch.eye(9)[i] * (1 + j) for i, size in enumerate(sizes) for j in range(size)]
        p = torch.tensor(sizes) / sum(sizes)
        expected = float((-(p * p.log()).sum()).exp())
        assert vendi_score(torch.stack(rows)) == pytest.approx(expected, rel=1e-6)
    assert vendi_score(torch.stack([torch.eye(4)[i % 4] for i in range(40)])) == pytest.approx(4.0, rel=1e-12)
    with pytest.raises(ValueError, match="no features"):
        vendi_score(torch.zeros(0, 3))


@pytest.mark.parametrize("n", [5, 30])
def test_vendi_is_the_entropy_of_the_cosines(n: int) -> None:
    """By the full matrix of cosines, whichever side is the smaller."""
    features = torch.randn(n, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = features / features.norm(dim=1, keepdim=True)
    eigenvalues = np.linalg.eigvalsh((unit @ unit.T / n).numpy())
    eigenvalues = eigenvalues[eigenvalues > 1e-14]
    assert vendi_score(features) == pytest.approx(math.exp(-(eigenvalues * np.log(eigenvalues)).sum()), rel=1e-9)


def test_mean_cosine_is_the_mean_over_pairs() -> None:
    features = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = [(i, j) for i in range(7) for j in range(i)]
    cosines = [torch.nn.functional.cosine_similarity(features[i], features[j], dim=0) for i, j in pairs]
    assert mean_pairwise_cosine(features) == pytest.approx(float(torch.stack(cosines).mean()), rel=1e-12)
    with pytest.raises(ValueError, match="needs two samples"):
        mean_pairwise_cosine(features[:1])


def test_diversity_detects_a_collapsed_generator(alex: LPIPS, colours: FeatureNetwork) -> None:
    """Two prompts of four seeds: means over prompts of the measures of each."""
    prompts = [noise(4, 3, 64, 64), noise(4, 3, 64, 64, seed=1)]
    metric = PromptDiversity(lpips=alex, features=colours)
    for images in prompts:
        metric.update(images)
    found = {name: float(value) for name, value in metric.compute().items()}
    expected = {
        "lpips": np.mean([float(alex.pairwise(quantise(images)).mean()) for images in prompts]),
        "cosine": np.mean([mean_pairwise_cosine(colours(images)) for images in prompts]),
        "vendi": np.mean([vendi_score(colours(images)) for images in prompts]),
    }
    assert found == pytest.approx(expected, rel=1e-6)
    metric.reset()
    metric.update(prompts[0][:1].repeat(4, 1, 1, 1))
    collapsed = {name: float(value) for name, value in metric.compute().items()}
    assert collapsed == pytest.approx({"lpips": 0, "cosine": 1, "vendi": 1}, abs=1e-6)
    with pytest.raises(ValueError, match="two images of a prompt"):
        metric.update(prompts[0][:1])
    with pytest.raises(ValueError, match="or both"):
        PromptDiversity()


def test_diversity_at_the_size_of_dmd2(alex: LPIPS) -> None:
    images = noise(2, 3, 40, 70)
    metric = PromptDiversity(lpips=alex, side=64)
    metric.update(images)
    assert float(metric.compute()["lpips"]) > 0
    same = PromptDiversity(lpips=alex, side=64)
    same.update(noise(2, 3, 64, 64))
    assert float(same.compute()["lpips"]) == pytest.approx(
        float(alex.pairwise(quantise(noise(2, 3, 64, 64)))), rel=1e-6
    )
