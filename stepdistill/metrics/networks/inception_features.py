"""The four ways in which the field feeds pictures to Inception: one network, four FIDs that do not agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stepdistill.metrics import resizes
from stepdistill.metrics.networks.features import FeatureNetwork
from stepdistill.metrics.networks.inception import INCEPTION_WEIGHTS, InceptionV3, load_inception
from stepdistill.metrics.networks.weights import sha256
from stepdistill.metrics.preprocess import ImagesOrPictures, same_size_batches


@dataclass(frozen=True)
class InceptionVariant:
    """How uint8 pictures become the network's input."""

    name: str
    resize: Callable[[Tensor, int], Tensor]
    scaling: Literal["(x-128)/128", "x/127.5-1"]

    def __call__(self, images: Tensor, side: int) -> Tensor:
        """uint8 images (B, 3, H, W) to pixels (B, 3, side, side)."""
        levels = self.resize(images, side)
        return (levels - 128) / 128 if self.scaling == "(x-128)/128" else 2 * (levels / 255) - 1


VARIANTS = {
    variant.name: variant
    for variant in (
        InceptionVariant("clean", resizes.pil_bicubic, "(x-128)/128"),
        InceptionVariant("legacy_tf", resizes.tensorflow_bilinear, "(x-128)/128"),
        InceptionVariant("pytorch_fid", resizes.torch_bilinear, "x/127.5-1"),
        InceptionVariant("torchmetrics", resizes.torch_bilinear_antialiased, "(x-128)/128"),
        InceptionVariant("clean_fast", resizes.clean_on_device, "(x-128)/128"),
    )
}
"""By name. `clean` is clean-fid's (DMD, DMD2, GigaGAN), `legacy_tf` that of TensorFlow, EDM and StyleGAN, `pytorch_fid` that of
mseitzer/pytorch-fid, `torchmetrics` that package's default; `clean_fast` is `clean` on the images' device, for training."""


class InceptionFeatures(FeatureNetwork):
    """The 2048 features of FID under one named variant.

    Pictures are taken as 8 bits, as they are once saved; float images are rounded to them.
    """

    def __init__(
        self, network: InceptionV3, variant: str = "clean", *, weights_digest: str | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.variant = VARIANTS[variant]
        self.weights_digest = weights_digest
        self.name = f"inception/{variant}"
        self.num_features = network.num_features

    @classmethod
    def load(cls, variant: str = "clean", weights: str | Path | None = None) -> InceptionFeatures:
        """The published weights, from a path first; see `WeightFile.locate`."""
        file = INCEPTION_WEIGHTS.locate(weights)
        return cls(load_inception(file), variant, weights_digest=sha256(file)[:16])

    def protocol(self) -> dict[str, Any]:
        """Variant and weights."""
        return super().protocol() | {"weights": self.weights_digest}

    @torch.no_grad()
    def forward(self, images: ImagesOrPictures) -> Tensor:
        """Features (B, 2048)."""
        device = next(self.network.parameters()).device
        parts = [self.variant(batch.to(device), self.network.side) for batch in same_size_batches(images)]
        return self.network(torch.cat(parts)).float()
