"""FID's Inception v3 (TensorFlow's weights of 2015-12-05, 2048 pooled features), and the ways in which images are fed to it.

The graph differs from torchvision's: average pools exclude padding, the last block uses max pooling, and there is no
auxiliary head (https://github.com/mseitzer/pytorch-fid, Apache-2.0, whose conversion of the weights this module reads).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepdistill.errors import UserError
from stepdistill.metrics.networks.base import FeatureNetwork
from stepdistill.metrics.networks.weights import Location, WeightFile, read_tensors, sha256
from stepdistill.metrics.preprocess import (
    ImagesOrPictures,
    pil_bicubic,
    same_size_batches,
    tensorflow_bilinear,
    torch_resize,
)

INCEPTION_WEIGHTS = WeightFile(
    "pt_inception-2015-12-05-6726825d.pth",
    "6726825d",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
)

Kernel = int | tuple[int, int]
Pool = Literal["average", "maximum", "halve"]
Convolution = tuple[str, int, Kernel]
"""Name, output channels and kernel."""
Branch = tuple[list[Convolution], list[Convolution]]
"""A trunk of convolutions in sequence, and tips in parallel on its output."""


def branch(*steps: Convolution) -> Branch:
    """A branch with a single tip."""
    return list(steps[:-1]), list(steps[-1:])


class ConvBN(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Kernel, *, stride: int = 1, is_padded: bool = True
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if is_padded else 0
        self.conv = nn.Conv2d(in_channels, out_channels, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)  # TensorFlow's default

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Branches of convolutions and a pool, concatenated over channels.

    With `pool="halve"` pool and tips have stride 2 and no padding. Otherwise the size is kept, and a convolution with `pooled`
    channels follows the pool.
    """

    def __init__(self, in_channels: int, branches: list[Branch], pool: Pool, pooled: int = 0) -> None:
        super().__init__()
        self.branches, self.pool = branches, pool
        is_halved = pool == "halve"
        for trunk, tips in branches:
            channels = in_channels
            for name, width, kernel in trunk:
                self.add_module(name, ConvBN(channels, width, kernel))
                channels = width
            for name, width, kernel in tips:
                stride = 2 if is_halved else 1
                self.add_module(name, ConvBN(channels, width, kernel, stride=stride, is_padded=not is_halved))
        if pooled:
            self.branch_pool = ConvBN(in_channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for trunk, tips in self.branches:
            y = x
            for name, _, _ in trunk:
                y = self.get_submodule(name)(y)
            outputs += [self.get_submodule(name)(y) for name, _, _ in tips]
        return torch.cat([*outputs, self._pooled(x)], 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "halve":
            return F.max_pool2d(x, 3, stride=2)
        if self.pool == "maximum":
            return self.branch_pool(F.max_pool2d(x, 3, stride=1, padding=1))
        # TensorFlow averages over the pixels inside the image only.
        return self.branch_pool(F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False))


def _mixed_5(in_channels: int, pooled: int) -> Mixed:
    branches = [
        branch(("branch1x1", 64, 1)),
        branch(("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
        branch(("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
    ]
    return Mixed(in_channels, branches, "average", pooled)


def _mixed_6a(in_channels: int) -> Mixed:
    branches = [
        branch(("branch3x3", 384, 3)),
        branch(("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
    ]
    return Mixed(in_channels, branches, "halve")


def _mixed_6(in_channels: int, width: int) -> Mixed:
    wide, tall = (1, 7), (7, 1)
    double = [("branch7x7dbl_1", width, 1), ("branch7x7dbl_2", width, tall), ("branch7x7dbl_3", width, wide)]
    branches = [
        branch(("branch1x1", 192, 1)),
        branch(("branch7x7_1", width, 1), ("branch7x7_2", width, wide), ("branch7x7_3", 192, tall)),
        branch(*double, ("branch7x7dbl_4", width, tall), ("branch7x7dbl_5", 192, wide)),
    ]
    return Mixed(in_channels, branches, "average", pooled=192)


def _mixed_7a(in_channels: int) -> Mixed:
    seven = [("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1))]
    branches = [branch(("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)), branch(*seven, ("branch7x7x3_4", 192, 3))]
    return Mixed(in_channels, branches, "halve")


def _mixed_7(in_channels: int, pool: Pool) -> Mixed:
    def fork(name: str) -> list[Convolution]:
        return [(f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))]

    branches: list[Branch] = [
        branch(("branch1x1", 320, 1)),
        ([("branch3x3_1", 384, 1)], fork("branch3x3_2")),
        ([("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3)], fork("branch3x3dbl_3")),
    ]
    return Mixed(in_channels, branches, pool, pooled=192)


class InceptionV3(nn.Module):
    """The network, with random weights until `load_inception` reads the published ones.

    Maps pixels (B, 3, 299, 299) in [-1, 1] to features (B, 2048). Modules are named as in the published state dict.
    """

    num_features = 2048
    side = 299

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvBN(3, 32, 3, stride=2, is_padded=False)
        self.Conv2d_2a_3x3 = ConvBN(32, 32, 3, is_padded=False)
        self.Conv2d_2b_3x3 = ConvBN(32, 64, 3)
        self.Conv2d_3b_1x1 = ConvBN(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvBN(80, 192, 3, is_padded=False)
        self.Mixed_5b = _mixed_5(192, pooled=32)
        self.Mixed_5c = _mixed_5(256, pooled=64)
        self.Mixed_5d = _mixed_5(288, pooled=64)
        self.Mixed_6a = _mixed_6a(288)
        for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
            self.add_module(f"Mixed_6{letter}", _mixed_6(768, width))
        self.Mixed_7a = _mixed_7a(768)
        self.Mixed_7b = _mixed_7(1280, "average")
        self.Mixed_7c = _mixed_7(2048, "maximum")
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pixels)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean((2, 3))


def load_inception(path: Location = None) -> InceptionV3:
    """Load the weights of 2015-12-05, located by `WeightFile.locate`.

    Raises:
        UserError: the weights are missing, or belong to another network.
    """
    file = INCEPTION_WEIGHTS.locate(path)
    network = InceptionV3()
    missing, unexpected = network.load_state_dict(read_tensors(file), strict=False)
    # Features end before the classifier; the counters of the batch norms are not used in evaluation.
    unexpected = [name for name in unexpected if not name.startswith("fc.")]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise UserError(
            f"{file} is not FID's Inception ({(missing + unexpected)[0]} does not match): give {INCEPTION_WEIGHTS.name}, "
            "the conversion that pytorch-fid publishes"
        )
    return network


@dataclass(frozen=True)
class InceptionVariant:
    """How uint8 images become the network's input."""

    resize: Callable[[Tensor, int], Tensor]
    scaling: Literal["(x-128)/128", "2x/255-1"] = "(x-128)/128"

    def __call__(self, images: Tensor, side: int) -> Tensor:
        """Convert uint8 images (B, 3, H, W) to pixels (B, 3, side, side)."""
        levels = self.resize(images, side)
        return (levels - 128) / 128 if self.scaling == "(x-128)/128" else 2 * (levels / 255) - 1


def _clean_fast(images: Tensor, size: int) -> Tensor:
    return torch_resize(images, size, mode="bicubic", antialias=True).clamp(0, 255)


VARIANTS = {
    "clean": InceptionVariant(pil_bicubic),  # clean-fid: DMD, DMD2, the GigaGAN line
    "legacy_tf": InceptionVariant(tensorflow_bilinear),  # TensorFlow, torch-fidelity, StyleGAN, EDM
    "pytorch_fid": InceptionVariant(partial(torch_resize, mode="bilinear", antialias=False), "2x/255-1"),
    "torchmetrics": InceptionVariant(partial(torch_resize, mode="bilinear", antialias=True)),
    "clean_fast": InceptionVariant(_clean_fast),  # `clean` within 0.001 levels, on the images' device
}
"""FID variants by name; they do not agree with each other."""


class InceptionFeatures(FeatureNetwork):
    """The 2048 features of FID under one of `VARIANTS`, from 8-bit pictures; float images are rounded."""

    def __init__(self, network: InceptionV3, variant: str = "clean", *, weights_digest: str | None = None) -> None:
        super().__init__()
        self.network = network
        self.variant = VARIANTS[variant]
        self.weights_digest = weights_digest
        self.name = f"inception/{variant}"
        self.num_features = network.num_features

    @classmethod
    def load(cls, variant: str = "clean", weights: Location = None) -> InceptionFeatures:
        """Load the published weights, located by `WeightFile.locate`."""
        file = INCEPTION_WEIGHTS.locate(weights)
        return cls(load_inception(file), variant, weights_digest=sha256(file)[:16])

    def protocol(self) -> dict[str, Any]:
        return super().protocol() | {"weights": self.weights_digest}

    @torch.no_grad()
    def forward(self, images: ImagesOrPictures) -> Tensor:
        device = next(self.network.parameters()).device
        parts = [self.variant(batch.to(device), self.network.side) for batch in same_size_batches(images)]
        return self.network(torch.cat(parts)).float()
