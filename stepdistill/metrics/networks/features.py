"""What every feature network is: images to vectors, under a name that says which variant, and a record of how."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from PIL import Image
from torch import Tensor, nn

from stepdistill.metrics.distances import FeatureStats
from stepdistill.metrics.preprocess import ImagesOrPictures, patches


class FeatureNetwork(nn.Module):
    """A frozen network whose outputs distances are taken of.

    `forward` takes images (B, 3, H, W), float in [0, 1] or uint8, or a list of PIL pictures of any sizes, and returns
    float32 features (B, num_features).
    """

    name: str
    """Network and variant, as numbers are labelled: `inception/clean`."""
    num_features: int

    def protocol(self) -> dict[str, Any]:
        """What the features depend on, JSON-able: stored with statistics and compared before a distance is taken."""
        return {"features": self.name, "num_features": self.num_features}

    def train(self, mode: bool = True) -> FeatureNetwork:
        """Stays in evaluation mode: a metric inside a model that is set to training must not touch batch norms."""
        del mode
        return super().train(False)

    def __call__(self, images: ImagesOrPictures) -> Tensor:
        """Features of images (B, num_features), in single precision even under autocast."""
        parameter = next(self.parameters(), None)
        with single_precision("cpu" if parameter is None else parameter.device.type):
            return super().__call__(images)


@contextmanager
def single_precision(device_type: str) -> Iterator[None]:
    """No autocast, and no TF32: PyTorch lets convolutions on recent GPUs drop 13 bits unless told otherwise, and published numbers did not."""
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
    """Features of `size` x `size` patches of images at full resolution: patch FID when put into a Frechet distance.

    The centre patch, as in DMD2 (https://arxiv.org/abs/2405.14867, section 5.2, after SDXL-Lightning), or
    `num_patches` random ones. Random patches are drawn from each picture's own bytes, so neither batch nor rank matters.
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
            raise ValueError(f"there is one centre patch, not {num_patches}: use mode='random' for more")
        self.network = network
        self.cut = {"size": size, "num_patches": num_patches, "mode": mode, "seed": seed}
        count = "" if mode == "center" else f"x{num_patches}"
        self.name = f"{network.name}/patch-{mode}{size}{count}"
        self.num_features = network.num_features

    def protocol(self) -> dict[str, Any]:
        """The network's record and how patches are cut."""
        return self.network.protocol() | {"features": self.name, "patches": self.cut}

    def forward(self, images: ImagesOrPictures) -> Tensor:
        """Features (B * num_patches, num_features), a picture's patches one after the other."""
        return self.network(patches(images, **cast(dict[str, Any], self.cut)))


def image_files(folder: str | Path) -> list[Path]:
    """Picture files of a folder and its subfolders, sorted."""
    endings = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
    return sorted(file for file in Path(folder).expanduser().rglob("*") if file.suffix.lower() in endings)


def read_pictures(files: Sequence[Path], batch_size: int) -> Iterator[list[Image.Image]]:
    """RGB pictures, a list of at most `batch_size` at a time."""
    for start in range(0, len(files), batch_size):
        batch = []
        for file in files[start : start + batch_size]:
            with Image.open(file) as picture:
                batch.append(picture.convert("RGB"))
        yield batch


@torch.no_grad()
def feature_stats(
    network: FeatureNetwork, images: Tensor | Sequence[Path], *, batch_size: int = 50
) -> FeatureStats:
    """Mean and covariance of the features of images (N, 3, H, W) or of picture files, streamed."""
    batches = images.split(batch_size) if isinstance(images, Tensor) else read_pictures(images, batch_size)
    stats: FeatureStats | None = None
    for batch in batches:
        features = network(batch)
        # The first batch's mean is near the whole mean: no digits are lost to an offset.
        stats = stats or FeatureStats.around(features.double().mean(0))
        stats.update(features)
    if stats is None:
        raise ValueError("no images to take statistics of")
    return stats
