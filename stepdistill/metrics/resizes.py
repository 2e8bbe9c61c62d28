"""The resizes of the FID variants, from uint8 images to float32 levels of 0 to 255 at the network's size; none rounds afterwards.

They do not agree: a picture of 1024 pixels loses its fine texture in an antialiased resize and turns it into noise in the others,
https://arxiv.org/abs/2104.11222. So every number names its variant.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def pil_bicubic(images: Tensor, size: int) -> Tensor:
    """clean-fid's: each channel a 32-bit float picture, PIL's antialiased bicubic filter, clipped to 0..255.

    PIL works on the CPU, one picture after the other: the slowest of them, and the one to publish.
    """
    channels = images.cpu().float().flatten(0, 1).numpy()
    resized = [Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC) for each in channels]
    stacked = torch.from_numpy(np.stack([np.asarray(each) for each in resized]))
    return stacked.clamp(0, 255).unflatten(0, images.shape[:2]).to(images.device)


def clean_on_device(images: Tensor, size: int) -> Tensor:
    """The same filter in torch, on the images' device: within 0.001 of `pil_bicubic`, for measuring while training."""
    return torch_bicubic_antialiased(images, size).clamp(0, 255)


def torch_bicubic_antialiased(images: Tensor, size: int) -> Tensor:
    """EDM2's for DINOv2: bicubic, antialiased, overshoots kept."""
    return F.interpolate(images.float(), (size, size), mode="bicubic", antialias=True, align_corners=False)


def tensorflow_bilinear(images: Tensor, size: int) -> Tensor:
    """TensorFlow 1's: no antialiasing, and pixel i reads at `i * in / out` without the half-pixel shift.

    >>> tensorflow_bilinear(torch.tensor([[[[0, 10]]]], dtype=torch.uint8), 4)[0, 0, 0]
    tensor([ 0.,  5., 10., 10.])
    """
    images = images.float()
    rows, columns = (_taps(length, size, images) for length in images.shape[-2:])
    left, right = images[..., columns[0]], images[..., columns[1]]
    across = left + (right - left) * columns[2]  # the kernel's own order: torch.lerp rounds otherwise
    top, bottom = across[..., rows[0], :], across[..., rows[1], :]
    return top + (bottom - top) * rows[2][:, None]


def _taps(length: int, size: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left neighbour, right neighbour and weight of the right one, for each of `size` outputs."""
    source = torch.arange(size, dtype=like.dtype, device=like.device) * (length / size)
    left = source.floor().long()
    return left, (left + 1).clamp_max(length - 1), source - left


def torch_bilinear(images: Tensor, size: int) -> Tensor:
    """pytorch-fid's: bilinear, half-pixel centres, no antialiasing."""
    return F.interpolate(images.float(), (size, size), mode="bilinear", align_corners=False)


def torch_bilinear_antialiased(images: Tensor, size: int) -> Tensor:
    """torchmetrics' default: bilinear, half-pixel centres, antialiased."""
    return F.interpolate(images.float(), (size, size), mode="bilinear", align_corners=False, antialias=True)
