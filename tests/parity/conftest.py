"""The packages that ours is compared with live in an environment of their own: `make parity`. Elsewhere these tests are skipped."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stepdistill.metrics.networks.inception import InceptionV3
from stepdistill.testing.networks import fill_at_random

PACKAGES = ("torch_fidelity", "cleanfid", "lpips", "pytorch_fid", "prdc", "vendi_score", "torchvision")
MISSING = [package for package in PACKAGES if find_spec(package) is None]

collect_ignore = ["torchvision_shim.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is in this folder where a package is missing; the hook is given the items of all folders."""
    reason = f"compared by `make parity`: no {', '.join(MISSING)} here"
    for item in items:
        if MISSING and item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def network() -> InceptionV3:
    """Ours, at random."""
    network = InceptionV3()
    fill_at_random(network)
    return network


@pytest.fixture(scope="session")
def weights(network: InceptionV3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as a file, with the classifier that other implementations have."""
    file = tmp_path_factory.mktemp("weights") / "inception.pth"
    classifier = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save(network.state_dict() | classifier, file)
    return file


def pictures(n: int, height: int, width: int, seed: int) -> torch.Tensor:
    """Smooth shapes and fine texture, so that resizes differ."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 16
    phases = rng.uniform(0, 6, (n, 3, 1, 1))
    waves = 80 * np.sin(x * rng.uniform(0.2, 3, (n, 3, 1, 1)) + y + phases) + 128
    noise = rng.normal(0, 20, (n, 3, height, width))
    return torch.from_numpy((waves + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return pictures(6, 120, 104, seed=0)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders of PNG files."""
    paths = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp(f"pictures{seed}")
        for index, image in enumerate(pictures(6, 72, 90, seed=seed)):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:02d}.png")
        paths.append(folder)
    return paths[0], paths[1]
