"""The interface of feature networks, patch features, and statistics of whole picture folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from PIL import Image
from torch import Tensor, nn

from stepdistill.metrics.preprocess import ImagesOrPictures, patches
from stepdistill.metrics.references import FeatureStats


class FeatureNetwork(nn.Module):
    """A frozen network whose outputs distances are computed on.

    `forward` takes images (B, 3, H, W), float in [0, 1] or uint8, or a list of PIL pictures of any sizes, and returns
    float32 features (B, num_features).
    """

    name: str
    """Network and variant, as in the label of a number: `inception/clean`."""
    num_features: int

    def protocol(self) -> dict[str, Any]:
        """Return everything the features depend on, JSON-able. Stored with statistics and checked before comparing them."""
        return {"features": self.name, "num_features": self.num_features}

    def train(self, mode: bool = True) -> FeatureNetwork:
        """Stay in evaluation mode: `train()` on a model that owns a metric must not update batch norms."""
        del mode
        return super().train(False)

    def __call__(self, images: ImagesOrPictures) -> Tensor:
        """Return features (B, num_features), in single precision even under autocast."""
        parameter = next(self.parameters(), None)
        with single_precision("cpu" if parameter is None else parameter.device.type):
            return super().__call__(images)


@contextmanager
def single_precision(device_type: str) -> Iterator[None]:
    """Disable autocast and TF32. PyTorch's convolutions use TF32 by default (10 mantissa bits of 23); published numbers do not."""
    cudnn: Any = torch.backends.cudnn
    backends = (cudnn.conv, torch.backends.cuda.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


class PatchFeatures(FeatureNetwork):
    """Features of `size` x `size` patches at full resolution; patch FID in a `FrechetDistance`.

    The centre patch, as in DMD2 (https://arxiv.org/abs/2405.14867, section 5.2, after SDXL-Lightning), or `num_patches`
    random ones, whose positions depend on each picture's bytes and so not on batch or rank.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        *,
        size: int = 299,
        num_patches: int = 1,
        mode: Literal["center", "random"] = "center",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if mode == "center" and num_patches != 1:
            raise ValueError(f"num_patches={num_patches} needs mode='random': there is one centre patch")
        self.network = network
        self.cut = {"size": size, "num_patches": num_patches, "mode": mode, "seed": seed}
        count = "" if mode == "center" else f"x{num_patches}"
        self.name = f"{network.name}/patch-{mode}{size}{count}"
        self.num_features = network.num_features

    def protocol(self) -> dict[str, Any]:
        return self.network.protocol() | {"features": self.name, "patches": self.cut}

    def forward(self, images: ImagesOrPictures) -> Tensor:
        """Return features (B * num_patches, num_features), all patches of a picture in a row."""
        return self.network(patches(images, **cast(dict[str, Any], self.cut)))


def image_files(folder: str | Path) -> list[Path]:
    """List the picture files of a folder and its subfolders, sorted."""
    endings = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
    return sorted(file for file in Path(folder).expanduser().rglob("*") if file.suffix.lower() in endings)


def read_pictures(files: Sequence[Path], batch_size: int) -> Iterator[list[Image.Image]]:
    """Yield RGB pictures in lists of up to `batch_size`."""
    for start in range(0, len(files), batch_size):
        batch = []
        for file in files[start : start + batch_size]:
            with Image.open(file) as picture:
                batch.append(picture.convert("RGB"))
        yield batch


@torch.no_grad()
def feature_stats(network: FeatureNetwork, images: Tensor | Sequence[Path], *, batch_size: int = 50) -> FeatureStats:
    """Compute mean and covariance of the features of images (N, 3, H, W) or picture files, streaming."""
    batches = images.split(batch_size) if isinstance(images, Tensor) else read_pictures(images, batch_size)
    stats: FeatureStats | None = None
    for batch in batches:
        features = network(batch)
        # The first batch's mean is close to the overall mean, so no digits cancel.
        stats = stats or FeatureStats.around(features.double().mean(0))
        stats.update(features)
    if stats is None:
        raise ValueError("no images to compute statistics of")
    return stats
