"""Preprocessing in torch and PIL: 8-bit conversion, crops, patches, and the resizes behind published numbers.

Two programs that run the same network disagree by their resize: on 8-bit pictures or on floats, antialiased or not, with
the crop offset rounded or floored. Every variant is written here, so no number depends on torchvision or on an image
processor's backend.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stepdistill.typing import Images

# Channel statistics of the training sets: OpenAI's CLIP (shared by open_clip and BLIP), and ImageNet (DINOv2).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ImagesOrPictures = Tensor | Sequence[Image.Image]
"""Images (B, 3, H, W), float in [0, 1] or uint8; or PIL pictures, which may differ in size."""

Offset = Literal["round", "floor"]
"""Offset of a centre crop with an odd margin. `round`: half to even, as torchvision. `floor`: as transformers and CMMD."""


def to_bytes(images: Images, *, rounding: Literal["round", "truncate"] = "round") -> Tensor:
    """Convert images in [0, 1] to uint8; uint8 input is returned unchanged.

    diffusers rounds. DMD2's evaluation script truncates, which is half a grey level darker on average.

    >>> to_bytes(torch.tensor([-1.0, 0.501, 2.0])), to_bytes(torch.tensor([0.501]), rounding="truncate")
    (tensor([  0, 128, 255], dtype=torch.uint8), tensor([127], dtype=torch.uint8))
    """
    if images.dtype == torch.uint8:
        return images
    levels = images.float() * 255
    return (levels.round() if rounding == "round" else levels).clamp(0, 255).to(torch.uint8)


def quantise(images: Images) -> Images:
    """Round to the 256 levels of an 8-bit file, so that tensors and saved pictures score the same.

    >>> quantise(torch.tensor([-1.0, 0.501, 2.0])) * 255
    tensor([  0., 128., 255.])
    """
    return to_bytes(images).float() / 255


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract the channel means of pixels (B, 3, H, W) in [0, 1] and divide by the standard deviations."""
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]


def to_pictures(images: Images) -> list[Image.Image]:
    """Convert images in [0, 1], or uint8, to 8-bit PIL pictures."""
    pixels = to_bytes(images).permute(0, 2, 3, 1).cpu().contiguous()
    return [Image.fromarray(picture.numpy()) for picture in pixels]


