"""The Inception network that FID is defined on: Inception v3 as TensorFlow trained it on 2015-12-05, up to its 2048 pooled features.

The graph differs from torchvision's: padding is left out of average pools, the last block pools by maximum, and there is no auxiliary
head (the patches of https://github.com/mseitzer/pytorch-fid, Apache-2.0, whose conversion of the weights this module reads).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepdistill.errors import UserError
from stepdistill.metrics.networks.weights import WeightFile, read_tensors

INCEPTION_WEIGHTS = WeightFile(
    name="pt_inception-2015-12-05-6726825d.pth",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d",
)

Kernel = int | tuple[int, int]
Pool = Literal["average", "maximum", "halve"]


class Convolution(NamedTuple):
    """One convolution of a mixed block."""

    name: str
    channels: int
    kernel: Kernel


class Branch(NamedTuple):
    """A trunk of convolutions one after the other, then tips side by side on its output."""

    trunk: list[Convolution]
    tips: list[Convolution]


def branch(*steps: tuple[str, int, Kernel]) -> Branch:
    """A branch without a fork."""
    trunk = [Convolution(*step) for step in steps]
    return Branch(trunk[:-1], trunk[-1:])


class ConvBN(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Kernel, *, stride: int = 1, is_padded: bool = True
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if is_padded else 0
        self.conv = nn.Conv2d(in_channels, out_channels, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H', W')."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Branches of convolutions and a pool, concatenated over channels.

    With `pool="halve"` the pool and the tips have stride 2 and no padding; otherwise the size is kept, and a convolution
    with `pooled` channels follows the pool.
    """

    def __init__(self, in_channels: int, branches: list[Branch], pool: Pool, pooled: int = 0) -> None:
        super().__init__()
        self.branches, self.pool = branches, pool
        self.out_channels = pooled if pooled else in_channels
        is_halved = pool == "halve"
        for trunk, tips in branches:
            channels = in_channels
            for name, width, kernel in trunk:
                self.add_module(name, ConvBN(channels, width, kernel))
                channels = width
            for name, width, kernel in tips:
                stride = 2 if is_halved else 1
                self.add_module(name, ConvBN(channels, width, kernel, stride=stride, is_padded=not is_halved))
                self.out_channels += width
        if pooled:
            self.branch_pool = ConvBN(in_channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H', W')."""
        outputs = []
        for trunk, tips in self.branches:
            y = x
            for step in trunk:
                y = self.get_submodule(step.name)(y)
            outputs += [self.get_submodule(tip.name)(y) for tip in tips]
        return torch.cat([*outputs, self._pooled(x)], 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "halve":
            return F.max_pool2d(x, 3, stride=2)
        if self.pool == "maximum":
            return self.branch_pool(F.max_pool2d(x, 3, stride=1, padding=1))
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
    branches = [
        branch(("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)),
        branch(*seven, ("branch7x7x3_4", 192, 3)),
    ]
    return Mixed(in_channels, branches, "halve")


def _mixed_7(in_channels: int, pool: Pool) -> Mixed:
    def fork(name: str) -> list[Convolution]:
        return [Convolution(f"{name}a", 384, (1, 3)), Convolution(f"{name}b", 384, (3, 1))]

    double = [Convolution("branch3x3dbl_1", 448, 1), Convolution("branch3x3dbl_2", 384, 3)]
    branches = [
        branch(("branch1x1", 320, 1)),
        Branch([Convolution("branch3x3_1", 384, 1)], fork("branch3x3_2")),
        Branch(double, fork("branch3x3dbl_3")),
    ]
    return Mixed(in_channels, branches, pool, pooled=192)


class InceptionV3(nn.Module):
    """The network with random weights; `load_inception` reads the published ones.

    Pixels (B, 3, 299, 299) in [-1, 1] to features (B, 2048). Module names are those of the published state dict.
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
        self.Mixed_6b = _mixed_6(768, width=128)
        self.Mixed_6c = _mixed_6(768, width=160)
        self.Mixed_6d = _mixed_6(768, width=160)
        self.Mixed_6e = _mixed_6(768, width=192)
        self.Mixed_7a = _mixed_7a(768)
        self.Mixed_7b = _mixed_7(1280, "average")
        self.Mixed_7c = _mixed_7(2048, "maximum")
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pooled features (B, 2048)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pixels)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean((2, 3))


def load_inception(path: str | Path | None = None) -> InceptionV3:
    """The network with the weights of 2015-12-05, from `path` or wherever `INCEPTION_WEIGHTS` is found.

    Raises:
        UserError: no weights, or those of another network.
    """
    file = INCEPTION_WEIGHTS.locate(path)
    tensors = read_tensors(file)
    network = InceptionV3()
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    # The classifier is not part of the features; the batch norms' counters are not used in evaluation.
    unexpected = [name for name in unexpected if not name.startswith("fc.")]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        odd = (missing + unexpected)[0]
        raise UserError(
            f"{file} holds another network than FID's Inception ({odd} does not fit): give {INCEPTION_WEIGHTS.name}, "
            "the conversion that pytorch-fid publishes"
        )
    return network
