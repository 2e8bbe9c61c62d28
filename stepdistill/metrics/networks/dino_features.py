"""DINOv2 features: FD-DINOv2 when put into a Frechet distance, https://arxiv.org/abs/2306.04675."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import Dinov2Model

from stepdistill.data.cache import fingerprint
from stepdistill.metrics import resizes
from stepdistill.metrics.networks.features import FeatureNetwork
from stepdistill.metrics.networks.weights import pretrained
from stepdistill.metrics.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImagesOrPictures,
    as_pictures,
    normalise,
    of_pictures,
    same_size_batches,
)

DINOV2_LARGE = "facebook/dinov2-large"
GRID_OFFSET = 0.1
"""Added to the number of patches a side before position embeddings are resized: a constant of the published network."""


def _pil(images: ImagesOrPictures, side: int) -> Tensor:
    pictures = [each.resize((side, side), Image.Resampling.BICUBIC) for each in as_pictures(images)]
    return of_pictures(pictures).float()


def _resized(resize: Callable[[Tensor, int], Tensor]) -> Callable[[ImagesOrPictures, int], Tensor]:
    return lambda images, side: torch.cat([resize(batch, side) for batch in same_size_batches(images)])


RESIZES: dict[str, Callable[[ImagesOrPictures, int], Tensor]] = {
    "pil": _pil,
    "clean": _resized(resizes.pil_bicubic),
    "edm2": _resized(resizes.torch_bicubic_antialiased),
}
"""`pil`: 8-bit bicubic, dgm-eval's default and EDM2's slow reference; `clean`: dgm-eval's `--clean_resize`; `edm2`: EDM2's default."""


class DinoFeatures(FeatureNetwork):
    """The class token of DINOv2 after its last norm; pictures are squeezed to 224 x 224, nothing is cropped.

    Takes the model over: its position embeddings are resized once, as the published network does it
    (https://github.com/facebookresearch/dinov2, `interpolate_pos_encoding`). transformers leaves out that network's offset
    of 0.1 patches, so its features are not those of the published distances.
    """

    def __init__(
        self, model: Dinov2Model, *, resize: str = "pil", side: int = 224, name: str = "dinov2-large"
    ) -> None:
        super().__init__()
        config: Any = model.config
        self.model = model.eval().requires_grad_(False)
        self.resize, self.side = RESIZES[resize], side
        self.name = f"{name}/{resize}"
        self.num_features = int(config.hidden_size)
        self.weights_digest = fingerprint(model.state_dict().items())[:16]
        embeddings: Any = model.embeddings
        positions = published_positions(embeddings.position_embeddings, side // int(config.patch_size))
        embeddings.position_embeddings = nn.Parameter(positions, requires_grad=False)

    @classmethod
    def load(
        cls, path: str | Path | None = None, *, resize: str = "pil", hub_id: str = DINOV2_LARGE
    ) -> DinoFeatures:
        """The published weights, from a folder first; see `weights.pretrained`."""
        model = pretrained(Dinov2Model, hub_id, path, dtype=torch.float32)
        return cls(model, resize=resize, name=hub_id.split("/")[-1])

    def protocol(self) -> dict[str, Any]:
        """Resize, side and weights."""
        return super().protocol() | {"side": self.side, "weights": self.weights_digest}

    @torch.no_grad()
    def forward(self, images: ImagesOrPictures) -> Tensor:
        """Features (B, hidden)."""
        levels = self.resize(images, self.side).to(self.model.device)
        pixels = normalise(levels / 255, IMAGENET_MEAN, IMAGENET_STD)
        return self.model(pixel_values=pixels).last_hidden_state[:, 0].float()


def published_positions(positions: Tensor, grid: int) -> Tensor:
    """Position embeddings (1, 1 + M*M, d) resized to (1, 1 + grid*grid, d), the class token's first.

    The scale is `(grid + 0.1) / M`, so that sampling points lie a little off those of a plain resize to `grid`.
    """
    token, patches = positions[:, :1].detach(), positions[:, 1:].detach()
    trained = round(patches.shape[1] ** 0.5)
    if trained == grid:
        return positions.detach()
    square = patches.unflatten(1, (trained, trained)).permute(0, 3, 1, 2).float()
    scale = (grid + GRID_OFFSET) / trained
    resized = F.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([token, resized.flatten(2).transpose(1, 2).to(token)], 1)
