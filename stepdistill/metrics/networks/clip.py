"""CLIP as a feature network: image and text embeddings of a `CLIPModel`, and the image features of CMMD."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer, CLIPVisionModelWithProjection, PreTrainedTokenizerBase

from stepdistill.assets import resolve_path
from stepdistill.data.cache import fingerprint
from stepdistill.errors import UserError
from stepdistill.metrics.networks.base import FeatureNetwork
from stepdistill.metrics.networks.weights import pretrained
from stepdistill.metrics.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    ImagesOrPictures,
    Preprocess,
    as_pictures,
    normalise,
    of_pictures,
    square,
)

CLIP_LARGE_336 = "openai/clip-vit-large-patch14-336"

_on_device = partial(Preprocess, resize="tensor", crop="floor")


class ClipNetwork(FeatureNetwork):
    """A frozen CLIP model, whichever library runs it. Called on images, it returns their embeddings, not normalised."""

    model: Any
    preprocess: Preprocess
    image_size: int

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    @property
    def logit_scale(self) -> float:
        """The factor on cosines that was trained with the model, about 100."""
        return float(self.model.logit_scale.exp())

    def embed(self, pixels: Tensor) -> Tensor:
        """Return the embeddings (B, d) of normalised pixels. Gradients flow into the pixels."""
        raise NotImplementedError

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Return the embeddings (B, d) of captions. Long captions are truncated before the end token."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, images: ImagesOrPictures) -> Tensor:
        return self.embed(self.preprocess(images))


class ImageFeatures(NamedTuple):
    """Two layers of one CLIP image tower."""

    pooled: Tensor
    """Output before the projection (B, hidden)."""
    embedding: Tensor
    """Projection into the space shared with text (B, d), not normalised."""


class ClipFeatures(ClipNetwork):
    """A `CLIPModel` of transformers, behind this package's own preprocessing.

    Args:
        model: the network; it is frozen.
        tokenizer: its tokenizer.
        preprocess: image preprocessing; by default on floats and on the images' device.
        name: label of the numbers.
    """

    def __init__(
        self, model: CLIPModel, tokenizer: PreTrainedTokenizerBase, preprocess: Preprocess | None = None, *, name: str
    ) -> None:
        super().__init__()
        config: Any = model.config
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.image_size = int(config.vision_config.image_size)
        self.preprocess = preprocess or _on_device(self.image_size)
        self.name = name
        self.num_features = int(config.projection_dim)
        self.max_tokens = int(config.text_config.max_position_embeddings)

    @classmethod
    def from_folder(cls, path: str | Path) -> ClipFeatures:
        """Load a `CLIPModel` folder: weights, tokenizer and, if present, the preprocessor's mean and standard deviation.

        The name carries a hash of the weights.

        Raises:
            UserError: the folder holds no CLIP model.
        """
        folder = resolve_path(path)
        weights, preprocessor = folder / "model.safetensors", folder / "preprocessor_config.json"
        if not weights.exists():
            raise UserError(
                f"no CLIP model in {folder}: give a folder with config.json, model.safetensors and a tokenizer"
            )
        model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
        config: Any = model.config
        channels = json.loads(preprocessor.read_text(encoding="utf-8")) if preprocessor.exists() else {}
        mean, std = channels.get("image_mean", CLIP_MEAN), channels.get("image_std", CLIP_STD)
        preprocess = _on_device(config.vision_config.image_size, mean=tuple(mean), std=tuple(std))
        name = f"{folder.name}@{fingerprint(load_file(weights).items())[:8]}"
        return cls(model, CLIPTokenizer.from_pretrained(folder), preprocess, name=name)

    @torch.no_grad()
    def images(self, images: ImagesOrPictures) -> ImageFeatures:
        """Return pooled features and embeddings of images in [0, 1]."""
        return self._tower(self.preprocess(images))

    def embed(self, pixels: Tensor) -> Tensor:
        return self._tower(pixels).embedding

    def _tower(self, pixels: Tensor) -> ImageFeatures:
        pixels = pixels.to(self.device, self.model.dtype)
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return ImageFeatures(pooled.float(), self.model.visual_projection(pooled).float())

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        out: Any = self.model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return out.pooler_output.float()


def emoji_clip() -> ClipFeatures:
    """Load the embedded `emoji-clip`. Its numbers are not comparable with those of Inception or OpenAI's CLIP."""
    return ClipFeatures.from_folder("assets/emoji-clip")


class CMMDFeatures(FeatureNetwork):
    """Unit-length CLIP image embeddings as in CMMD, https://arxiv.org/abs/2401.09603: centre square, PIL bicubic in 8 bits."""

    def __init__(self, model: CLIPVisionModelWithProjection, *, name: str = "clip-vit-large-patch14-336") -> None:
        super().__init__()
        config: Any = model.config
        self.model = model.eval().requires_grad_(False)
        self.side = int(config.image_size)
        self.name = f"{name}/cmmd"
        self.num_features = int(config.projection_dim)
        self.weights_digest = fingerprint(model.state_dict().items())[:16]

    @classmethod
    def load(cls, path: str | Path | None = None) -> CMMDFeatures:
        """Load the published weights from `path`, or by `weights.pretrained`."""
        return cls(pretrained(CLIPVisionModelWithProjection, CLIP_LARGE_336, path, dtype=torch.float32))

    def protocol(self) -> dict[str, Any]:
        return super().protocol() | {"side": self.side, "weights": self.weights_digest}

    @torch.no_grad()
    def forward(self, images: ImagesOrPictures) -> Tensor:
        bicubic = Image.Resampling.BICUBIC
        squares = [square(each, self.side, resample=bicubic, offset="floor") for each in as_pictures(images)]
        pixels = normalise(of_pictures(squares).float() / 255, CLIP_MEAN, CLIP_STD)
        out: Any = self.model(pixel_values=pixels.to(self.model.device))
        return F.normalize(out.image_embeds.float(), dim=1)
