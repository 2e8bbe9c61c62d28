"""The interface of a reward: a function of images and their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from stepdistill.typing import Images


class Reward(Protocol):
    """Rates images, larger is better; any callable will do.

    Methods that only rank (PSO) call it without gradients. Methods that follow its gradient (SwiftBrush v2) need one that is
    differentiable in the images.
    """

    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """Return one number per image (B,), from images in [0, 1] and as many prompts."""
        ...
