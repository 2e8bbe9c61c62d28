"""A tiny stand-in for the published CLIP checkpoints, and its scores by the reference forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import open_clip_reference as reference
import pytest
import torch
import torch.nn.functional as F

from stepdistill.metrics.networks.clip_checkpoints import CLIP_CHECKPOINTS
from stepdistill.metrics.networks.openclip import ARCHITECTURES, Architecture
from stepdistill.metrics.networks.weights import WeightFile, sha256
from stepdistill.metrics.preprocess import Preprocess
from stepdistill.testing.tiny import tiny_tokenizer

# HPSv2 publishes its weights in half precision.
HALVES = {name: value.half() for name, value in reference.random_state().items()}
STATE = {name: value.float() for name, value in HALVES.items()}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`HPS_v2.1_compressed.pt` with tiny weights, their architecture registered, and a tokenizer in `words` next to it."""
    heads = Architecture(reference.HEADS["visual"], reference.HEADS["text"])
    for name in ("ViT-H-14", "ViT-g-14", "ViT-L-14-quickgelu"):
        monkeypatch.setitem(ARCHITECTURES, name, heads)
    tiny_tokenizer(reference.LENGTH).save_pretrained(tmp_path / "words")
    file = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": HALVES}, file)
    return file


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make a file the published one of a checkpoint."""

    def publish(model: str, file: Path, **changes: str) -> None:
        published = replace(CLIP_CHECKPOINTS[model], file=WeightFile(file.name, sha256(file)), **changes)
        monkeypatch.setitem(CLIP_CHECKPOINTS, model, published)

    return publish


@pytest.fixture
def embed(images: torch.Tensor) -> Callable[[Preprocess], torch.Tensor]:
    """Image embeddings of `images` by the reference forward."""
    return lambda preprocess: reference.encode_image(preprocess(images), STATE)


@pytest.fixture
def cosines(embed: Callable[[Preprocess], torch.Tensor]) -> Callable[[Preprocess, list[str]], torch.Tensor]:
    """Cosines of `images` with prompts by the reference forward."""

    def cosines(preprocess: Preprocess, prompts: list[str]) -> torch.Tensor:
        rows = tiny_tokenizer(reference.LENGTH)(
            prompts, padding="max_length", max_length=reference.LENGTH, truncation=True
        ).input_ids
        return F.cosine_similarity(embed(preprocess), reference.encode_text(torch.tensor(rows), STATE))

    return cosines
