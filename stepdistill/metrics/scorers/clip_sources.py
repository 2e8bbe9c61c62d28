"""The published CLIP models behind CLIP score, HPSv2 and PickScore, and each score as its paper takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import CLIPTokenizer

from stepdistill.metrics.networks.clip_weights import ARCHITECTURES, clip_model
from stepdistill.metrics.networks.extractors import ClipFeatures, emoji_clip
from stepdistill.metrics.networks.open_clip_features import OpenClipFeatures
from stepdistill.metrics.networks.transforms import PictureTransform
from stepdistill.metrics.networks.weights import pretrained, read_tensors, sha256, weights_file
from stepdistill.metrics.scorers.prompt_scorers import ClipScorer

Location = str | Path | None
"""A path of weights; None searches `$STEPDISTILL_WEIGHTS`, the caches and the hub."""

Backend = Literal["transformers", "open_clip"]


@dataclass(frozen=True)
class ClipSource:
    """One published CLIP model."""

    repo: str
    filename: str
    sha256: str
    """As the repository shows it."""
    architecture: str
    """A name in `ARCHITECTURES`."""
    tokenizer: str = "openai/clip-vit-large-patch14"
    """All models here share OpenAI's vocabulary."""


_LAION_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

CLIP_SOURCES: Mapping[str, ClipSource] = {
    "vit-b-32-openai": ClipSource(
        "openai/clip-vit-base-patch32",
        "pytorch_model.bin",
        "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
        "ViT-B-32-quickgelu",
    ),
    "vit-l-14-openai": ClipSource(
        "openai/clip-vit-large-patch14",
        "model.safetensors",
        "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
        "ViT-L-14-quickgelu",
    ),
    "vit-h-14-laion2b": ClipSource(
        _LAION_H,
        "open_clip_pytorch_model.bin",
        "9a78ef8e8c73fd0df621682e7a8e8eb36c6916cb3c16b291a082ecd52ab79cc4",
        "ViT-H-14",
    ),
    "vit-g-14-laion2b": ClipSource(
        "laion/CLIP-ViT-g-14-laion2B-s12B-b42K",
        "open_clip_pytorch_model.bin",
        "6aac683f899159946bc4ca15228bb7016f3cbb1a2c51f365cba0b23923f344da",
        "ViT-g-14",
    ),
    "hps-v2.0": ClipSource(
        "xswu/HPSv2",
        "HPS_v2_compressed.pt",
        "07cb0d20626232204ca3a6ec53ff5984e7e53212a8a7b0e0ec2bac1bdaf125a1",
        "ViT-H-14",
    ),
    "hps-v2.1": ClipSource(
        "xswu/HPSv2",
        "HPS_v2.1_compressed.pt",
        "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837",
        "ViT-H-14",
    ),
    "pickscore-v1": ClipSource(
        "yuvalkirstain/PickScore_v1",
        "model.safetensors",
        "ef31ef6fc5ff4d9bb90dd232df4e145887ba62c5a03aa2841415f8c25f18d52e",
        "ViT-H-14",
        tokenizer=_LAION_H,
    ),
}
"""By the name that results carry. The checksums were read off the repositories' pages."""


def clip_features(
    model: str, *, weights: Location = None, tokenizer: Location = None, backend: Backend = "transformers"
) -> ClipFeatures | OpenClipFeatures:
    """One of `CLIP_SOURCES`, or another CLIP model in its place. Its name is the model's and the first digits of the checksum.

    Args:
        model: the published model.
        weights: a file of its weights, in open_clip's or transformers' names; or the folder of a transformers `CLIPModel`. What
            is not the published file is named after its own file or folder.
        tokenizer: folder of the tokenizer; default: that of a model folder, else the published one.
        backend: `open_clip` computes with open_clip's own classes, of the extra `[openclip]`, as a check.

    Raises:
        UserError: weights or tokenizer are missing, are other ones than published, or do not fit the architecture.
    """
    source = CLIP_SOURCES[model]
    if weights is not None and (Path(weights).expanduser() / "config.json").is_file():
        file = Path(weights).expanduser() / source.filename
        if not file.is_file() or sha256(file) != source.sha256:
            return ClipFeatures.from_folder(weights)
    else:
        file = weights_file(weights, repo=source.repo, filename=source.filename, sha256=source.sha256)
    is_published = file.name == Path(source.filename).name
    name = f"{model}@{source.sha256[:8]}" if is_published else f"{file.name}@{sha256(file)[:8]}"
    if backend == "open_clip":
        return OpenClipFeatures.from_tensors(read_tensors(file), source.architecture, name=name)
    network = clip_model(read_tensors(file), ARCHITECTURES[source.architecture], source=str(file))
    return ClipFeatures(network, pretrained(CLIPTokenizer, source.tokenizer, tokenizer), name=name)


