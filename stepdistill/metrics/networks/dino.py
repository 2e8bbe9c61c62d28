"""DINOv2 features: FD-DINOv2 in a Frechet distance, https://arxiv.org/abs/2306.04675."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import Dinov2Model

from stepdistill.data.cache import fingerprint
from stepdistill.metrics.networks.base import FeatureNetwork
from stepdistill.metrics.networks.weights import pretrained
from stepdistill.metrics.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImagesOrPictures,
    as_pictures,
    normalise,
    of_pictures,
    pil_bicubic,
    same_size_batches,
    torch_resize,
)

DINOV2_LARGE = "facebook/dinov2-large"
# The published code adds 0.1 to the target grid, lest `interpolate` round its size down
# (https://github.com/facebookresearch/dino/issues/8).
GRID_OFFSET = 0.1


def _pil(images: ImagesOrPictures, side: int) -> Tensor:
    pictures = [each.resize((side, side), Image.Resampling.BICUBIC) for each in as_pictures(images)]
    return of_pictures(pictures).float()


def _batched(resize: Callable[[Tensor, int], Tensor]) -> Callable[[ImagesOrPictures, int], Tensor]:
    return lambda images, side: torch.cat([resize(batch, side) for batch in same_size_batches(images)])


RESIZES: dict[str, Callable[[ImagesOrPictures, int], Tensor]] = {
    "pil": _pil,  # 8-bit bicubic: dgm-eval's default and EDM2's slow reference
    "clean": _batched(pil_bicubic),  # dgm-eval's --clean_resize
    "edm2": _batched(partial(torch_resize, mode="bicubic", antialias=True)),  # EDM2's default
}


class DinoFeatures(FeatureNetwork):
    """The class token of DINOv2 after the last norm, from pictures resized to 224 x 224 without a crop.

    Modifies the model: its position embeddings are resized once, as in the published code
    (https://github.com/facebookresearch/dinov2, `interpolate_pos_encoding`). transformers omits the offset of 0.1 patches
    there, so its own features do not reproduce published distances.
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
    def load(cls, path: str | Path | None = None, *, resize: str = "pil", hub_id: str = DINOV2_LARGE) -> DinoFeatures:
        """Load the published weights from `path`, or by `weights.pretrained`."""
        model = pretrained(Dinov2Model, hub_id, path, dtype=torch.float32)
        return cls(model, resize=resize, name=hub_id.split("/")[-1])

    def protocol(self) -> dict[str, Any]:
        return super().protocol() | {"side": self.side, "weights": self.weights_digest}

    @torch.no_grad()
    def forward(self, images: ImagesOrPictures) -> Tensor:
        levels = self.resize(images, self.side).to(self.model.device)
        pixels = normalise(levels / 255, IMAGENET_MEAN, IMAGENET_STD)
        return self.model(pixel_values=pixels).last_hidden_state[:, 0].float()


def published_positions(positions: Tensor, grid: int) -> Tensor:
    """Resize position embeddings (1, 1 + M*M, d), class token first, to (1, 1 + grid*grid, d).

    The scale factor is `(grid + 0.1) / M`, so the sampling points are slightly off those of a plain resize to `grid`.
    """
    token, patches = positions[:, :1].detach(), positions[:, 1:].detach()
    trained = round(patches.shape[1] ** 0.5)
    if trained == grid:
        return positions.detach()
    square = patches.unflatten(1, (trained, trained)).permute(0, 3, 1, 2).float()
    scale = (grid + GRID_OFFSET) / trained
    resized = F.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([token, resized.flatten(2).transpose(1, 2).to(token)], 1)
