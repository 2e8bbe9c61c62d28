"""Networks on random weights, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stepdistill.metrics.networks.base import FeatureNetwork
from stepdistill.metrics.networks.clip import ClipFeatures
from stepdistill.metrics.networks.inception import InceptionV3
from stepdistill.metrics.networks.lpips import LPIPS, TRUNKS
from stepdistill.metrics.preprocess import quantise
from stepdistill.testing.networks import fill_at_random


class Colours(FeatureNetwork):
    """Mean colour of each quarter."""

    name, num_features = "colours", 12

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(quantise(images), 2).flatten(1)


@pytest.fixture(scope="session")
def colours() -> FeatureNetwork:
    return Colours()


@pytest.fixture(scope="session")
def network() -> InceptionV3:
    network = InceptionV3()
    fill_at_random(network)
    return network


@pytest.fixture(scope="session")
def alex(tmp_path_factory: pytest.TempPathFactory) -> LPIPS:
    """Published heads on a random trunk."""
    trunk = fill_at_random(TRUNKS["alex"]().layers)
    file = tmp_path_factory.mktemp("weights") / "alex.pth"
    state = {f"features.{name}": tensor for name, tensor in trunk.state_dict().items()}
    torch.save(state | {"classifier.1.weight": torch.zeros(2, 2)}, file)
    return LPIPS.load("alex", trunk=file)


@pytest.fixture(scope="session")
def clip_folder(clip: ClipFeatures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny CLIP model as a folder named `mine`."""
    folder = tmp_path_factory.mktemp("clip") / "mine"
    clip.model.save_pretrained(folder)
    clip.tokenizer.save_pretrained(folder)
    return folder
