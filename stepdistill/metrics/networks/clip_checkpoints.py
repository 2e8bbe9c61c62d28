"""The published CLIP checkpoints behind CLIP score, HPSv2, PickScore and the aesthetic score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import CLIPTokenizer

from stepdistill.metrics.networks.clip import ClipFeatures, ClipNetwork
from stepdistill.metrics.networks.openclip import OpenClipFeatures, clip_model
from stepdistill.metrics.networks.weights import Location, WeightFile, pretrained, read_tensors

Backend = Literal["transformers", "open_clip"]


@dataclass(frozen=True)
class ClipCheckpoint:
    """One published CLIP model."""

    file: WeightFile
    architecture: str
    """A name in `ARCHITECTURES`."""
    tokenizer: str = "openai/clip-vit-large-patch14"
    """Hub id. All these models share OpenAI's vocabulary."""


def _on_hub(repo: str, name: str, sha256: str, architecture: str, **tokenizer: str) -> ClipCheckpoint:
    return ClipCheckpoint(WeightFile(name, sha256, repo=repo), architecture, **tokenizer)


_LAION_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

CLIP_CHECKPOINTS: dict[str, ClipCheckpoint] = {
    "vit-b-32-openai": _on_hub(
        "openai/clip-vit-base-patch32",
        "pytorch_model.bin",
        "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
        "ViT-B-32-quickgelu",
    ),
    "vit-l-14-openai": _on_hub(
        "openai/clip-vit-large-patch14",
        "model.safetensors",
        "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
        "ViT-L-14-quickgelu",
    ),
    "vit-h-14-laion2b": _on_hub(
        _LAION_H,
        "open_clip_pytorch_model.bin",
        "9a78ef8e8c73fd0df621682e7a8e8eb36c6916cb3c16b291a082ecd52ab79cc4",
        "ViT-H-14",
    ),
    "vit-g-14-laion2b": _on_hub(
        "laion/CLIP-ViT-g-14-laion2B-s12B-b42K",
        "open_clip_pytorch_model.bin",
        "6aac683f899159946bc4ca15228bb7016f3cbb1a2c51f365cba0b23923f344da",
        "ViT-g-14",
    ),
    "hps-v2.0": _on_hub(
        "xswu/HPSv2",
        "HPS_v2_compressed.pt",
        "07cb0d20626232204ca3a6ec53ff5984e7e53212a8a7b0e0ec2bac1bdaf125a1",
        "ViT-H-14",
    ),
    "hps-v2.1": _on_hub(
        "xswu/HPSv2",
        "HPS_v2.1_compressed.pt",
        "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837",
        "ViT-H-14",
    ),
    "pickscore-v1": _on_hub(
        "yuvalkirstain/PickScore_v1",
        "model.safetensors",
        "ef31ef6fc5ff4d9bb90dd232df4e145887ba62c5a03aa2841415f8c25f18d52e",
        "ViT-H-14",
        tokenizer=_LAION_H,
    ),
}
"""By the name in results. Checksums are those shown on the repositories' pages."""


def load_clip(
    model: str, *, weights: Location = None, tokenizer: Location = None, backend: Backend = "transformers"
) -> ClipNetwork:
    """Load one of `CLIP_CHECKPOINTS`, or another CLIP model in its place.

    Args:
        model: the published model.
        weights: a file of weights, in open_clip's or transformers' names, or a `CLIPModel` folder of transformers. Anything
            but the published file is named after its own file or folder.
        tokenizer: folder of the tokenizer; default: that of a `CLIPModel` folder, else the published one.
        backend: `open_clip` runs open_clip's own classes (extra `[openclip]`), as a check.

    Raises:
        UserError: weights or tokenizer are missing, differ from the published ones, or do not fit the architecture.
    """
    published = CLIP_CHECKPOINTS[model]
    if weights is not None and (Path(weights).expanduser() / "config.json").is_file():
        file = Path(weights).expanduser() / published.file.name
        if not file.is_file() or not published.file.matches(file):
            return ClipFeatures.from_folder(weights)
    else:
        file = published.file.locate(weights)
    name = published.file.label(model, file)
    if backend == "open_clip":
        return OpenClipFeatures.from_tensors(read_tensors(file), published.architecture, name=name)
    network = clip_model(read_tensors(file), published.architecture, source=str(file))
    return ClipFeatures(network, pretrained(CLIPTokenizer, published.tokenizer, tokenizer), name=name)


def label_of(label: str, model: str, features: ClipNetwork) -> str:
    """Return the label of a score, extended by the weights' name if they are not the published ones.

    Numbers from other weights must not share a column with published ones.
    """
    return label if features.name.startswith(f"{model}@") else f"{label}:{features.name}"
