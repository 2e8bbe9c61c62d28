"""PSNR, SSIM and their means over pairs."""

from __future__ import annotations

import math

import pytest
import torch

from stepdistill.metrics import LPIPS, PairedSimilarity, psnr, ssim
from stepdistill.metrics.networks.base import FeatureNetwork
from stepdistill.metrics.preprocess import quantise


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_psnr_has_a_closed_form() -> None:
    """A constant difference of k levels: 20 log10(255 / k)."""
    flat = torch.full((2, 3, 8, 8), 100 / 255)
    shifted = flat + torch.tensor([5, 20])[:, None, None, None] / 255
    expected = [20 * math.log10(255 / 5), 20 * math.log10(255 / 20)]
    assert psnr(flat, shifted).tolist() == pytest.approx(expected, rel=1e-6)
    assert psnr(flat, flat).tolist() == [math.inf, math.inf]


def test_ssim_identities() -> None:
    images = noise(3, 3, 24, 24)
    assert ssim(images, images).tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    other = noise(3, 3, 24, 24, seed=1)
    assert torch.allclose(ssim(images, other), ssim(other, images), atol=1e-6)
    assert bool((ssim(images, other) < 0.3).all())
    # Of two constants a and b only the luminance term is left: (2ab + C1) / (a^2 + b^2 + C1), C1 = 0.01^2.
    a, b = 51 / 255, 204 / 255
    value = ssim(torch.full((1, 3, 16, 16), a), torch.full((1, 3, 16, 16), b))
    assert float(value) == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4), rel=1e-4)


def test_pairs_are_averaged_over_batches(alex: LPIPS, colours: FeatureNetwork) -> None:
    images, references = noise(5, 3, 64, 64), noise(5, 3, 64, 64, seed=1)
    metric = PairedSimilarity(lpips=alex, features=colours)
    for rows in (slice(0, 2), slice(2, 5)):
        metric.update(images[rows], references[rows])
    found = {name: float(value) for name, value in metric.compute().items()}
    a, b = colours(images), colours(references)
    expected = {
        "psnr": float(psnr(images, references).mean()),
        "ssim": float(ssim(images, references).mean()),
        "lpips": float(alex(quantise(images), quantise(references)).mean()),
        "cosine": float(((a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)).mean()),
    }
    assert found == pytest.approx(expected, rel=1e-5)
    assert list(PairedSimilarity().half().totals.shape) == [2]
    with pytest.raises(ValueError, match="do not pair up"):
        metric.update(images, references[:2])
