"""LPIPS against its definition in NumPy."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from stepdistill.errors import UserError
from stepdistill.metrics import LPIPS
from stepdistill.metrics.networks.lpips import TRUNKS
from stepdistill.testing.networks import fill_at_random


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_its_definition(net: Literal["alex", "vgg"]) -> None:
    """Unit features of each layer, squared differences weighted by the head, averaged over pixels (eq. 1), by NumPy."""
    metric = LPIPS(net)
    fill_at_random(metric.layers)
    first, second = noise(2, 3, 64, 64), noise(2, 3, 64, 64, seed=1)
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    x = torch.cat([first, second]).numpy().transpose(0, 2, 3, 1)
    x = torch.from_numpy(((2 * x - 1 - shift) / scale).transpose(0, 3, 1, 2)).float()
    expected, tap = np.zeros(2), 0
    for index, layer in enumerate(metric.layers):
        x = layer(x)
        if index in metric.taps:
            assert isinstance(layer, torch.nn.ReLU)
            maps = x.double().numpy()
            unit = maps / (np.sqrt((maps**2).sum(1, keepdims=True)) + 1e-10)
            head = metric.heads[tap].double().numpy()[:, None, None]
            expected += (head * (unit[:2] - unit[2:]) ** 2).sum(1).mean((1, 2))
            tap += 1
    assert tap == 5
    assert metric(first, second).tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_lpips_is_a_symmetric_distance(alex: LPIPS) -> None:
    first, second = noise(3, 3, 64, 64), noise(3, 3, 64, 64, seed=1)
    assert alex(first, first).tolist() == [0, 0, 0]
    assert torch.allclose(alex(first, second), alex(second, first))
    assert bool((alex(first, second) > 0).all())
    nearer = 0.5 * (first + second)
    assert bool((alex(first, nearer) < alex(first, second)).all())


def test_all_pairs_are_the_pairs_one_by_one(alex: LPIPS) -> None:
    images = noise(4, 3, 64, 64)
    one_by_one = [float(alex(images[i : i + 1], images[j : j + 1])) for i in range(4) for j in range(i + 1, 4)]
    assert alex.pairwise(images).tolist() == pytest.approx(one_by_one, rel=1e-5)
    assert alex.pairwise(images[:1]).shape == (0,)


def test_unscaled_pictures_are_another_number(alex: LPIPS) -> None:
    first, second = noise(2, 3, 64, 64), noise(2, 3, 64, 64, seed=1)
    unscaled = LPIPS("alex", rescale=False)
    unscaled.load_state_dict(alex.state_dict())
    assert torch.allclose(unscaled(2 * first - 1, 2 * second - 1), alex(first, second), rtol=1e-5)
    assert not torch.allclose(unscaled(first, second), alex(first, second), rtol=1e-2)
    assert (alex.name, unscaled.name) == ("lpips/alex", "lpips/alex/unscaled")


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_published_heads_fit_and_are_not_negative(net: Literal["alex", "vgg"], alex: LPIPS, tmp_path) -> None:
    torch.save({f"features.{n}": t for n, t in TRUNKS[net]().layers.state_dict().items()}, tmp_path / "t.pth")
    heads = LPIPS.load(net, trunk=tmp_path / "t.pth").heads
    assert [len(head) for head in heads] == list(TRUNKS[net]().channels)
    assert all(float(head.min()) >= 0 and float(head.max()) > 0.1 for head in heads)


def test_a_trunk_of_another_network_is_refused(tmp_path) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "t.pth")
    with pytest.raises(UserError, match="not LPIPS's vgg trunk"):
        LPIPS.load("vgg", trunk=tmp_path / "t.pth")
