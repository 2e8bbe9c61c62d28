"""Preprocessing of scorers: equal to transformers' and torchvision's, and a gradient beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPImageProcessorPil

from stepdistill.metrics.networks.transforms import PictureTransform, resized_shape
from stepdistill.metrics.preprocess import CLIP_MEAN, CLIP_STD

SHAPES = [(40, 40), (37, 61), (64, 33), (16, 16), (9, 30)]
VARIANTS = [
    PictureTransform(16),
    PictureTransform(16, resize="tensor"),
    PictureTransform(16, first_square=24),
]


def random_bytes(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8))


def smooth_images(height: int, width: int) -> torch.Tensor:
    small = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    return F.interpolate(small, (height, width), mode="bilinear", align_corners=True)


def as_picture(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_transformers_with_its_crop(shape: tuple[int, int]) -> None:
    pixels = random_bytes(*shape)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    theirs = processor(as_picture(pixels), return_tensors="pt").pixel_values
    ours = PictureTransform(16, crop="floor")(pixels[None].float() / 255)
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["pil", "tensor", "tensor_aliased", "square"])
def test_equals_torchvision(name: str, shape: tuple[int, int]) -> None:
    transforms = pytest.importorskip("torchvision.transforms", exc_type=ImportError)
    functional = pytest.importorskip("torchvision.transforms.functional")
    bicubic, lanczos = transforms.InterpolationMode.BICUBIC, transforms.InterpolationMode.LANCZOS
    pixels = random_bytes(*shape)
    picture, to_tensor, crop = as_picture(pixels), transforms.ToTensor(), transforms.CenterCrop(16)
    if name.startswith("tensor"):
        antialias = name == "tensor"
        resize = transforms.Resize(16, interpolation=bicubic, antialias=antialias)
        expected = crop(resize(to_tensor(picture)))
        ours = PictureTransform(16, resize="tensor", antialias=antialias)
    else:
        ours = PictureTransform(16, first_square=24 if name == "square" else None)
        if name == "square":
            picture = functional.center_crop(picture, min(picture.size))
            picture = functional.resize(picture, 24, interpolation=lanczos)
        expected = to_tensor(crop(transforms.Resize(16, interpolation=bicubic)(picture)))
    assert torch.allclose(ours(pixels[None].float() / 255)[0], normalised(expected), atol=2e-6)


def test_an_odd_margin_is_rounded_to_even_or_cut() -> None:
    """A strip of 16 x 19: 3 pixels too wide, so 1.5 on each side."""
    ramp = torch.arange(19.0).expand(1, 3, 16, 19) / 255
    first = {crop: float(PictureTransform(16, crop=crop, mean=(0, 0, 0), std=(1, 1, 1))(ramp)[0, 0, 0, 0] * 255)
             for crop in ("round", "floor")}  # fmt: skip
    assert first == {"round": 2.0, "floor": 1.0}


def test_floats_overshoot_only_where_the_reference_does() -> None:
    edges = torch.zeros(1, 3, 64, 64)
    edges[..., 32:] = 1
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    assert PictureTransform(16, resize="tensor", **plain)(edges).max() > 1
    assert PictureTransform(16, resize="pil", **plain)(edges).max() == 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transform", VARIANTS, ids=["pil", "tensor", "square"])
def test_the_differentiable_twin_is_near(transform: PictureTransform, shape: tuple[int, int]) -> None:
    images = smooth_images(*(3 * side for side in shape))
    difference = (transform.differentiable(images) - transform(images)).abs() * min(CLIP_STD) * 255
    assert difference.mean() < 0.7
    assert difference.max() < 3


@pytest.mark.parametrize("transform", VARIANTS, ids=["pil", "tensor", "square"])
def test_the_twin_has_a_gradient_and_sees_no_more_than_a_picture_shows(transform: PictureTransform) -> None:
    images = smooth_images(32, 32).requires_grad_()
    transform.differentiable(images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    loud = images.detach() * 3 - 1
    assert torch.equal(transform.differentiable(loud), transform.differentiable(loud.clamp(0, 1)))


def test_shapes_of_the_longer_side() -> None:
    assert resized_shape(1024, 1024, 224) == (224, 224)
    assert resized_shape(333, 500, 224) == (224, 336)
    assert resized_shape(500, 333, 224) == (336, 224)