def of_pictures(pictures: Sequence[Image.Image]) -> Tensor:
    """Stack pictures of one size as uint8 images (B, 3, H, W)."""
    arrays = np.stack([np.array(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()


def as_pictures(images: ImagesOrPictures) -> list[Image.Image]:
    """Return PIL pictures for either kind of input."""
    return to_pictures(images) if isinstance(images, Tensor) else list(images)


def same_size_batches(images: ImagesOrPictures) -> list[Tensor]:
    """Return uint8 batches in order: the whole tensor, or one batch for each run of pictures of one size."""
    if isinstance(images, Tensor):
        return [to_bytes(images)]
    runs: list[list[Image.Image]] = []
    for picture in images:
        if runs and runs[-1][0].size == picture.size:
            runs[-1].append(picture)
        else:
            runs.append([picture])
    return [of_pictures(run) for run in runs]


def crop_corner(width: int, height: int, size: int, offset: Offset) -> tuple[int, int]:
    """Left and top of the `size` x `size` centre crop.

    >>> crop_corner(25, 27, 20, "round"), crop_corner(25, 27, 20, "floor")
    ((2, 4), (2, 3))
    """
    left, top = (width - size) / 2, (height - size) / 2
    return (round(left), round(top)) if offset == "round" else (int(left), int(top))


def centre_crop(picture: Image.Image, size: int, *, offset: Offset = "round") -> Image.Image:
    """Crop the centre `size` x `size` pixels."""
    left, top = crop_corner(*picture.size, size, offset)
    return picture.crop((left, top, left + size, top + size))


def square(
    picture: Image.Image, size: int, *, resample: Image.Resampling = Image.Resampling.LANCZOS, offset: Offset = "round"
) -> Image.Image:
    """Crop the centre square and resize it with PIL to `size` x `size`, in 8 bits.

    With LANCZOS to 256 or 512 this is what the COCO protocols of GigaGAN, DMD and DMD2 apply to real and generated pictures.

    >>> square(Image.new("RGB", (40, 20)), 8).size
    (8, 8)
    """
    return centre_crop(picture, min(picture.size), offset=offset).resize((size, size), resample)


def patches(
    images: ImagesOrPictures,
    *,
    size: int = 299,
    num_patches: int = 1,
    mode: Literal["center", "random"] = "center",
    seed: int = 0,
) -> list[Image.Image]:
    """Cut patches of `size` x `size` pixels at full resolution, all patches of a picture in a row.

    A picture with a side below `size` is kept whole, as in DMD2. Random positions depend on the seed and on the picture's
    bytes only, so neither batch size nor rank changes them.
    """
    cut: list[Image.Image] = []
    for picture in as_pictures(images):
        if min(picture.size) < size:
            cut += [picture] * num_patches
        elif mode == "center":
            cut.append(centre_crop(picture, size))
        else:
            rng = np.random.default_rng((seed, zlib.crc32(picture.tobytes())))
            for _ in range(num_patches):
                left, top = (int(rng.integers(side - size + 1)) for side in picture.size)
                cut.append(picture.crop((left, top, left + size, top + size)))
    return cut


# Resizes of the FID variants: uint8 images to float32 levels in 0..255, without rounding. Fine texture disappears in an
# antialiased resize and aliases into noise in the others (https://arxiv.org/abs/2104.11222).


def pil_bicubic(images: Tensor, size: int) -> Tensor:
    """Resize as clean-fid: PIL's antialiased bicubic filter on each channel as a float32 picture, clipped to 0..255.

    Runs on the CPU, picture by picture: slow, and the one to publish.
    """
    channels = images.cpu().float().flatten(0, 1).numpy()
    resized = [Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC) for each in channels]
    stacked = torch.from_numpy(np.stack([np.asarray(each) for each in resized]))
    return stacked.clamp(0, 255).unflatten(0, images.shape[:2]).to(images.device)


def torch_resize(images: Tensor, size: int, *, mode: Literal["bilinear", "bicubic"], antialias: bool) -> Tensor:
    """Resize with `F.interpolate`, half-pixel centres. Bicubic overshoots are kept."""
    return F.interpolate(images.float(), (size, size), mode=mode, antialias=antialias, align_corners=False)


def tensorflow_bilinear(images: Tensor, size: int) -> Tensor:
    """Resize as TensorFlow 1: no antialiasing, and output i samples `i * in / out`, without the half-pixel shift.

    >>> tensorflow_bilinear(torch.tensor([[[[0, 10]]]], dtype=torch.uint8), 4)[0, 0, 0]
    tensor([ 0.,  5., 10., 10.])
    """
    images = images.float()

    def taps(length: int) -> tuple[Tensor, Tensor, Tensor]:
        source = torch.arange(size, dtype=images.dtype, device=images.device) * (length / size)
        left = source.floor().long()
        return left, (left + 1).clamp_max(length - 1), source - left

    (top, bottom, down), (left, right, across) = (taps(length) for length in images.shape[-2:])
    # a + (b - a) * w in this order, columns first: torch.lerp rounds differently from TensorFlow's kernel.
    rows = images[..., left] + (images[..., right] - images[..., left]) * across
    return rows[..., top, :] + (rows[..., bottom, :] - rows[..., top, :]) * down[:, None]


@dataclass(frozen=True)
class Preprocess:
    """CLIP-style preprocessing: resize the shorter side to `size`, crop the centre square, normalise."""

    size: int = 224
    resize: Literal["pil", "tensor"] = "pil"
    """`pil`: bicubic on 8 bits, rounded (open_clip, OpenAI, ImageReward). `tensor`: on floats, overshoots kept (HPSv2)."""
    antialias: bool = True
    """For `tensor` only. False is torchvision's default before 0.17."""
    crop: Offset = "round"
    first_square: int | None = None
    """Side of the LANCZOS `square` applied first (DMD2); None for no such step."""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __call__(self, images: ImagesOrPictures) -> Tensor:
        """Return normalised pixels (B, 3, size, size), equal for images and for their 8-bit files."""
        if self.first_square is not None:
            images = [square(picture, self.first_square, offset=self.crop) for picture in as_pictures(images)]
        if self.resize == "tensor":
            parts = [self._resized(part.float() / 255) for part in same_size_batches(images)]
            pixels = torch.cat([self._cropped(part, self.size) for part in parts])
        else:
            pixels = of_pictures([self._picture(picture) for picture in as_pictures(images)]).float() / 255
        return normalise(pixels, self.mean, self.std)

    def differentiable(self, images: Images) -> Tensor:
        """Approximate `__call__` by differentiable steps on the images' device, within about one grey level.

        Nothing is rounded and the LANCZOS step is bicubic. Values are clamped to [0, 1], as in a saved picture.
        """
        pixels = images.float().clamp(0, 1)
        if self.first_square is not None:
            pixels = _shorter_side(self._cropped(pixels, min(pixels.shape[-2:])), self.first_square)
        pixels = self._cropped(self._resized(pixels), self.size)
        return normalise(pixels.clamp(0, 1) if self.resize == "pil" else pixels, self.mean, self.std)

    def _picture(self, picture: Image.Image) -> Image.Image:
        height, width = resized_shape(picture.height, picture.width, self.size)
        resized = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        return centre_crop(resized, self.size, offset=self.crop)

    def _resized(self, images: Images) -> Images:
        return _shorter_side(images, self.size, antialias=self.antialias or self.resize == "pil")

    def _cropped(self, images: Images, side: int) -> Images:
        left, top = crop_corner(images.shape[-1], images.shape[-2], side, self.crop)
        return images[..., top : top + side, left : left + side]


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after resizing the shorter side to `size`; the longer is truncated, as in torchvision.

    >>> resized_shape(300, 401, 224), resized_shape(401, 300, 224)
    ((224, 299), (299, 224))
    """
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def _shorter_side(images: Images, size: int, *, antialias: bool = True) -> Images:
    height, width = images.shape[-2:]
    shape = resized_shape(height, width, size)
    if shape == (height, width):
        return images
    return F.interpolate(images, shape, mode="bicubic", antialias=antialias, align_corners=False)
