"""PickScore from a model folder."""

from __future__ import annotations

from pathlib import Path

import torch

from stepdistill.metrics import load_scorer
from stepdistill.metrics.networks.clip import ClipFeatures
from stepdistill.metrics.preprocess import Preprocess
from stepdistill.metrics.scorers.clip_score import ClipScorer


def test_a_model_folder_replaces_the_published_weights(
    clip: ClipFeatures, clip_folder: Path, images: torch.Tensor
) -> None:
    prompts = ["ab", "c & d"]
    scorer = load_scorer("pickscore", weights=clip_folder)
    assert scorer.name.startswith("pickscore/logit:mine@")
    preprocess = Preprocess(16, crop="floor")
    expected = ClipScorer(clip, name="x", scale="logit", preprocess=preprocess)(images, prompts)
    assert torch.allclose(scorer(images, prompts), expected, atol=1e-5)
    cosine = load_scorer("pickscore/cosine", weights=clip_folder)
    assert torch.allclose(cosine(images, prompts) * clip.logit_scale, expected, atol=1e-4)
