"""CLIP score: a multiple of the cosine between image and prompt. Its variants differ in model, scale, prefix and resize."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from stepdistill.metrics.networks.clip import ClipNetwork, emoji_clip
from stepdistill.metrics.networks.clip_checkpoints import Backend, label_of, load_clip
from stepdistill.metrics.networks.weights import Location
from stepdistill.metrics.preprocess import Preprocess
from stepdistill.metrics.scorers.base import NetworkScorer


def clip_score(image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
    """100 times the cosine of each image with its caption (B,): https://arxiv.org/abs/2104.08718 without the clamp at zero.

    >>> clip_score(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([60.0000])
    """
    return 100 * torch.cosine_similarity(image_embeddings, text_embeddings, dim=1)


class ClipScorer(NetworkScorer):
    """`scale * cos(image, prompt)` in one CLIP model: CLIP score, HPSv2 and PickScore.

    Args:
        features: the model.
        name: label of the numbers.
        scale: factor on the cosine; `logit` is the model's own, about 100.
        prefix: prepended to every prompt. Prefix and prompt together are truncated before the end token.
        is_clamped: clamp negative cosines to zero, as in https://arxiv.org/abs/2104.08718.
        is_unescaped: resolve HTML entities in prompts, as open_clip's tokenizer does.
        preprocess: replaces the model's own.
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
        preprocess: Preprocess | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.name = name
        self.scale = features.logit_scale if scale == "logit" else float(scale)
        self.prefix = prefix
        self.is_clamped = is_clamped
        self.is_unescaped = is_unescaped
        self.preprocess = preprocess or features.preprocess

    def rate(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        texts = [unescaped(prompt) for prompt in prompts] if self.is_unescaped else prompts
        text = self.features.texts([self.prefix + text for text in texts])
        cosine = torch.cosine_similarity(self.features.embed(pixels), text, dim=1)
        return self.scale * (cosine.clamp_min(0) if self.is_clamped else cosine)

    def description(self) -> dict[str, Any]:
        own = {"model": self.features.name, "prefix": self.prefix, "scale": self.scale}
        return super().description() | own | {"is_clamped": self.is_clamped}


@dataclass(frozen=True)
class ClipVariant:
    """One definition of CLIP score; the defaults are `100 * cos`."""

    model: str
    """A name in `CLIP_CHECKPOINTS`."""
    scale: float = 100.0
    prefix: str = ""
    first_square: int | None = None
    is_clamped: bool = False


CLIP_VARIANTS = {
    "clip/vit-b-32-openai": ClipVariant("vit-b-32-openai"),
    # CLIPScore as defined, https://arxiv.org/abs/2104.08718: 2.5 max(cos, 0), captions with this prefix.
    "clip/vit-b-32-openai-clipscore": ClipVariant(
        "vit-b-32-openai", scale=2.5, prefix="A photo depicts ", is_clamped=True
    ),
    "clip/vit-l-14-openai": ClipVariant("vit-l-14-openai"),
    "clip/vit-h-14-laion2b": ClipVariant("vit-h-14-laion2b"),
    "clip/vit-g-14-laion2b": ClipVariant("vit-g-14-laion2b"),
    # DMD and DMD2 (https://arxiv.org/abs/2405.14867): the plain cosine in ViT-g-14 (not ViT-bigG), images at 256 first.
    "clip/vit-g-14-laion2b-dmd2": ClipVariant(
        "vit-g-14-laion2b", scale=1.0, prefix="A photo depicts ", first_square=256
    ),
}


def clip_scorer(
    name: str, *, weights: Location = None, tokenizer: Location = None, backend: Backend = "transformers"
) -> ClipScorer:
    """Load a CLIP score of `CLIP_VARIANTS`, with PIL's resize as in open_clip and OpenAI's code.

    Args:
        name: the variant.
        weights: see `load_clip`, as for the others.
        tokenizer: folder of the tokenizer.
        backend: `transformers` or `open_clip`.
    """
    variant = CLIP_VARIANTS[name]
    features = load_clip(variant.model, weights=weights, tokenizer=tokenizer, backend=backend)
    return ClipScorer(
        features,
        name=label_of(name, variant.model, features),
        scale=variant.scale,
        prefix=variant.prefix,
        is_clamped=variant.is_clamped,
        is_unescaped=True,
        preprocess=Preprocess(features.image_size, first_square=variant.first_square),
    )


def emoji_clip_scorer() -> ClipScorer:
    """Load the cosine in the embedded `emoji-clip`, as a reward; tables of the embedded problem show 100 times it."""
    return ClipScorer(emoji_clip(), name="emoji_clip", scale=1.0)


def unescaped(prompt: str) -> str:
    """Resolve HTML entities twice, as open_clip's tokenizer does.

    >>> unescaped("cats &amp;amp; dogs ")
    'cats & dogs'
    """
    return html.unescape(html.unescape(prompt)).strip()
