"""Conversions, crops, patches, resizes, and CLIP preprocessing against transformers and torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPImageProcessorPil

from stepdistill.metrics.networks.inception import VARIANTS
from stepdistill.metrics.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    Preprocess,
    centre_crop,
    of_pictures,
    patches,
    pil_bicubic,
    resized_shape,
    square,
    tensorflow_bilinear,
    to_bytes,
    to_pictures,
)


def numbered(width: int, height: int) -> Image.Image:
    """A picture whose pixel says where it is: red its column, green its row."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def corner(picture: Image.Image) -> tuple[int, int]:
    pixel = np.asarray(picture)[0, 0]
    return int(pixel[0]), int(pixel[1])


def test_rounding_and_truncation() -> None:
    levels = torch.tensor([0.0, 0.4, 0.6, 254.5, 254.6, 255.0]) / 255
    assert to_bytes(levels).tolist() == [0, 0, 1, 254, 255, 255]
    assert to_bytes(levels, rounding="truncate").tolist() == [0, 0, 0, 254, 254, 255]
    everything = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(everything), everything)
    assert torch.equal(to_bytes(everything / 255), everything)


def test_pictures_and_bytes_are_inverse() -> None:
    images = torch.randint(0, 256, (2, 3, 5, 7), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(of_pictures(to_pictures(images)), images)


def test_odd_margins_are_cut_as_torchvision_or_as_cmmd_does() -> None:
    """Half to even: a margin of 2.5 cuts 2, one of 3.5 cuts 4; `floor` cuts 2 and 3."""
    assert corner(centre_crop(numbered(25, 27), 20)) == (2, 4)
    assert corner(centre_crop(numbered(25, 27), 20, offset="floor")) == (2, 3)


def test_squares_are_centred_and_resized_by_pil() -> None:
    picture = numbered(60, 40)
    expected = picture.crop((10, 0, 50, 40)).resize((16, 16), Image.Resampling.LANCZOS)
    assert square(picture, 16).tobytes() == expected.tobytes()


def test_the_centre_patch_keeps_its_pixels() -> None:
    (patch,) = patches([numbered(101, 80)], size=40)
    assert patch.size == (40, 40)
    assert corner(patch) == (30, 20)
    (small,) = patches([numbered(101, 39)], size=40)
    assert small.size == (101, 39)


def test_random_patches_depend_on_the_picture_alone() -> None:
    pictures = [numbered(200, 150), numbered(150, 200), numbered(30, 200)]
    cut = [corner(each) for each in patches(pictures, size=40, num_patches=8, mode="random")]
    assert len(set(cut[:8])) == 8
    assert all(x <= 160 and y <= 110 for x, y in cut[:8])
    alone = [corner(each) for each in patches(pictures[1:2], size=40, num_patches=8, mode="random")]
    assert cut[8:16] == alone
    other = [corner(each) for each in patches(pictures[:1], size=40, num_patches=8, mode="random", seed=1)]
    assert cut[:8] != other


def picture() -> torch.Tensor:
    """One uint8 picture of 20 x 24 pixels, by a formula."""
    ramp = torch.arange(3 * 20 * 24).view(1, 3, 20, 24)
    return ((ramp * ramp * 7 + ramp * 13) % 256).to(torch.uint8)


def test_clean_resize_is_clean_fids() -> None:
    """Recorded from clean-fid 0.1.35: down to 4 x 4 (first channel), up to 30 x 30 (second channel, a corner)."""
    down = pil_bicubic(picture(), 4)[0, 0]
    expected = [
        [125.61495971679688, 123.42510223388672, 125.33084106445312, 120.61297607421875],
        [131.05044555664062, 137.7985076904297, 109.60225677490234, 139.1415252685547],
        [125.90216827392578, 129.24757385253906, 117.2486343383789, 131.9752197265625],
        [133.651123046875, 116.14249420166016, 134.11837768554688, 125.40736389160156],
    ]
    assert torch.equal(down, torch.tensor(expected))
    up = pil_bicubic(picture(), 30)[0, 1, :2, :4]
    expected = [
        [93.11943817138672, 164.79832458496094, 90.82894897460938, 36.14431381225586],
        [79.46493530273438, 189.0405731201172, 161.36764526367188, 92.29658508300781],
    ]
    assert torch.equal(up, torch.tensor(expected))
    assert float((VARIANTS["clean_fast"].resize(picture(), 30) - pil_bicubic(picture(), 30)).abs().max()) < 1e-3


def test_tensorflow_resize_reads_without_the_half_pixel() -> None:
    """20 x 24 to 4 x 4 reads every fifth row and every sixth column, as recorded from torch-fidelity 0.4.0."""
    small = tensorflow_bilinear(picture(), 4)[0, 0]
    assert torch.equal(small, picture()[0, 0, ::5, ::6].float())
    half = tensorflow_bilinear(torch.tensor([[[[0, 8], [16, 24]]]]), 4)[0, 0]
    assert half.tolist() == [[0, 4, 8, 8], [8, 12, 16, 16], [16, 20, 24, 24], [16, 20, 24, 24]]


SHAPES = [(40, 40), (37, 61), (64, 33), (16, 16), (9, 30)]


PREPROCESS = [Preprocess(16), Preprocess(16, resize="tensor"), Preprocess(16, first_square=24)]


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
    ours = Preprocess(16, crop="floor")(pixels[None].float() / 255)
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
        ours = Preprocess(16, resize="tensor", antialias=antialias)
    else:
        ours = Preprocess(16, first_square=24 if name == "square" else None)
        if name == "square":
            picture = functional.center_crop(picture, min(picture.size))
            picture = functional.resize(picture, 24, interpolation=lanczos)
        expected = to_tensor(crop(transforms.Resize(16, interpolation=bicubic)(picture)))
    assert torch.allclose(ours(pixels[None].float() / 255)[0], normalised(expected), atol=2e-6)


def test_an_odd_margin_is_rounded_to_even_or_cut() -> None:
    """A strip of 16 x 19: 3 pixels too wide, so 1.5 on each side."""
    ramp = torch.arange(19.0).expand(1, 3, 16, 19) / 255
    first = {crop: float(Preprocess(16, crop=crop, mean=(0, 0, 0), std=(1, 1, 1))(ramp)[0, 0, 0, 0] * 255)
             for crop in ("round", "floor")}  # fmt: skip
    assert first == {"round": 2.0, "floor": 1.0}


def test_floats_overshoot_only_where_the_reference_does() -> None:
    edges = torch.zeros(1, 3, 64, 64)
    edges[..., 32:] = 1
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    assert Preprocess(16, resize="tensor", **plain)(edges).max() > 1
    assert Preprocess(16, resize="pil", **plain)(edges).max() == 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("preprocess", PREPROCESS, ids=["pil", "tensor", "square"])
def test_the_differentiable_twin_is_near(preprocess: Preprocess, shape: tuple[int, int]) -> None:
    images = smooth_images(*(3 * side for side in shape))
    difference = (preprocess.differentiable(images) - preprocess(images)).abs() * min(CLIP_STD) * 255
    assert difference.mean() < 0.7
    assert difference.max() < 3


@pytest.mark.parametrize("preprocess", PREPROCESS, ids=["pil", "tensor", "square"])
def test_the_twin_has_a_gradient_and_sees_no_more_than_a_picture_shows(preprocess: Preprocess) -> None:
    images = smooth_images(32, 32).requires_grad_()
    preprocess.differentiable(images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    loud = images.detach() * 3 - 1
    assert torch.equal(preprocess.differentiable(loud), preprocess.differentiable(loud.clamp(0, 1)))


def test_shapes_of_the_longer_side() -> None:
    assert resized_shape(1024, 1024, 224) == (224, 224)
    assert resized_shape(333, 500, 224) == (224, 336)
    assert resized_shape(500, 333, 224) == (336, 224)
