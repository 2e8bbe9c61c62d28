"""Patch features, precision, and statistics of folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stepdistill.metrics import feature_stats, image_files
from stepdistill.metrics.networks.base import FeatureNetwork, PatchFeatures
from stepdistill.metrics.preprocess import same_size_batches


def numbered(width: int, height: int) -> Image.Image:
    """A picture whose red level is the column and whose green level is the row."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


class Corners(FeatureNetwork):
    """The red and green level of the upper left pixel."""

    name, num_features = "corners", 2

    def forward(self, images) -> torch.Tensor:
        return torch.cat([batch[:, :2, 0, 0].float() for batch in same_size_batches(images)])


def test_patch_features_are_the_networks_of_the_patches() -> None:
    network = PatchFeatures(Corners(), size=40)
    assert network.name == "corners/patch-center40"
    assert network([numbered(100, 80), numbered(60, 60)]).tolist() == [[30, 20], [10, 10]]
    several = PatchFeatures(Corners(), size=40, num_patches=3, mode="random")
    assert several([numbered(100, 80), numbered(60, 60)]).shape == (6, 2)
    assert several.protocol()["patches"] == {"size": 40, "num_patches": 3, "mode": "random", "seed": 0}
    with pytest.raises(ValueError, match="one centre patch"):
        PatchFeatures(Corners(), num_patches=2)


class Convolved(FeatureNetwork):
    """One convolution that records the precision settings during its call."""

    name, num_features = "convolved", 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 4, 3)
        self.asked: list[str] = []

    @torch.no_grad()
    def forward(self, images) -> torch.Tensor:
        self.asked = [torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision]
        return self.layer(images).mean((2, 3))


def test_features_are_single_precision_under_autocast() -> None:
    network, images = Convolved(), torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision)
    plain = network(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(images), plain)
        assert network.layer(images).dtype == torch.bfloat16
    assert network.asked == ["ieee", "ieee"]
    assert (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision) == before
    assert torch.backends.cudnn.allow_tf32 == (before[0] == "tf32")


def test_statistics_of_a_folder(tmp_path: Path) -> None:
    corners = [(3, 9), (7, 1), (200, 40), (90, 90), (1, 250)]
    for index, (x, y) in enumerate(corners):
        folder = tmp_path / str(index % 2)
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (4 + index, 4), (x, y, 0)).save(folder / f"{index}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    files = image_files(tmp_path)
    assert len(files) == 5
    stats = feature_stats(Corners(), files, batch_size=2)
    expected = torch.tensor(corners, dtype=torch.float64)
    assert stats.n == 5
    assert torch.allclose(stats.mean, expected.mean(0), rtol=1e-14)
    assert torch.allclose(stats.cov, torch.cov(expected.T), rtol=1e-13)
    with pytest.raises(ValueError, match="no images"):
        feature_stats(Corners(), [])
