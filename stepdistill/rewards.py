"""Rewards by name, as recipes write them: the embedded one, or any function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from stepdistill.critics.reward import Reward
from stepdistill.errors import UserError
from stepdistill.metrics.extractors import ClipFeatures, emoji_clip
from stepdistill.metrics.preprocess import resize
from stepdistill.typing import Images


class ClipSimilarity:
    """The cosine of an image and its prompt under a CLIP model; gradients flow into the images.

    Args:
        features: the model; it follows the images to their device.
    """

    def __init__(self, features: ClipFeatures) -> None:
        self.features = features

    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """Cosines in [-1, 1], shape (B,)."""
        features = self.features.to(images.device)
        preprocess = features.preprocess
        # Not `preprocess` itself: it rounds to 8 bits, which has no gradient.
        pixels = resize(images.float(), preprocess.size)
        mean, std = pixels.new_tensor(preprocess.mean), pixels.new_tensor(preprocess.std)
        pooled = features.model.vision_model(
            pixel_values=(pixels - mean[:, None, None]) / std[:, None, None]
        ).pooler_output
        with torch.no_grad():
            texts = features.texts(prompts)
        return cosine_similarity(features.model.visual_projection(pooled).float(), texts, dim=1)


REWARDS: dict[str, Callable[[], Reward]] = {"emoji_clip": lambda: ClipSimilarity(emoji_clip())}
"""What makes each named reward."""


def load_reward(name: str) -> Reward:
    """A reward by its name in `REWARDS`, or the callable that `package.module:name` says.

    Raises:
        UserError: there is no such reward.
    """
    if name in REWARDS:
        return REWARDS[name]()
    module, separator, attribute = name.partition(":")
    if not separator:
        raise UserError(
            f"method.reward: unknown reward '{name}'; use one of {', '.join(REWARDS)}, or package.module:function "
            "with function(images, prompts) -> one number per image"
        )
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"method.reward: '{name}' cannot be imported: {error}") from error
