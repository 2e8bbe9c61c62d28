"""Resizes, crops and LPIPS against clean-fid, torch-fidelity, torchvision and lpips."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from stepdistill.metrics.networks.lpips import LPIPS, TRUNKS
from stepdistill.metrics.preprocess import centre_crop, pil_bicubic, square, tensorflow_bilinear, to_pictures
from stepdistill.testing.networks import fill_at_random


@pytest.mark.parametrize("size", [299, 40])
def test_clean_resize_is_bit_equal(images: torch.Tensor, size: int) -> None:
    from cleanfid.resize import make_resizer

    resize = make_resizer("PIL", False, "bicubic", (size, size))
    theirs = np.stack([resize(each.permute(1, 2, 0).numpy()) for each in images]).transpose(0, 3, 1, 2)
    assert np.array_equal(pil_bicubic(images, size).numpy(), theirs)


@pytest.mark.parametrize("size", [299, 40])
def test_tensorflow_resize_is_bit_equal(images: torch.Tensor, size: int) -> None:
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    theirs = interpolate_bilinear_2d_like_tensorflow1x(images.float(), (size, size), align_corners=False)
    assert torch.equal(tensorflow_bilinear(images, size), theirs)


@pytest.mark.parametrize(("width", "height"), [(40, 31), (41, 30), (33, 30), (30, 30)])
def test_crops_are_torchvisions(width: int, height: int) -> None:
    from torchvision.transforms.functional import center_crop

    picture = to_pictures(torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)))[0]
    assert centre_crop(picture, 17).tobytes() == center_crop(picture, 17).tobytes()
    theirs = center_crop(picture, min(picture.size)).resize((16, 16), Image.Resampling.LANCZOS)
    assert square(picture, 16).tobytes() == theirs.tobytes()


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips(net: Literal["vgg", "alex"], images: torch.Tensor, tmp_path) -> None:
    import lpips
    from torchvision import models

    theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    trunk = {"vgg": models.vgg16, "alex": models.alexnet}[net](weights=None).features
    fill_at_random(trunk)
    state = {f"features.{name}": tensor for name, tensor in trunk.state_dict().items()}
    torch.save(state, tmp_path / "trunk.pth")
    slices = [part for name, part in theirs.net.named_children() if name.startswith("slice")]
    for part in slices:
        part.load_state_dict({name: trunk.state_dict()[name] for name in part.state_dict()})
    ours = LPIPS.load(net, trunk=tmp_path / "trunk.pth")
    first, second = images[:3].float() / 255, images[3:].float() / 255
    expected = theirs(first, second, normalize=True).flatten()
    assert torch.allclose(ours(first, second), expected, rtol=1e-5)
    unscaled = LPIPS.load(net, trunk=tmp_path / "trunk.pth", rescale=False)
    assert torch.allclose(unscaled(first, second), theirs(first, second).flatten(), rtol=1e-5)
    assert not torch.allclose(ours(first, second), unscaled(first, second), rtol=1e-2)


def test_weights_are_those_torchvision_names() -> None:
    from torchvision.models import AlexNet_Weights, VGG16_Weights

    named = {"vgg": VGG16_Weights.IMAGENET1K_V1, "alex": AlexNet_Weights.IMAGENET1K_V1}
    for net, weights in named.items():
        assert TRUNKS[net]().weights.url == weights.url
