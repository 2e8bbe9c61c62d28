"""Pictures to pixels as the scorers' own code makes them, and a twin of it that gradients pass through.

Resizing is where numbers of one model part ways: on 8-bit pictures (PIL) or on floats, with or without an antialiasing filter,
with a crop that rounds or one that cuts off. Each is written once here, so scores depend on no image-processor back end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stepdistill.metrics.preprocess import CLIP_MEAN, CLIP_STD, quantise, to_pictures
from stepdistill.typing import Images


@dataclass(frozen=True)
class PictureTransform:
    """Shorter side to `size`, centre square, normalised."""

    size: int = 224
    resize: Literal["pil", "tensor"] = "pil"
    """pil: bicubic on 8 bits, rounded again (open_clip, OpenAI, ImageReward). tensor: on floats that may overshoot (HPSv2)."""
    antialias: bool = True
    """Of `tensor`: torchvision's default from 0.17 on; False is what it did before."""
    crop: Literal["round", "floor"] = "round"
    """Where an odd margin goes. round: torchvision's centre crop. floor: transformers'."""
    first_square: int | None = None
    """Before all else the centre square is brought to this side with a LANCZOS filter (DMD2)."""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __call__(self, images: Images) -> Tensor:
        """Normalised pixels (B, 3, size, size) of images in [0, 1], exactly those of 8-bit files of the images."""
        if self.resize == "tensor" and self.first_square is None:
            return self._normalise(self._cropped(self._resized(quantise(images))))
        pictures = [self._picture(picture) for picture in to_pictures(images)]
        pixels = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])
        return self._normalise(pixels.permute(0, 3, 1, 2).to(images.device).float() / 255)

    def differentiable(self, images: Images) -> Tensor:
        """The same within about one grey level, by differentiable steps on the images' device.

        Nothing is rounded, and the LANCZOS step is bicubic. Values outside [0, 1] count as 0 and 1, as a picture cannot show them.
        """
        pixels = images.float().clamp(0, 1)
        if self.first_square is not None:
            pixels = _scaled(self._cropped(pixels, min(pixels.shape[-2:])), self.first_square, antialias=True)
        pixels = self._cropped(self._resized(pixels))
        return self._normalise(pixels.clamp(0, 1) if self.resize == "pil" else pixels)

    def _picture(self, picture: Image.Image) -> Image.Image:
        if self.first_square is not None:
            picture = picture.crop(self._box(picture, min(picture.size)))
            picture = picture.resize((self.first_square,) * 2, Image.Resampling.LANCZOS)
        width, height = picture.size
        new_height, new_width = resized_shape(height, width, self.size)
        picture = picture.resize((new_width, new_height), Image.Resampling.BICUBIC)
        return picture.crop(self._box(picture, self.size))

    def _box(self, picture: Image.Image, side: int) -> tuple[int, int, int, int]:
        left, top = (self._margin(length - side) for length in picture.size)
        return left, top, left + side, top + side

    def _margin(self, rest: int) -> int:
        return round(rest / 2) if self.crop == "round" else rest // 2

    def _resized(self, images: Images) -> Images:
        return _scaled(images, self.size, antialias=self.antialias or self.resize == "pil")

    def _cropped(self, images: Images, side: int | None = None) -> Images:
        side = side or self.size
        top, left = (self._margin(length - side) for length in images.shape[-2:])
        return images[..., top : top + side, left : left + side]

    def _normalise(self, pixels: Tensor) -> Tensor:
        mean, std = pixels.new_tensor(self.mean), pixels.new_tensor(self.std)
        return (pixels - mean[:, None, None]) / std[:, None, None]


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width once the shorter is `size`; the longer is cut to a whole number, as torchvision and transformers do.

    >>> resized_shape(300, 401, 224), resized_shape(401, 300, 224)
    ((224, 299), (299, 224))
    """
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def _scaled(images: Images, size: int, *, antialias: bool) -> Images:
    height, width = images.shape[-2:]
    shape = resized_shape(height, width, size)
    if shape == (height, width):
        return images
    return F.interpolate(images, shape, mode="bicubic", antialias=antialias, align_corners=False)
