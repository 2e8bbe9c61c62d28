"""Feature networks: images (and captions) to the vectors that distances and scores are taken of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer, PreTrainedTokenizerBase

from stepdistill.assets import resolve_path
from stepdistill.data.cache import fingerprint
from stepdistill.errors import UserError
from stepdistill.metrics.networks.features import FeatureNetwork
from stepdistill.metrics.networks.transforms import PictureTransform
from stepdistill.metrics.preprocess import Preprocess
from stepdistill.typing import Images


class ImageFeatures(NamedTuple):
    """Two views of a batch of images by one CLIP model."""

    pooled: Tensor
    """The vision tower's output before the projection (B, hidden)."""
    embedding: Tensor
    """Its projection into the space shared with text (B, d), not normalised."""


class ClipFeatures(FeatureNetwork):
    """Image features, image embeddings and text embeddings of one frozen `CLIPModel`.

    Called on images it returns the embeddings, not normalised: the features of the Frechet and kernel distance.
    Preprocessing is done here (`Preprocess`), so scores depend on no image-processor back end.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: PreTrainedTokenizerBase,
        preprocess: Preprocess | PictureTransform | None = None,
        *,
        name: str,
    ) -> None:
        super().__init__()
        config: Any = model.config
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.image_size = int(config.vision_config.image_size)
        self.preprocess = preprocess or Preprocess(self.image_size)
        self.name = name
        self.num_features = int(config.projection_dim)
        self.max_tokens = int(config.text_config.max_position_embeddings)

    @classmethod
    def from_folder(cls, path: str | Path) -> ClipFeatures:
        """Read a `CLIPModel` folder (weights, tokenizer, optional preprocessor); its name carries the weights' hash."""
        folder = resolve_path(path)
        weights = folder / "model.safetensors"
        if not weights.exists():
            raise UserError(
                f"no CLIP model in {folder}: give a folder with config.json, model.safetensors and a tokenizer"
            )
        model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
        config: Any = model.config
        preprocess = Preprocess.from_folder(folder, config.vision_config.image_size)
        name = f"{folder.name}@{fingerprint(load_file(weights).items())[:8]}"
        return cls(model, CLIPTokenizer.from_pretrained(folder), preprocess, name=name)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    @property
    def logit_scale(self) -> float:
        """What the model multiplies cosines by."""
        return float(self.model.logit_scale.exp())

    @torch.no_grad()
    def images(self, images: Images) -> ImageFeatures:
        """Pooled features and embeddings of a batch of images in [0, 1]."""
        return self.seen(self.preprocess(images))

    def seen(self, pixels: Tensor) -> ImageFeatures:
        """The same of pixels that are normalised already; gradients flow into them."""
        pixels = pixels.to(self.device, self.model.dtype)
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return ImageFeatures(pooled.float(), self.model.visual_projection(pooled).float())

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Embeddings of captions (B, d), not normalised. A long caption is cut before its end token, never through it."""
        tokens = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        out: Any = self.model.get_text_features(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        )
        return out.pooler_output.float()

    def forward(self, images: Images) -> Tensor:
        """Image embeddings (B, d)."""
        return self.images(images).embedding


def emoji_clip() -> ClipFeatures:
    """The embedded `emoji-clip`. Its numbers are labelled so, and never set beside Inception or OpenAI-CLIP numbers."""
    return ClipFeatures.from_folder("assets/emoji-clip")
