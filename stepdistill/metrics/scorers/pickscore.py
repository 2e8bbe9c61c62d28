"""PickScore, https://arxiv.org/abs/2305.01569."""

from __future__ import annotations

from typing import Literal

from stepdistill.metrics.networks.clip_checkpoints import label_of, load_clip
from stepdistill.metrics.networks.weights import Location
from stepdistill.metrics.preprocess import Preprocess
from stepdistill.metrics.scorers.clip_score import ClipScorer


def pick_scorer(
    form: Literal["logit", "cosine"], *, weights: Location = None, tokenizer: Location = None
) -> ClipScorer:
    """Load PickScore.

    Args:
        form: `logit` is the model card's, the cosine times the model's own factor of about 100; `cosine` is what PSO reports.
        weights: the published file or its folder, or another model in its place; see `load_clip`.
        tokenizer: folder of the tokenizer.
    """
    features = load_clip("pickscore-v1", weights=weights, tokenizer=tokenizer)
    return ClipScorer(
        features,
        name=label_of(f"pickscore/{form}", "pickscore-v1", features),
        scale="logit" if form == "logit" else 1.0,
        preprocess=Preprocess(features.image_size, crop="floor"),
    )
