"""From images in [0, 1] to what a feature network was trained on, in torch alone: no torchvision, no processor back ends."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stepdistill.typing import Images

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ImagesOrPictures = Tensor | Sequence[Image.Image]
"""Images (B, 3, H, W), float in [0, 1] or uint8; or PIL pictures, which may differ in size."""


def to_bytes(images: Images, *, rounding: Literal["round", "truncate"] = "round") -> Tensor:
    """Images in [0, 1] as uint8; uint8 passes unchanged.

    diffusers rounds; the evaluation script of DMD2 truncates, half a grey level darker on average.

    >>> to_bytes(torch.tensor([-1.0, 0.501, 2.0])), to_bytes(torch.tensor([0.501]), rounding="truncate")
    (tensor([  0, 128, 255], dtype=torch.uint8), tensor([127], dtype=torch.uint8))
    """
    if images.dtype == torch.uint8:
        return images
    levels = images.float() * 255
    return (levels.round() if rounding == "round" else levels).clamp(0, 255).to(torch.uint8)


def quantise(images: Images) -> Images:
    """Round to the 256 levels of an 8-bit file, so that kept tensors and saved pictures score the same.

    >>> quantise(torch.tensor([-1.0, 0.501, 2.0])) * 255
    tensor([  0., 128., 255.])
    """
    return to_bytes(images).float() / 255


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
        return self.differentiable(quantise(images))

    def differentiable(self, images: Images) -> Tensor:
        """The same without rounding to 8 bits, which has no gradient."""
        return normalise(resize(images.float(), self.size), self.mean, self.std)


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels (B, 3, H, W) in [0, 1] less the mean, over the standard deviation of each channel."""
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]


def to_pictures(images: Images) -> list[Image.Image]:
    """Images in [0, 1], or uint8, as 8-bit PIL pictures."""
    pixels = to_bytes(images).permute(0, 2, 3, 1).cpu().contiguous()
    return [Image.fromarray(picture.numpy()) for picture in pixels]


def of_pictures(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as uint8 images (B, 3, H, W)."""
    arrays = np.stack([np.array(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()


def as_pictures(images: ImagesOrPictures) -> list[Image.Image]:
    """PIL pictures of either kind of input."""
    return to_pictures(images) if isinstance(images, Tensor) else list(images)


def same_size_batches(images: ImagesOrPictures) -> list[Tensor]:
    """uint8 images in order, in batches that torch can stack: all of a tensor, pictures in runs of one size."""
    if isinstance(images, Tensor):
        return [to_bytes(images)]
    runs: list[list[Image.Image]] = []
    for picture in images:
        if runs and runs[-1][0].size == picture.size:
            runs[-1].append(picture)
        else:
            runs.append([picture])
    return [of_pictures(run) for run in runs]


def square(
    picture: Image.Image,
    size: int,
    *,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
    offset: Literal["round", "floor"] = "round",
) -> Image.Image:
    """The centre square of a picture, resized by PIL to `size` x `size` levels of 8 bits.

    With LANCZOS to 256 or 512 this is what the COCO protocols of GigaGAN, DMD and DMD2 do to both sides. An odd margin is cut as
    torchvision does (`round`, half to even) or on the left and above (`floor`).

    >>> square(Image.new("RGB", (40, 20)), 8).size
    (8, 8)
    """
    side = min(picture.size)
    return centre_crop(picture, side, offset=offset).resize((size, size), resample)


def centre_crop(
    picture: Image.Image, size: int, *, offset: Literal["round", "floor"] = "round"
) -> Image.Image:
    """The `size` x `size` pixels in the middle."""
    margins = [(side - size) / 2 for side in picture.size]
    left, top = (round(margin) if offset == "round" else int(margin) for margin in margins)
    return picture.crop((left, top, left + size, top + size))


def patches(
    images: ImagesOrPictures,
    *,
    size: int = 299,
    num_patches: int = 1,
    mode: Literal["center", "random"] = "center",
    seed: int = 0,
) -> list[Image.Image]:
    """Patches of `size` x `size` pixels at full resolution, nothing resized; of each picture its patches in turn.

    A picture smaller than a patch on either side is left as it is, as in DMD2. Where a random patch lies depends on the seed
    and on the picture's own bytes alone.
    """
    cut: list[Image.Image] = []
    for picture in as_pictures(images):
        if min(picture.size) < size:
            cut += [picture] * num_patches
        elif mode == "center":
            cut.append(centre_crop(picture, size))
        else:
            rng = np.random.default_rng((seed, zlib.crc32(picture.tobytes())))
            corners = [
                [int(rng.integers(side - size + 1)) for side in picture.size] for _ in range(num_patches)
            ]
            cut += [picture.crop((left, top, left + size, top + size)) for left, top in corners]
    return cut
