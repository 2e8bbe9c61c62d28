"""Scorers: how well each picture fits its prompt, or pleases, by one named model. Metrics and rewards are the same objects."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from stepdistill.metrics.networks.extractors import ClipFeatures, ImageFeatures
from stepdistill.metrics.networks.transforms import PictureTransform
from stepdistill.metrics.preprocess import ImagesOrPictures, Preprocess
from stepdistill.typing import Images


@runtime_checkable
class PromptScorer(Protocol):
    """Rates pictures given their prompts; larger is better."""

    @property
    def name(self) -> str:
        """Model and variant, as numbers are labelled: `hps/v2.1`."""
        ...

    def description(self) -> dict[str, Any]:
        """What the numbers depend on, JSON-able: stored beside them."""
        ...

    def __call__(self, images: ImagesOrPictures, prompts: Sequence[str]) -> Tensor:
        """One number per image (B,), from images in [0, 1] or PIL pictures and as many prompts."""
        ...


class NetworkScorer(nn.Module):
    """A scorer that is a frozen network. Called, it sees pictures as its authors' code does, in 8 bits and without gradients.

    `reward` is the same network behind a differentiable preprocessing. Subclasses write `rate`.
    """

    name: str
    transform: PictureTransform | Preprocess

    def rate(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of normalised pixels on this network's device."""
        raise NotImplementedError

    def description(self) -> dict[str, Any]:
        """Name and preprocessing."""
        return {"name": self.name, "transform": asdict(self.transform)}

    @torch.no_grad()
    def forward(self, images: ImagesOrPictures, prompts: Sequence[str]) -> Tensor:
        """Scores (B,), float32, of images in [0, 1] or, where the transform takes them, PIL pictures."""
        check_lengths(images, prompts)
        transform: Any = self.transform
        return self.rate(transform(images).to(self.device), prompts).float()

    def reward(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) with gradients into the images; the network follows them to their device."""
        check_lengths(images, prompts)
        self.to(images.device)
        return self.rate(self.transform.differentiable(images), prompts).float()

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.parameters()).device


class ClipNetwork(Protocol):
    """What a scorer needs of a CLIP model: `ClipFeatures`, or open_clip's."""

    @property
    def name(self) -> str:
        """Model and weights."""
        ...

    @property
    def preprocess(self) -> PictureTransform | Preprocess:
        """Its own preprocessing."""
        ...

    @property
    def logit_scale(self) -> float:
        """What the model multiplies cosines by."""
        ...

    def seen(self, pixels: Tensor) -> ImageFeatures:
        """Embeddings of normalised pixels, with gradients."""
        ...

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Embeddings of captions (B, d)."""
        ...


class ClipScorer(NetworkScorer):
    """A multiple of the cosine of picture and prompt in one CLIP model: CLIP score, HPSv2 and PickScore.

    Args:
        features: the model.
        name: as numbers are labelled.
        scale: what the cosine is multiplied by; `logit` is the model's own factor, about 100.
        prefix: put before every prompt; prompt and prefix together are cut to the model's length, before the end token.
        is_clamped: whether negative cosines count as zero, as in https://arxiv.org/abs/2104.08718.
        is_unescaped: whether HTML entities in prompts are resolved, as open_clip's tokenizer does.
        transform: other preprocessing than the model's.
    """

    def __init__(
        self,
        features: ClipNetwork,
        *,
        name: str,
        scale: float | Literal["logit"] = 100.0,
        prefix: str = "",
        is_clamped: bool = False,
        is_unescaped: bool = False,
        transform: PictureTransform | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.name = name
        self.scale = features.logit_scale if scale == "logit" else float(scale)
        self.prefix = prefix
        self.is_clamped = is_clamped
        self.is_unescaped = is_unescaped
        self.transform = transform or features.preprocess

    def rate(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """`scale * cos`."""
        texts = [unescaped(prompt) for prompt in prompts] if self.is_unescaped else prompts
        text = self.features.texts([self.prefix + text for text in texts])
        cosine = cosine_similarity(self.features.seen(pixels).embedding, text, dim=1)
        return self.scale * (cosine.clamp_min(0) if self.is_clamped else cosine)

    def description(self) -> dict[str, Any]:
        """Model, prefix, scale and preprocessing."""
        own = {
            "model": self.features.name,
            "prefix": self.prefix,
            "scale": self.scale,
            "is_clamped": self.is_clamped,
        }
        return super().description() | own


class AestheticScorer(NetworkScorer):
    """A linear head on unit-norm CLIP image embeddings: the LAION aesthetic score, about 1 to 10. Prompts are not read.

    https://github.com/christophschuhmann/improved-aesthetic-predictor

    Args:
        features: the CLIP model that the head was trained on; any other gives plausible noise.
        head: embedding (B, d) to score (B, 1).
        name: as numbers are labelled.
        transform: other preprocessing than the model's.
    """

    def __init__(
        self, features: ClipFeatures, head: nn.Module, *, name: str, transform: PictureTransform | None = None
    ) -> None:
        super().__init__()
        self.features = features
        self.head = head.eval().requires_grad_(False)
        self.name = name
        self.transform = transform or features.preprocess

    def rate(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """The head's output."""
        del prompts
        embedding = normalize(self.features.seen(pixels).embedding, dim=1)
        return self.head(embedding.to(next(self.head.parameters()).dtype)).squeeze(1)

    def description(self) -> dict[str, Any]:
        """Model and preprocessing."""
        return super().description() | {"model": self.features.name}


class CallableScorer:
    """Any function of images (B, 3, H, W) in [0, 1] and prompts to one number per image.

    Args:
        function: what rates; it may return a tensor, an array or a list.
        name: as numbers are labelled.
    """

    def __init__(self, function: Callable[[Any, Sequence[str]], Any], *, name: str) -> None:
        self.function = function
        self.name = name

    def description(self) -> dict[str, Any]:
        """The name alone."""
        return {"name": self.name}

    def __call__(self, images: ImagesOrPictures, prompts: Sequence[str]) -> Tensor:
        """Scores (B,), float32.

        Raises:
            ValueError: the function gave another number of scores.
        """
        check_lengths(images, prompts)
        with torch.no_grad():
            scores = torch.as_tensor(self.function(images, prompts), dtype=torch.float32)
        if scores.shape != (len(images),):
            raise ValueError(
                f"{self.name} gave scores of shape {tuple(scores.shape)} for {len(images)} images"
            )
        return scores


def linear_head(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers without activations, under the numbers that they have in the published weights of these heads.

    Dropout stood between the first four of them in training: it does nothing here, but takes a number.

    >>> [name for name in linear_head([8, 4, 3, 2, 2, 1]).state_dict() if name.endswith("weight")]
    ['0.weight', '2.weight', '4.weight', '6.weight', '7.weight']
    """
    layers: list[nn.Module] = []
    for i, (inner, outer) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(inner, outer))
        if i < 3:
            layers.append(nn.Identity())
    return nn.Sequential(*layers)


def unescaped(prompt: str) -> str:
    """HTML entities resolved, twice, as open_clip's tokenizer does before it reads a prompt.

    >>> unescaped("cats &amp;amp; dogs ")
    'cats & dogs'
    """
    return html.unescape(html.unescape(prompt)).strip()


def check_lengths(images: ImagesOrPictures, prompts: Sequence[str]) -> None:
    """One prompt for every image, or a `ValueError`."""
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images but {len(prompts)} prompts")
