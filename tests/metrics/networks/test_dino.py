"""DINOv2 features on tiny random models."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from stepdistill.metrics import DinoFeatures
from stepdistill.metrics.networks.dino import published_positions
from stepdistill.metrics.preprocess import IMAGENET_MEAN, IMAGENET_STD, to_bytes


def numbered(width: int, height: int) -> Image.Image:
    """A picture whose red level is the column and whose green level is the row."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def tiny_dino(image_size: int = 70) -> Dinov2Model:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
    model = Dinov2Model(Dinov2Config(**sizes, image_size=image_size))
    torch.nn.init.normal_(model.embeddings.position_embeddings)
    return model


def test_dino_features_are_the_models_class_token() -> None:
    """At the size the model was made for, where positions are not resized."""
    model = tiny_dino(56)
    images = torch.rand(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    pixels = (to_bytes(images).float() / 255 - mean) / std
    with torch.no_grad():
        expected = model(pixel_values=pixels).pooler_output
    for resize in ("pil", "clean", "edm2"):
        extractor = DinoFeatures(model, resize=resize, side=56, name="tiny")
        assert torch.allclose(extractor(images), expected, atol=1e-5)
        assert (extractor.name, extractor.num_features) == (f"tiny/{resize}", 16)


def test_dino_squeezes_pictures_without_a_crop() -> None:
    extractor = DinoFeatures(tiny_dino(56), side=56)
    wide = numbered(200, 120)
    squeezed = wide.resize((56, 56), Image.Resampling.BICUBIC)
    assert torch.equal(extractor([wide]), extractor([squeezed]))


def bicubic(values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution with a = -3/4 at fractional points away from the borders, row by row."""
    first = np.floor(points).astype(int) - 1
    result = np.zeros((len(values), len(points)))
    for tap in range(4):
        x = np.abs(points - (first + tap))
        near = 1.25 * x**3 - 2.25 * x**2 + 1
        far = -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
        result += np.where(x <= 1, near, far) * values[:, first + tap]
    return result


def test_positions_are_sampled_at_the_published_scale() -> None:
    """37 x 37 positions to 16 x 16, at (i + 1/2) * 37 / 16.1 - 1/2, not at (i + 1/2) * 37 / 16 - 1/2."""
    grid = np.random.default_rng(0).normal(size=(37, 37)).astype(np.float32)
    token = torch.full((1, 1, 1), -7.0)
    positions = torch.cat([token, torch.from_numpy(grid).reshape(1, -1, 1)], 1)
    resized = published_positions(positions, 16)
    assert resized.shape == (1, 257, 1)
    assert float(resized[0, 0, 0]) == -7.0
    points = (np.arange(16) + 0.5) * 37 / 16.1 - 0.5
    expected = bicubic(bicubic(grid, points[1:-1]).T, points[1:-1]).T
    found = resized[0, 1:, 0].view(16, 16)[1:-1, 1:-1].numpy()
    assert np.allclose(found, expected, atol=1e-4)
    assert torch.equal(published_positions(positions, 37), positions)


def test_dino_resizes_positions_once() -> None:
    model = tiny_dino(70)
    trained = model.embeddings.position_embeddings.detach().clone()
    extractor = DinoFeatures(model, side=42, name="tiny")
    assert torch.equal(model.embeddings.position_embeddings, published_positions(trained, 3))
    assert extractor(torch.rand(2, 3, 30, 30)).shape == (2, 16)
