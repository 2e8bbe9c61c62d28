"""The aesthetic score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip_reference as reference
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stepdistill.errors import UserError
from stepdistill.metrics import load_scorer
from stepdistill.metrics.networks.clip import ClipFeatures
from stepdistill.metrics.preprocess import Preprocess
from stepdistill.metrics.scorers.aesthetic import AESTHETIC_HEAD, AestheticScorer
from stepdistill.metrics.scorers.base import linear_head


def test_the_head_reads_unit_embeddings_and_ignores_prompts(clip: ClipFeatures) -> None:
    square = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    head = linear_head([8, 4, 3, 3, 2, 1])
    scorer = AestheticScorer(clip, head, name="x")
    matrix, offset = torch.eye(8), torch.zeros(8)
    for layer in head:
        if isinstance(layer, nn.Linear):
            matrix, offset = layer.weight @ matrix, layer.weight @ offset + layer.bias
    embedding = clip(square)
    expected = (embedding / embedding.norm(dim=1, keepdim=True)) @ matrix.T + offset
    scores = scorer(square, ["ab", "c d"])
    assert torch.allclose(scores, expected[:, 0], atol=1e-5)
    assert torch.equal(scores, scorer(square, ["other", "words"]))
    leaf = square.clone().requires_grad_()
    scorer.reward(leaf, ["ab", "c d"]).sum().backward()
    assert leaf.grad is not None


def test_other_backbones_are_refused(clip_folder: Path) -> None:
    with pytest.raises(UserError, match=r"needs OpenAI's ViT-L/14"):
        load_scorer("aesthetic", backbone=clip_folder)


def test_the_score_of_the_published_files(weights: Path, publish: Any, embed: Any, images: torch.Tensor) -> None:
    publish("vit-l-14-openai", weights)
    head = linear_head([reference.DIM, 1024, 128, 64, 16, 1])
    file = weights.parent / "head.pth"
    torch.save({f"layers.{name}": value for name, value in head.state_dict().items()}, file)
    paths = {"weights": file, "backbone": weights, "tokenizer": weights.parent / "words"}
    embedding = embed(Preprocess(reference.PATCH * reference.GRID))
    expected = head(F.normalize(embedding, dim=1))[:, 0]
    assert torch.allclose(load_scorer("aesthetic", **paths)(images, ["", ""]), expected, atol=1e-5)
    torch.save({"layers.0.weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="aesthetic head"):
        load_scorer("aesthetic", **paths)


def test_the_heads_url_ends_with_its_name() -> None:
    assert AESTHETIC_HEAD.url.rpartition("/")[2].replace("%2B", "+") == AESTHETIC_HEAD.name
