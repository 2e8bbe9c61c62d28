"""Inception without its weights: the graph against values from torch-fidelity, the variants against their definitions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from stepdistill.errors import UserError
from stepdistill.metrics import FrechetDistance, InceptionFeatures
from stepdistill.metrics.networks.inception import VARIANTS, InceptionV3, load_inception
from stepdistill.metrics.preprocess import to_pictures


def picture() -> torch.Tensor:
    """One uint8 picture of 20 x 24 pixels, by a formula."""
    ramp = torch.arange(3 * 20 * 24).view(1, 3, 20, 24)
    return ((ramp * ramp * 7 + ramp * 13) % 256).to(torch.uint8)


def test_the_graph_gives_the_features_of_torch_fidelity(network: InceptionV3) -> None:
    """Recorded from torch-fidelity 0.4.0 with these weights; `make parity` compares with the package."""
    features = InceptionFeatures(network, "legacy_tf")(picture())[0]
    expected = [0.0, 0.0067579029, 0.0, 2.3624665737, 1.0980104208, 1.9565539360, 0.1372430921, 2.9464643002]
    assert features.shape == (2048,)
    assert torch.allclose(features[:8], torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert float(features.mean()) == pytest.approx(0.7216300212, rel=1e-5)
    assert float(features.square().mean()) == pytest.approx(1.4115990621, rel=1e-5)


def test_the_network_has_the_published_size(network: InceptionV3) -> None:
    """94 convolutions with batch norm; the published file adds a classifier of 1,008 classes, 2,065,392 more parameters."""
    assert sum(isinstance(part, nn.Conv2d) for part in network.modules()) == 94
    assert sum(parameter.numel() for parameter in network.parameters()) == 21_785_568
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.training


def test_training_mode_does_not_reach_the_network(network: InceptionV3) -> None:
    metric = FrechetDistance(InceptionFeatures(network))
    assert not metric.train().extractor.network.Conv2d_1a_3x3.bn.training


def test_weights_go_through_a_file(network: InceptionV3, tmp_path: Path) -> None:
    """With the classifier that the published file has, and without the counters that it lacks."""
    state = {name: tensor for name, tensor in network.state_dict().items() if "num_batches" not in name}
    torch.save(state | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, tmp_path / "w.pth")
    loaded = InceptionFeatures.load("clean", tmp_path / "w.pth")
    for name, tensor in loaded.network.state_dict().items():
        assert name not in state or torch.equal(tensor, state[name]), name
    assert len(loaded.protocol()["weights"]) == 16
    assert loaded.protocol()["features"] == loaded.name == "inception/clean"


def test_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="is not FID's Inception"):
        load_inception(tmp_path / "other.pth")


def test_missing_weights_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights at"):
        InceptionFeatures.load("clean", tmp_path / "nothing.pth")


def test_variants_scale_as_they_say() -> None:
    white = torch.full((1, 3, 5, 7), 255, dtype=torch.uint8)
    for name, variant in VARIANTS.items():
        low, high = variant(torch.zeros_like(white), 299), variant(white, 299)
        assert low.shape == (1, 3, 299, 299)
        assert torch.allclose(low, torch.tensor(-1.0), atol=1e-5), name
        top = 1.0 if name == "pytorch_fid" else 127 / 128
        assert torch.allclose(high, torch.tensor(top), atol=1e-5), name


class Means(nn.Module):
    """Stands for the network: the mean of each channel."""

    side, num_features = 8, 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.scale.detach() * pixels.mean((2, 3))


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_pictures_of_several_sizes_keep_their_order(variant: str) -> None:
    extractor = InceptionFeatures(Means(), variant)  # type: ignore[arg-type]
    batches = [picture(), picture().repeat(1, 1, 2, 1), picture().flip(1)]
    together = extractor([each for batch in batches for each in to_pictures(batch)])
    assert torch.equal(together, torch.cat([extractor(batch) for batch in batches]))
    assert torch.equal(extractor(picture().float() / 255), extractor(picture()))


def test_resizes_differ_where_texture_is_fine() -> None:
    board = ((torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255).to(torch.uint8).expand(1, 3, 64, 64)
    spread = {name: float(variant.resize(board, 24).std()) for name, variant in VARIANTS.items()}
    assert spread["clean"] < 20
    assert spread["torchmetrics"] < 30
    assert min(spread["legacy_tf"], spread["pytorch_fid"]) > 35
