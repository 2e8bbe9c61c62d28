"""open_clip as the reference back end of CLIP score and HPSv2; the extra `[openclip]`. The main path is transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stepdistill.errors import UserError
from stepdistill.metrics.networks.extractors import ImageFeatures
from stepdistill.metrics.networks.transforms import PictureTransform


class OpenClipFeatures(nn.Module):
    """What scorers need of `ClipFeatures`, computed by open_clip's classes and its tokenizer.

    Args:
        model: an `open_clip.CLIP`.
        tokenizer: texts to tokens, cut to the model's length before the end token.
        name: as results carry it.
    """

    def __init__(self, model: Any, tokenizer: Callable[[list[str]], Tensor], *, name: str) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        size: Any = model.visual.image_size
        self.image_size = int(size[0] if isinstance(size, (tuple, list)) else size)
        self.preprocess = PictureTransform(self.image_size)

    @classmethod
    def from_tensors(cls, weights: Mapping[str, Tensor], architecture: str, *, name: str) -> OpenClipFeatures:
        """A model of open_clip's that holds these weights in float32.

        Raises:
            UserError: open_clip is not installed, or the weights are not those of the architecture.
        """
        open_clip = imported()
        model = open_clip.create_model(architecture)
        try:
            model.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"these weights are not those of open_clip's {architecture}: {reason}") from error
        return cls(model, open_clip.get_tokenizer(architecture), name=f"{name}/open_clip")

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    @property
    def logit_scale(self) -> float:
        """What the model multiplies cosines by."""
        return float(self.model.logit_scale.exp())

    def seen(self, pixels: Tensor) -> ImageFeatures:
        """Embeddings of normalised pixels, with gradients; open_clip does not show the state before the projection."""
        embedding = self.model.encode_image(pixels.to(self.device)).float()
        return ImageFeatures(embedding, embedding)

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Embeddings of captions (B, d), not normalised."""
        return self.model.encode_text(self.tokenizer(list(captions)).to(self.device)).float()


def imported() -> Any:
    """The package `open_clip`."""
    try:
        import open_clip  # pyright: ignore[reportMissingImports] - an extra
    except ImportError as error:
        raise UserError(
            "backend=open_clip needs open_clip: pip install 'stepdistill[openclip]', or use backend=transformers"
        ) from error
    return open_clip
