"""The CLIP features of CMMD, https://arxiv.org/abs/2401.09603."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from stepdistill.data.cache import fingerprint
from stepdistill.metrics.networks.features import FeatureNetwork
from stepdistill.metrics.networks.weights import pretrained
from stepdistill.metrics.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    ImagesOrPictures,
    as_pictures,
    normalise,
    of_pictures,
    square,
)

CLIP_LARGE_336 = "openai/clip-vit-large-patch14-336"


class CMMDFeatures(FeatureNetwork):
    """Unit image embeddings of CLIP; pictures are cut to their centre square and resized by PIL, bicubic, 8 bits."""

    def __init__(
        self, model: CLIPVisionModelWithProjection, *, name: str = "clip-vit-large-patch14-336"
    ) -> None:
        super().__init__()
        config: Any = model.config
        self.model = model.eval().requires_grad_(False)
        self.side = int(config.image_size)
        self.name = f"{name}/cmmd"
        self.num_features = int(config.projection_dim)
        self.weights_digest = fingerprint(model.state_dict().items())[:16]

    @classmethod
    def load(cls, path: str | Path | None = None) -> CMMDFeatures:
        """The published weights, from a folder first; see `weights.pretrained`."""
        return cls(pretrained(CLIPVisionModelWithProjection, CLIP_LARGE_336, path, dtype=torch.float32))

    def protocol(self) -> dict[str, Any]:
        """Weights, and the side of the square."""
        return super().protocol() | {"side": self.side, "weights": self.weights_digest}

    @torch.no_grad()
    def forward(self, images: ImagesOrPictures) -> Tensor:
        """Unit embeddings (B, projection)."""
        bicubic = Image.Resampling.BICUBIC
        squares = [square(each, self.side, resample=bicubic, offset="floor") for each in as_pictures(images)]
        pixels = normalise(of_pictures(squares).float() / 255, CLIP_MEAN, CLIP_STD)
        out: Any = self.model(pixel_values=pixels.to(self.model.device))
        return F.normalize(out.image_embeds.float(), dim=1)
