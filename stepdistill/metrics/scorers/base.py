"""The interface of scorers: named functions of images and prompts, used as metrics and, if differentiable, as rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import asdict
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from stepdistill.metrics.networks.base import single_precision
from stepdistill.metrics.preprocess import ImagesOrPictures, Preprocess
from stepdistill.typing import Images


@runtime_checkable
class PromptScorer(Protocol):
    """Rates images given their prompts; larger is better."""

    @property
    def name(self) -> str:
        """Model and variant, as in the label of a number: `hps/v2.1`."""
        ...

    def description(self) -> dict[str, Any]:
        """Return everything the numbers depend on, JSON-able; stored with them."""
        ...

    def __call__(self, images: ImagesOrPictures, prompts: Sequence[str]) -> Tensor:
        """Return one score per image (B,), for images in [0, 1] or PIL pictures and as many prompts."""
        ...


class NetworkScorer(nn.Module):
    """Base of scorers that are frozen networks. Subclasses implement `rate`.

    Calling it applies the authors' preprocessing, in 8 bits and without gradients; `reward` applies a differentiable
    approximation of it.
    """

    name: str
    preprocess: Preprocess

    def rate(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return scores (B,) of normalised pixels on this network's device."""
        raise NotImplementedError

    def description(self) -> dict[str, Any]:
        return {"name": self.name, "transform": asdict(self.preprocess)}

    @torch.no_grad()
    def forward(self, images: ImagesOrPictures, prompts: Sequence[str]) -> Tensor:
        """Return float32 scores (B,) of images in [0, 1] or PIL pictures, without autocast or TF32."""
        check_lengths(images, prompts)
        with single_precision(self.device.type):
            return self.rate(self.preprocess(images).to(self.device), prompts).float()

    def reward(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """Return scores (B,) with gradients into the images. Moves the network to the images' device."""
        check_lengths(images, prompts)
        self.to(images.device)
        return self.rate(self.preprocess.differentiable(images), prompts).float()

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device


class CallableScorer:
    """Any function of images (B, 3, H, W) in [0, 1] and prompts that returns one number per image.

    Args:
        function: returns a tensor, an array or a list.
        name: label of the numbers.
    """

    def __init__(self, function: Callable[[Any, Sequence[str]], Any], *, name: str) -> None:
        self.function = function
        self.name = name

    def description(self) -> dict[str, Any]:
        return {"name": self.name}

    def __call__(self, images: ImagesOrPictures, prompts: Sequence[str]) -> Tensor:
        """Return float32 scores (B,).

        Raises:
            ValueError: the function returned another number of scores.
        """
        check_lengths(images, prompts)
        with torch.no_grad():
            scores = torch.as_tensor(self.function(images, prompts), dtype=torch.float32)
        if scores.shape != (len(images),):
            raise ValueError(f"{self.name} returned scores of shape {tuple(scores.shape)} for {len(images)} images")
        return scores


def linear_head(widths: Sequence[int]) -> nn.Sequential:
    """Build linear layers without activations, as in the aesthetic predictor and in ImageReward.

    The published heads had a dropout after each of the first three layers; an identity keeps their numbering.

    >>> [name for name in linear_head([8, 4, 3, 2, 2, 1]).state_dict() if name.endswith("weight")]
    ['0.weight', '2.weight', '4.weight', '6.weight', '7.weight']
    """
    layers: list[nn.Module] = []
    for i, (inner, outer) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(inner, outer))
        if i < 3:
            layers.append(nn.Identity())
    return nn.Sequential(*layers)


def check_lengths(images: Sized, prompts: Sized) -> None:
    """Raise a `ValueError` unless there is one prompt per image."""
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images but {len(prompts)} prompts")
