"""Pictures to pixels as the scorers' own code makes them, and a twin of it that gradients pass through.

Resizing is where numbers of one model part ways: on 8-bit pictures (PIL) or on floats, with or without an antialiasing filter,
with a crop that rounds or one that cuts off. Each is written once here, so scores depend on no image-processor back end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stepdistill.metrics.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    ImagesOrPictures,
    as_pictures,
    centre_crop,
    normalise,
    of_pictures,
    same_size_batches,
    square,
)
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

    def __call__(self, images: ImagesOrPictures) -> Tensor:
        """Normalised pixels (B, 3, size, size) of images in [0, 1] or pictures, exactly those of 8-bit files of them."""
        if self.first_square is not None:
            images = [square(picture, self.first_square, offset=self.crop) for picture in as_pictures(images)]
        if self.resize == "tensor":
            parts = [self._resized(part.float() / 255) for part in same_size_batches(images)]
            pixels = torch.cat([self._cropped(part, self.size) for part in parts])
        else:
            pixels = of_pictures([self._picture(picture) for picture in as_pictures(images)]).float() / 255
        return normalise(pixels, self.mean, self.std)

    def differentiable(self, images: Images) -> Tensor:
        """The same within about one grey level, by differentiable steps on the images' device.

        Nothing is rounded, and the LANCZOS step is bicubic. Values outside [0, 1] count as 0 and 1, as a picture cannot show them.
        """
        pixels = images.float().clamp(0, 1)
        if self.first_square is not None:
            pixels = _scaled(self._cropped(pixels, min(pixels.shape[-2:])), self.first_square, antialias=True)
        pixels = self._cropped(self._resized(pixels), self.size)
        return normalise(pixels.clamp(0, 1) if self.resize == "pil" else pixels, self.mean, self.std)

    def _picture(self, picture: Image.Image) -> Image.Image:
        height, width = resized_shape(picture.height, picture.width, self.size)
        resized = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        return centre_crop(resized, self.size, offset=self.crop)

    def _resized(self, images: Images) -> Images:
        return _scaled(images, self.size, antialias=self.antialias or self.resize == "pil")

    def _cropped(self, images: Images, side: int) -> Images:
        margins = [(length - side) / 2 for length in images.shape[-2:]]
        top, left = (round(margin) if self.crop == "round" else int(margin) for margin in margins)
        return images[..., top : top + side, left : left + side]


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