def clip_scorer(
    model: str,
    *,
    weights: Location = None,
    tokenizer: Location = None,
    backend: Backend = "transformers",
    scale: float = 100.0,
    prefix: str = "",
    first_square: int | None = None,
    is_clamped: bool = False,
    label: str | None = None,
) -> ClipScorer:
    """CLIP score by one of `CLIP_SOURCES`: `scale * cos`, of pictures resized by PIL as open_clip and OpenAI do."""
    features = clip_features(model, weights=weights, tokenizer=tokenizer, backend=backend)
    return ClipScorer(
        features,
        name=labelled(label or f"clip/{model}", model, features),
        scale=scale,
        prefix=prefix,
        is_clamped=is_clamped,
        is_unescaped=True,
        transform=PictureTransform(features.image_size, first_square=first_square),
    )


def dmd2_clip_scorer(
    *, weights: Location = None, tokenizer: Location = None, backend: Backend = "transformers"
) -> ClipScorer:
    """CLIP score as DMD and DMD2 report it (https://arxiv.org/abs/2405.14867): the plain cosine, between 0 and 1.

    open_clip's ViT-g-14 (not ViT-bigG), "A photo depicts " before the caption, pictures brought to 256 by LANCZOS first.
    """
    return clip_scorer(
        "vit-g-14-laion2b",
        weights=weights,
        tokenizer=tokenizer,
        backend=backend,
        scale=1.0,
        prefix="A photo depicts ",
        first_square=256,
        label="clip/vit-g-14-laion2b-dmd2",
    )


def reference_clip_scorer(*, weights: Location = None, tokenizer: Location = None) -> ClipScorer:
    """CLIPScore as it was defined (https://arxiv.org/abs/2104.08718): `2.5 max(cos, 0)` by OpenAI's ViT-B/32, with a prefix."""
    return clip_scorer(
        "vit-b-32-openai",
        weights=weights,
        tokenizer=tokenizer,
        scale=2.5,
        prefix="A photo depicts ",
        is_clamped=True,
        label="clip/vit-b-32-openai-clipscore",
    )


def emoji_clip_scorer() -> ClipScorer:
    """The cosine by the embedded `emoji-clip`, as a reward; the tables of the embedded problem show 100 times that."""
    return ClipScorer(emoji_clip(), name="emoji_clip", scale=1.0)


def hps_scorer(
    version: Literal["v2.0", "v2.1"],
    *,
    weights: Location = None,
    tokenizer: Location = None,
    backend: Backend = "transformers",
    antialias: bool = True,
) -> ClipScorer:
    """HPSv2 (https://arxiv.org/abs/2306.09341): 100 times the cosine, as the benchmark's tables are; `hpsv2.score` is a hundredth.

    Args:
        version: numbers of v2.0 and v2.1 are never compared.
        weights: the published file, or another model in its place.
        tokenizer: folder of the tokenizer.
        backend: see `clip_features`.
        antialias: False resizes as torchvision did before 0.17, and so did the benchmark when its first tables were made.
    """
    features = clip_features(f"hps-{version}", weights=weights, tokenizer=tokenizer, backend=backend)
    label = f"hps/{version}" if antialias else f"hps/{version}-aliased"
    return ClipScorer(
        features,
        name=labelled(label, f"hps-{version}", features),
        scale=100.0,
        is_unescaped=True,
        transform=PictureTransform(features.image_size, resize="tensor", antialias=antialias),
    )


def pick_scorer(
    form: Literal["logit", "cosine"], *, weights: Location = None, tokenizer: Location = None
) -> ClipScorer:
    """PickScore (https://arxiv.org/abs/2305.01569).

    Args:
        form: `logit` is the model card's, the cosine times the model's own factor of about 100; `cosine` is what PSO reports.
        weights: the published file or its folder, or another model in its place.
        tokenizer: folder of the tokenizer.
    """
    features = clip_features("pickscore-v1", weights=weights, tokenizer=tokenizer)
    return ClipScorer(
        features,
        name=labelled(f"pickscore/{form}", "pickscore-v1", features),
        scale="logit" if form == "logit" else 1.0,
        transform=PictureTransform(features.image_size, crop="floor"),
    )


def labelled(label: str, model: str, features: ClipFeatures | OpenClipFeatures) -> str:
    """The label, with the weights' name where they are not the published ones.

    A number by other weights must not stand in the same column.
    """
    return label if features.name.startswith(f"{model}@") else f"{label}:{features.name}"
