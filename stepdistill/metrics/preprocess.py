"""From images in [0, 1] to what a feature network was trained on, in torch alone: no torchvision, no processor back ends."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stepdistill.typing import Images

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def quantise(images: Images) -> Images:
    """Round to the 256 levels of an 8-bit file, so that kept tensors and saved pictures score the same.

    >>> quantise(torch.tensor([-1.0, 0.501, 2.0])) * 255
    tensor([  0., 128., 255.])
    """
    return (images.float() * 255).round().clamp(0, 255) / 255


def resize(images: Images, size: int) -> Images:
    """Shorter side to `size` with an antialiased bicubic filter, then the centre square. Images of that size pass unchanged."""
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    scale = size / min(height, width)
    shape = (round(height * scale), round(width * scale))
    images = F.interpolate(images.float(), shape, mode="bicubic", antialias=True, align_corners=False)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return images[..., top : top + size, left : left + size].clamp(0, 1)


@dataclass(frozen=True)
class Preprocess:
    """Quantise, resize, normalise."""

    size: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    @classmethod
    def from_folder(cls, folder: Path, size: int) -> Preprocess:
        """Mean and standard deviation of `preprocessor_config.json` where the folder has one, else CLIP's."""
        path = folder / "preprocessor_config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return cls(size, tuple(config.get("image_mean", CLIP_MEAN)), tuple(config.get("image_std", CLIP_STD)))

    def __call__(self, images: Images) -> Tensor:
        """Normalised pixels (B, 3, size, size)."""
        pixels = resize(quantise(images), self.size)
        mean, std = pixels.new_tensor(self.mean), pixels.new_tensor(self.std)
        return (pixels - mean[:, None, None]) / std[:, None, None]


def to_pictures(images: Images) -> list[Image.Image]:
    """Images in [0, 1] as 8-bit PIL pictures."""
    pixels = (
        (images.float() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous()
    )
    return [Image.fromarray(picture.numpy()) for picture in pixels]
