"""LPIPS (https://arxiv.org/abs/1801.03924), where its package is installed."""

from __future__ import annotations

import importlib.util
from typing import Any

from torch import Tensor
from torch.nn.functional import interpolate

from stepdistill.errors import UserError
from stepdistill.typing import Images

SIDE = 224
"""Pixels that the distance is taken at: the size its network was trained on."""


def lpips_is_installed() -> bool:
    """Whether `PerceptualDistance` can be made."""
    return importlib.util.find_spec("lpips") is not None


class PerceptualDistance:
    """Mean LPIPS distance of images in [0, 1]; gradients flow into the first.

    Raises:
        UserError: the package is missing.
    """

    def __init__(self) -> None:
        if not lpips_is_installed():
            raise UserError(
                "method.regression=lpips needs lpips: pip install 'stepdistill[fidelity]', or use pseudo_huber"
            )
        import lpips  # pyright: ignore[reportMissingImports] - an extra

        self.network: Any = lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)

    def __call__(self, images: Images, targets: Images) -> Tensor:
        """The mean distance of the pairs."""
        self.network.to(images.device)
        first, second = (
            interpolate(side.float(), (SIDE, SIDE), mode="bilinear", align_corners=False) * 2 - 1
            for side in (images, targets)
        )
        return self.network(first, second).mean()
