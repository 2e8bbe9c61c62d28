"""LPIPS 0.1 (https://arxiv.org/abs/1801.03924) in plain PyTorch, with VGG16 or AlexNet features.

The trunks are torchvision's ImageNet weights; the heads ship with torchmetrics (BSD-2, by Richard Zhang). torchmetrics' own
module needs torchvision and adds its epsilon inside the root; here it is outside, as in the `lpips` package.
"""

from __future__ import annotations

from importlib import resources
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from stepdistill.errors import UserError
from stepdistill.metrics.networks.weights import Location, WeightFile, first_line, read_tensors
from stepdistill.typing import Images

_URL = "https://download.pytorch.org/models"

# ImageNet's mean and standard deviation (0.485, ...; 0.229, ...) carried over to inputs in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class Trunk(NamedTuple):
    """A classifier's convolutional part."""

    layers: nn.Sequential
    """torchvision's `features`, with the same indices, up to the last tap."""
    taps: tuple[int, ...]
    """Indices of the ReLUs whose outputs are compared."""
    channels: tuple[int, ...]
    weights: WeightFile


def _vgg() -> Trunk:
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers += [nn.MaxPool2d(2)] if layers else []
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    weights = WeightFile("vgg16-397923af.pth", "397923af", url=f"{_URL}/vgg16-397923af.pth")
    return Trunk(nn.Sequential(*layers), (3, 8, 15, 22, 29), (64, 128, 256, 512, 512), weights)


def _alex() -> Trunk:
    layers = [
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    ]
    weights = WeightFile("alexnet-owt-7be5be79.pth", "7be5be79", url=f"{_URL}/alexnet-owt-7be5be79.pth")
    return Trunk(nn.Sequential(*layers), (1, 4, 7, 9, 11), (64, 192, 384, 256, 256), weights)


TRUNKS = {"vgg": _vgg, "alex": _alex}


class LPIPS(nn.Module):
    """Perceptual distance between images in [0, 1]; weights are random until `load` reads the published ones.

    Args:
        net: the trunk. Always quote it: `vgg` and `alex` give different numbers.
        rescale: map [0, 1] to [-1, 1], the range the heads were trained on. False reproduces programs that pass [0, 1] to the
            `lpips` package directly.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Literal["vgg", "alex"] = "vgg", *, rescale: bool = True) -> None:
        super().__init__()
        trunk = TRUNKS[net]()
        self.layers, self.taps, self.weights = trunk.layers, trunk.taps, trunk.weights
        self.heads = nn.ParameterList([torch.rand(width) / width for width in trunk.channels])
        self.rescale = rescale
        self.name = f"lpips/{net}" + ("" if rescale else "/unscaled")
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, net: Literal["vgg", "alex"] = "vgg", *, rescale: bool = True, trunk: Location = None) -> LPIPS:
        """Load the published weights: the trunk located by `WeightFile.locate`, the heads from torchmetrics.

        Raises:
            UserError: the trunk is missing, or belongs to another network.
        """
        metric = cls(net, rescale=rescale)
        file = metric.weights.locate(trunk)
        features = {name: tensor for name, tensor in read_tensors(file).items() if name.startswith("features.")}
        try:
            metric.layers.load_state_dict(
                {name.removeprefix("features."): tensor for name, tensor in features.items()}
            )
        except RuntimeError as error:
            raise UserError(
                f"{file} is not LPIPS's {net} trunk ({first_line(error)}): give torchvision's {metric.weights.name}"
            ) from error
        with resources.as_file(resources.files("torchmetrics")) as package:
            tensors = read_tensors(package / "functional" / "image" / "lpips_models" / f"{net}.pth")
        for index, head in enumerate(metric.heads):
            head.copy_(tensors[f"lin{index}.model.1.weight"].flatten())
        return metric

    def forward(self, first: Images, second: Images) -> Tensor:
        """Return the distance of each pair (B,)."""
        n = len(first)
        features = self.features(torch.cat([first, second]))
        return self._distance([each[:n] for each in features], [each[n:] for each in features])

    def pairwise(self, images: Images) -> Tensor:
        """Return the distances of all n (n - 1) / 2 pairs of a batch; every image passes the trunk once."""
        features = self.features(images)
        pairs = torch.triu_indices(len(images), len(images), offset=1).T.tolist()
        # Pair by pair: the first layer's maps of all pairs at once take gigabytes.
        distances = [
            self._distance([each[i : i + 1] for each in features], [each[j : j + 1] for each in features])
            for i, j in pairs
        ]
        return torch.cat(distances) if distances else images.new_zeros(0)

    def features(self, images: Images) -> list[Tensor]:
        """Return the maps of each tapped layer, normalised over channels."""
        x = ((images.float() * 2 - 1 if self.rescale else images.float()) - self.shift) / self.scale
        maps = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self.taps:
                maps.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return maps

    def _distance(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        # eq. 1: d = sum_l 1 / (H_l W_l) sum_hw |w_l * (y_hw - y0_hw)|^2, with w_l^2 stored as the head's weights
        layers = [
            torch.einsum("bchw,c->bhw", (a - b).square(), head).mean((1, 2))
            for a, b, head in zip(first, second, self.heads, strict=True)
        ]
        return torch.stack(layers).sum(0)
